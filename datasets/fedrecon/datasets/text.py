"""Text files as numbered rows of fields: decoding and splitting, with errors that name the line."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from fedrecon.datasets.errors import MalformedFile

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path, encoding: str) -> str:
    r"""Read a file whole.

    Args:
        path: The file.
        encoding: `utf-8` (with or without a byte order mark) or `latin-1`.

    Returns:
        Its text, every line ending in `\n`, without blank lines at its end.

    Raises:
        MalformedFile: The file is empty or in another encoding.
    """
    content = path.read_bytes()
    if content.startswith(UTF_16_MARKS):
        raise MalformedFile(path, 1, f"unknown encoding: this looks like utf-16; convert the file to {encoding}")
    content = content.removeprefix(BYTE_ORDER_MARK).replace(b"\r\n", b"\n").rstrip(b"\n")
    if not content:
        raise MalformedFile(path, None, "the file is empty")
    try:
        return content.decode(encoding) + "\n"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        reason = (
            f"unknown encoding: byte 0x{content[error.start]:02x} is not {encoding}; convert the file to {encoding}"
        )
        raise MalformedFile(path, line, reason) from None


def split_rows(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Split text into rows of fields.

    Args:
        text: Lines as `read_text` gives them.
        separator: Between fields. A comma or semicolon means CSV, with quotes as in RFC 4180; else nothing is quoted.
        path: The file, for errors.

    Yields:
        The number of the line in which the row ends, from 1, and the row's fields.

    Raises:
        MalformedFile: The quotes of a CSV file do not match.
    """
    if separator not in {",", ";"}:
        # Not splitlines: that would also break at 0x85, which latin-1 files may hold within a title.
        for line, row in enumerate(text.removesuffix("\n").split("\n"), start=1):
            yield line, row.split(separator)
        return
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for fields in rows:
            yield rows.line_num, fields
    except csv.Error as error:
        raise MalformedFile(path, rows.line_num, f"not CSV: {error}") from None
