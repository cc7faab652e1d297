"""HTML to plain text, as far as the bodies of posts need it.

Rules: blocks of code (`pre`) and what browsers do not show (`script`, `style`) are left out; code within a sentence
stays, since its words are part of it. Elements that browsers set apart (paragraphs, list items, headings, quotations)
end a line; every other run of white space is one space. Broken HTML is read as browsers read it: nothing is refused.
"""

import re
from html.parser import HTMLParser

BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "br", "dd", "details", "div", "dl", "dt", "figure", "footer",
    "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "summary",
    "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
})  # fmt: skip
LEFT_OUT = frozenset({"pre", "script", "style"})
SPACES = re.compile(r"[^\S\n]+")
BREAKS = re.compile(r" ?\n[ \n]*")


def text_of_html(html: str) -> str:
    r"""Give the text of a piece of HTML.

    Args:
        html: A body, entities and all.

    Returns:
        Its text; `\n` where a block begins or ends.

    Example:
        >>> text_of_html("<p>Use <code>sum</code> &amp; see:</p><pre><code>sum(x)</code></pre><p>Done.</p>")
        'Use sum & see:\nDone.'
    """
    reader = _TextReader()
    reader.feed(html)
    reader.close()
    return BREAKS.sub("\n", SPACES.sub(" ", "".join(reader.pieces))).strip()


class _TextReader(HTMLParser):
    """Collects text; `depth` counts the open elements that are left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in BLOCKS:
            self.pieces.append("\n")
        if tag in LEFT_OUT:
            self.depth += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS:
            self.pieces.append("\n")
        if tag in LEFT_OUT and self.depth:
            self.depth -= 1

    def handle_data(self, data: str) -> None:
        if not self.depth:
            # Line breaks of the source are no line breaks of the text.
            self.pieces.append(data.replace("\n", " "))
