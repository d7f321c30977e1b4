"""Where the sentences of a Chinese or English text begin and end."""

from __future__ import annotations

import re

_CLOSING = re.escape("\"'”’»）)】」』》]")
# what may end a sentence; what closes a quotation or bracket belongs to it
_ENDS = re.compile(rf"(?P<marks>[。！？；!?….]+)[{_CLOSING}]*|\n+")
_WORD = re.compile(r"[^\s(\"'“‘]*")
_SPACE = re.compile(r"\s*")
_CHINESE = frozenset("。！？；")
_LOOK_AROUND = 80
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st gen col sgt capt lt rev hon gov sen rep vs etc eg ie cf al vol fig figs eq pp "
    "approx inc ltd co corp dept est jan feb mar apr jun jul aug sep sept oct nov dec".split()
)


def split_sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of a text as character spans ``(start, end)`` that follow each other and cover all of it.

    White space after a sentence belongs to it. A full stop ends no sentence inside a number (3.14), after an
    abbreviation or an initial (Dr., e.g., U.S., J.), after the number of a list item, or before a small letter.
    A text of white space alone has none. The time is linear in the length of the text, whatever it holds.
    """
    cuts: list[int] = []
    end = 0
    for found in _ENDS.finditer(text):
        if found.start() < end:  # a line end in white space that belongs to the sentence before
            continue
        if found["marks"] and not _stops(text, found):
            continue
        space = _SPACE.match(text, found.end())
        assert space is not None, "it matches nothing, too"
        end = space.end()
        cuts.append(end)
    spans: list[tuple[int, int]] = []
    start = 0
    for end in (*cuts, len(text)):
        if end <= start or not text[start:end].strip():
            continue  # white space goes to the sentence that follows, or below to the one before
        spans.append((start, end))
        start = end
    if spans:
        spans[-1] = (spans[-1][0], len(text))
    return spans


def _stops(text: str, found: re.Match[str]) -> bool:
    """Whether a run of marks ends a sentence: a Chinese mark does, others do before white space only."""
    marks, start = found["marks"], found.start()
    if not _CHINESE.isdisjoint(marks):
        return True
    if text[found.end() : found.end() + 1].strip():
        return False
    if marks != ".":
        return True
    first = max(0, start - _LOOK_AROUND)
    line = text[max(first, text.rfind("\n", first, start) + 1) : start]
    word = _WORD.match(line[::-1])  # from behind: a search for the last word would try each character as its first
    before = word.group()[::-1] if word else ""
    if before.isdigit() and not line[: -len(before)].strip():  # "1. " at the start of a line
        return False
    plain = before.replace(".", "")
    after = text[found.end() : found.end() + _LOOK_AROUND].lstrip(" \t")[:1]
    if plain.lower() in ("no", "nos") and after.isdigit():
        return False
    if plain.lower() in _ABBREVIATIONS or re.fullmatch(r"[A-Za-z](\.[A-Za-z])*", before):
        return False
    return not after.islower()
