"""Values of a row: labels, lists of candidates, and the tutorial's wording that packs them into a prompt."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fenlei.data.tables import clean_text
from fenlei.errors import DataError

# The tutorial's wording, letter for letter (full-width colon inside the second mark included).
INSTRUCTION = "你是一个文本分类领域的专家，你会接收到一段文本和几个潜在的分类选项，请输出文本内容的正确类型"
TEXT_MARK = "文本:"
CANDIDATES_MARK = ",类型选型:"

_SEPARATORS = re.compile(r"[,，、;；|]")
_MOST_CUTS = 16  # each is parsed: a text made of nothing but marks must not take for ever
_USER = {"user", "human"}
_ASSISTANT = {"assistant", "gpt", "model", "bot"}


def label_text(value: Any, column: str) -> str | None:
    """The label that a cell holds, or None for an empty one.

    Texts stay as they are, white space included; 1 and 1.0 become ``"1"``, True becomes ``"true"``.

    Raises:
        DataError: the cell holds a list, an object or another thing that is no label.
    """
    if isinstance(value, str):
        return clean_text(value) if value.strip() else None
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    raise DataError(f"column {column!r}: expected one label (a text or a number), found {describe(value)}")


def parse_candidates(value: Any, column: str) -> tuple[tuple[str, ...] | None, str | None]:
    """The candidates in a cell, and their text where the cell held one string.

    A list is taken as it is. A string is a Python list (``['Military', 'Space']``), a JSON list, or names
    between any of ``, ， 、 ; ； |``. The second value is the string letter for letter, but None for a JSON
    list written as json writes it: that is how ``fenlei convert --to csv`` stores a real list in a cell. A
    name that stands twice is taken once.

    Returns:
        ``(None, None)`` where the cell is empty: the row does not say.

    Raises:
        DataError: the cell holds something else, or an item is no label.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, None
    if isinstance(value, list | tuple):
        return _names(value, column) or None, None
    if not isinstance(value, str):
        raise DataError(f"column {column!r}: expected a list of labels or a text, found {describe(value)}")
    text = clean_text(value)
    body = text.strip()
    if not body:
        return None, None
    if (items := _literal(body, column)) is not None:
        names = _names(items, column)
        plain_json = text == json.dumps(list(names), ensure_ascii=False)
        return (names or None), (None if plain_json else text)
    parts = tuple(dict.fromkeys(part.strip() for part in _SEPARATORS.split(body) if part.strip()))
    return (parts or None), (text if parts else None)


def _literal(body: str, column: str) -> list[Any] | tuple[Any, ...] | None:
    """The list that a text spells, or None where it is no list."""
    if body[0] + body[-1] not in ("[]", "()"):
        return None
    for parse in (json.loads, ast.literal_eval):  # literal_eval reads constants only, it runs nothing
        try:
            items = parse(body)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(items, list | tuple):
            return items
    if body[0] == "(":
        return None
    raise DataError(
        f"column {column!r}: {shorten(body)} looks like a list but cannot be read; "
        "write ['a', 'b'], or the names with commas and no brackets"
    )


def _names(items: list[Any] | tuple[Any, ...], column: str) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for item in items:
        name = label_text(item, column)
        if name is None:
            raise DataError(f"column {column!r}: a candidate in {shorten(items)} is empty")
        names[name] = None
    return tuple(names)


def tutorial_input(text: str, candidates: tuple[str, ...], candidates_text: str | None) -> str:
    """The user's turn of the tutorial; a list is printed as Python prints it."""
    shown = candidates_text if candidates_text is not None else str(list(candidates))
    return f"{TEXT_MARK}{text}{CANDIDATES_MARK}{shown}"


def split_tutorial_input(content: str, label: str | None) -> tuple[str, tuple[str, ...] | None, str | None]:
    """Takes text and candidates out of :func:`tutorial_input` again; other content is all text.

    The text may itself hold the mark ``,类型选型:``. Of all places to cut, one after which a printed list (or
    else a plain enumeration) follows that has the label in it is right; from the end on, the first such place
    is taken.

    Returns:
        text, candidates, and the candidates' string where it is not just Python's print of the list.
    """
    if not content.startswith(TEXT_MARK):
        return content, None, None
    cuts = [
        (content[len(TEXT_MARK) : at], names, raw)
        for at, raw in _cuts(content)
        if (names := _try_candidates(raw)) is not None
    ]
    if not cuts:
        return content, None, None

    def rank(cut: tuple[str, tuple[str, ...], str]) -> tuple[bool, bool]:
        return (label is None or label in cut[1], cut[2][0] + cut[2][-1] == "[]")

    text, names, raw = max(cuts, key=rank)  # max keeps the first of equals: the last place in the content
    return text, names, (None if raw == str(list(names)) else raw)


def _cuts(content: str) -> Iterator[tuple[int, str]]:
    at = content.rfind(CANDIDATES_MARK)
    for _ in range(_MOST_CUTS):
        if at < len(TEXT_MARK):
            return
        yield at, content[at + len(CANDIDATES_MARK) :]
        at = content.rfind(CANDIDATES_MARK, 0, at)


def _try_candidates(raw: str) -> tuple[str, ...] | None:
    try:
        return parse_candidates(raw, "")[0]
    except DataError:
        return None


def read_turns(value: Any, column: str) -> tuple[str, str | None]:
    """Last user turn and the assistant's answer to it, from ``role``/``content`` or ``from``/``value`` turns.

    Raises:
        DataError: no list of turns, or no user turn.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) for turn in value):
        raise DataError(
            f'column {column!r}: expected a list of turns {{"role": ..., "content": ...}}, found {describe(value)}'
        )
    user: str | None = None
    answer: str | None = None
    for turn in value:
        role = str(turn.get("role", turn.get("from", ""))).lower()
        if role in _USER:
            user, answer = _content(turn, column), None
        elif role in _ASSISTANT and user is not None and answer is None:
            answer = _content(turn, column)
    if user is None:
        raise DataError(f"column {column!r}: no user turn among {len(value)} turns")
    return user, answer


def _content(turn: Mapping[str, Any], column: str) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"column {column!r}: a turn's content must be text, found {describe(content)}")
    return clean_text(content)


def describe(value: Any) -> str:
    """Kind and start of a value, for messages."""
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        tuple: "a list",
        str: "a text",
        bytes: "bytes",
    }
    if value is None:
        return "nothing"
    return f"{kinds.get(type(value), type(value).__name__)} {shorten(value)}"


def shorten(value: Any, width: int = 60) -> str:
    """``repr`` cut to ``width`` characters."""
    text = repr(value[:200] if isinstance(value, str | list | tuple | bytes) else value)
    return text if len(text) <= width else text[: width - 3] + "..."
