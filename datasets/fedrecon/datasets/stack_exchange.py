"""The official Stack Exchange dump: `Posts.xml` and `Comments.xml`, one folder per site.

A file is one element, `posts` or `comments`, of `row` elements whose attributes are the columns. A text is a post or
comment of a person: rows without an owner (deleted accounts) and rows of the Community account, number -1, are left
out. A post's `Body` is HTML; a comment's `Text` is plain. Titles and tags are left out: the body is what people write
word by word. Numbers of users are those of one site, so a user's key is `site/number`.

Files are read as a stream: only the texts stay in memory. A file that declares entities of its own is refused, since
nested ones can make a small file a huge one, and the dump has none.

Source: https://archive.org/details/stackexchange and the schema at https://meta.stackexchange.com/q/2677.
"""

import xml.parsers.expat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fedrecon.datasets.errors import MalformedFile, UnknownDataset
from fedrecon.datasets.html_text import text_of_html
from fedrecon.datasets.texts import Texts

COMMUNITY = -1
CHUNK_BYTES = 1 << 16
DEPTH_OF_A_ROW = 2


@dataclass(frozen=True, slots=True)
class Format:
    """One file of a site.

    Attributes:
        file: Its name.
        root: Name of its one element.
        owner: Attribute with the number of the user who wrote a row.
        text: Attribute with what was written.
        is_html: Whether that is HTML.
    """

    file: str
    root: str
    owner: str
    text: str
    is_html: bool


POSTS = Format("Posts.xml", "posts", "OwnerUserId", "Body", is_html=True)
COMMENTS = Format("Comments.xml", "comments", "UserId", "Text", is_html=False)
FORMATS = (POSTS, COMMENTS)


@dataclass(frozen=True, slots=True)
class _Row:
    """One text as its file has it."""

    user: int
    milliseconds: int
    text: str


def load_stack_exchange(path: Path | str) -> Texts:
    """Load the posts and comments of one site or of several.

    Args:
        path: A folder with `Posts.xml` (and `Comments.xml`, if there), or a folder of such folders. A site is called
            as its folder is.

    Returns:
        The texts, site by site in the order of their names; users are in the order of site and number.

    Raises:
        UnknownDataset: The path is no folder, or holds no `Posts.xml`.
        MalformedFile: A file is no XML, or does not hold what the format promises.
    """
    path = Path(path)
    sites = [path] if (path / POSTS.file).is_file() else sorted(each.parent for each in path.glob(f"*/{POSTS.file}"))
    if not sites:
        what = "holds no posts" if path.is_dir() else "is no folder"
        raise UnknownDataset(f"{path} {what}: looked for {POSTS.file} and */{POSTS.file}")
    rows: list[_Row] = []
    keys: list[tuple[str, int]] = []
    for site in sites:
        for spelling in FORMATS:
            if (site / spelling.file).is_file():
                own = list(_read_rows(site / spelling.file, spelling))
                rows += own
                keys += [(site.resolve().name, row.user) for row in own]
    index = {key: number for number, key in enumerate(sorted(set(keys)))}
    return Texts(
        texts=tuple(row.text for row in rows),
        users=np.array([index[key] for key in keys], dtype=np.int64),
        timestamps=np.array([row.milliseconds for row in rows], dtype=np.int64),
        user_keys=tuple(f"{site}/{user}" for site, user in index),
    )


def _read_rows(path: Path, spelling: Format) -> Iterator[_Row]:
    """Stream the rows of one file that a person wrote."""
    reader = _Reader(path, spelling)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield from reader.read(chunk)
        yield from reader.read(b"")


class _Reader:
    """Reads a file chunk by chunk; `depth` counts the open elements."""

    def __init__(self, path: Path, spelling: Format) -> None:
        self.path = path
        self.spelling = spelling
        self.depth = 0
        self.found: list[_Row] = []
        self.parser = xml.parsers.expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.EntityDeclHandler = self._refuse_entity

    def read(self, chunk: bytes) -> list[_Row]:
        """Give the rows that end in this chunk; an empty chunk is the end of the file."""
        self.found = []
        try:
            self.parser.Parse(chunk, not chunk)
        except xml.parsers.expat.ExpatError as error:
            raise MalformedFile(
                self.path, error.lineno, f"not XML: {xml.parsers.expat.ErrorString(error.code)}"
            ) from None
        return self.found

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        expected = self.spelling.root if self.depth == 1 else "row"
        if self.depth > DEPTH_OF_A_ROW or name != expected:
            raise self._malformed(f"expected the element {expected!r}, found {name!r}")
        if self.depth == DEPTH_OF_A_ROW:
            try:
                row = _read_row(attributes, self.spelling)
            except ValueError as error:
                raise self._malformed(str(error)) from None
            if row is not None:
                self.found.append(row)

    def _end(self, name: str) -> None:
        del name
        self.depth -= 1

    def _refuse_entity(self, *_: object) -> None:
        raise self._malformed("it declares an entity, which no dump does")

    def _malformed(self, reason: str) -> MalformedFile:
        return MalformedFile(self.path, self.parser.CurrentLineNumber, reason)


def _read_row(attributes: dict[str, str], spelling: Format) -> _Row | None:
    """Read one row; `None` if no person wrote it; a `ValueError` says what is wrong with it."""
    for name in ("Id", "CreationDate", spelling.text):
        if name not in attributes:
            raise ValueError(f"a row without {name}")
    owner = attributes.get(spelling.owner)
    if owner is None:
        return None
    try:
        user = int(owner)
    except ValueError:
        raise ValueError(f"the {spelling.owner} {owner!r} is not a whole number") from None
    if user == COMMUNITY:
        return None
    text = attributes[spelling.text]
    return _Row(
        user=user,
        milliseconds=_unix_milliseconds(attributes["CreationDate"]),
        text=text_of_html(text) if spelling.is_html else text,
    )


def _unix_milliseconds(date: str) -> int:
    """Read `2016-08-02T15:39:14.947`, which the dump means in UTC."""
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        raise ValueError(f"the CreationDate {date!r} is not a date and time") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
