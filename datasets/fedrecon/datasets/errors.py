"""What can be wrong with a dataset on disk, said so that a person can mend it.

Every error names the file, the line where there is one, and the reason; the errors of this room are `ValueError`s,
so a caller who does not care for the difference catches that.
"""

from pathlib import Path


class MalformedFile(ValueError):  # noqa: N818 (the name says what it is, as `FileNotFoundError` would not)
    """A file that is there but does not hold what its format promises.

    Attributes:
        path: The file.
        line: Number of the line, from 1; `None` where the whole file is meant.
        reason: What is wrong with it.
    """

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        where = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{where}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


class UnknownDataset(ValueError):  # noqa: N818 (the same)
    """A path that does not exist, or where no format of this room is found; the text lists what was looked for."""
