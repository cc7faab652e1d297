"""Texts to sentences, and sentences to words: the simple tokenizer of next-word prediction.

Rules, in this order:
1. A line break ends a sentence. So does a run of `.`, `!`, `?` or `…` (and closing quotes or brackets after it) before
   white space or the end; `3.5` and `e.g.this` are not cut, abbreviations before a space are.
2. Left out, since nobody writes them word by word: web addresses (`http://`, `https://` or `www.` up to white space
   or a closing bracket), and formulas within one line, between `$$` and `$$`, or between `$` and `$` by Pandoc's rule:
   no space after the first dollar nor before the last, and no digit after the last, so that prices are no formulas.
3. A word is a run of letters and digits, which may hold single apostrophes or hyphens between them: `don't`,
   `state-of-the-art`, `2nd`. Everything else (punctuation, symbols, underscores) separates words and is no word itself.
4. Words are in Unicode's normal form NFC and lower case; the curly apostrophe is written as the straight one.
"""

import re
import unicodedata

ADDRESS = re.compile(r"\b(?:https?://|www\.)[^\s)\]>]+", re.IGNORECASE)
FORMULA = re.compile(r"\$\$[^\n]+?\$\$|\$(?![\s$])[^$\n]*(?<!\s)\$(?!\d)")
CURLY_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
SENTENCE_END = re.compile(r"[.!?…]+[\"'”)\]]*(?=\s|$)|\n")
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


def sentences_of(text: str) -> list[list[str]]:
    r"""Split a text into the words of its sentences.

    Args:
        text: What was written.

    Returns:
        The words of each sentence that has any.

    Example:
        >>> sentences_of("It's v3.5 (see https://example.org/a.b)! Isn't it?\nYes")
        [["it's", 'v3', '5', 'see'], ["isn't", 'it'], ['yes']]
    """
    plain = FORMULA.sub(" ", ADDRESS.sub(" ", unicodedata.normalize("NFC", text).replace(CURLY_APOSTROPHE, "'")))
    found = (WORD.findall(piece.lower()) for piece in SENTENCE_END.split(plain))
    return [words for words in found if words]
