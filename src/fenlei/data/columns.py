"""Which column holds what, and how a row becomes an Example."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fenlei.config import DataConfig
from fenlei.data.example import Example
from fenlei.data.forms import (
    describe,
    label_text,
    parse_candidates,
    read_turns,
    shorten,
    split_tutorial_input,
)
from fenlei.data.tables import clean_text
from fenlei.errors import DataError

TEXT_NAMES = (
    *(
        "text",
        "content",
        "sentence",
        "document",
        "review",
        "comment",
        "query",
        "question",
        "body",
        "input",
        "title",
    ),
    *("文本", "内容", "正文", "句子", "标题"),
)
LABEL_NAMES = (
    *(
        "label_text",
        "label_name",
        "label",
        "output",
        "target",
        "class",
        "category",
        "intent",
        "topic",
        "sentiment",
    ),
    *("标签", "类别", "分类", "类型"),
)
CANDIDATE_NAMES = ("candidates", "choices", "options", "候选", "选项", "候选标签", "类型选项")
# These may as well hold the label, or something else: only the cells tell.
MAYBE_CANDIDATE_NAMES = ("category", "categories", "labels", "类别", "分类")
TURN_NAMES = ("messages", "conversations")
Form = Literal["plain", "alpaca", "messages"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use.

    Attributes:
        text: the text to classify.
        label: the right label, or None where rows have none.
        candidates: the labels a row may take, or None.
        id: the row's own id, or None.
        form: ``plain``: a cell each; ``alpaca``: instruction / input / output, the candidates perhaps inside
            the input as the tutorial writes them; ``messages``: turns of a conversation.
    """

    text: str
    label: str | None
    candidates: str | None
    id: str | None
    form: Form = "plain"


def detect_columns(
    rows: Iterable[Mapping[str, Any]] | Iterable[str],
    config: DataConfig,
    need_label: bool = True,
    where: str = "",
) -> Columns:
    """Settles the columns from the settings, else from names (case aside) and the first rows' values.

    ``category`` means the candidates where another label column stands beside it and it holds lists or
    enumerations; it is the label where it is the only label-like column and holds single names.

    Args:
        rows: the first rows of a table, or just its column names.
        config: settings; a column named there must exist (the label's only if needed).
        need_label: whether rows without a label are of no use.
        where: file name for messages.

    Raises:
        DataError: no text column, no label column though needed, or a named column that does not exist.
    """
    listed = list(rows)
    sample = [row for row in listed if isinstance(row, Mapping)]
    keys = list(dict.fromkeys(key for row in listed for key in ([row] if isinstance(row, str) else row)))
    finder = _Finder(keys, sample, where)
    id_column = finder.named(config.id_column, "id_column", need_label) or finder.first(("id",))
    candidates = finder.named(config.candidates_column, "candidates_column", need_label)
    form = _form(finder, config, need_label)
    if form == "messages":
        turns = config.text_column or finder.first(TURN_NAMES) or TURN_NAMES[0]
        return Columns(turns, turns, candidates, id_column, form)
    label = finder.named(config.label_column, "label_column", need_label)
    if form == "alpaca":
        return Columns("input", label or finder.first(("output",)), candidates, id_column, form)

    text = finder.named(config.text_column, "text_column", True) or finder.first(TEXT_NAMES)
    if text is None:
        raise finder.missing("text", TEXT_NAMES)
    rest = [key for key in keys if key not in (text, label, candidates, id_column)]
    label = label or finder.label(rest, need_label)
    if label is None and need_label:
        raise finder.missing("label", LABEL_NAMES)
    if config.candidates_column is None:
        candidates = finder.candidates([key for key in rest if key != label])
    return Columns(text, label, candidates, id_column)


class _Finder:
    """Looks columns up among the names and first rows of one table."""

    def __init__(self, keys: Sequence[str], sample: Sequence[Mapping[str, Any]], where: str) -> None:
        self.keys = keys
        self.sample = sample
        self.where = f"{where}: " if where else ""

    def first(self, names: Sequence[str], among: Sequence[str] | None = None) -> str | None:
        """The column with the earliest of ``names``, case and outer white space aside."""
        plain = {str(key).strip().lower(): key for key in reversed(self.keys if among is None else among)}
        return next((plain[name] for name in names if name in plain), None)

    def named(self, column: str | None, setting: str, required: bool) -> str | None:
        """The column that a setting names, if it is there."""
        if column is None or column in self.keys:
            return column
        if not required:
            return None
        near = difflib.get_close_matches(column, [str(key) for key in self.keys], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{self.where}no column {column!r} (data.{setting}){hint} Columns: {self.listing()}")

    def missing(self, what: str, names: Sequence[str]) -> DataError:
        """The error for a column that cannot be made out."""
        return DataError(
            f"{self.where}no {what} column found among: {self.listing()}. "
            f"Expected one of {', '.join(names)}; "
            f"name it with data.{what}_column. (Is the first line of a CSV or TSV file its header?)"
        )

    def listing(self) -> str:
        """The columns, for messages."""
        shown = ", ".join(repr(str(key)) for key in self.keys[:20]) or "(none)"
        return shown + (f" and {len(self.keys) - 20} more" if len(self.keys) > 20 else "")

    def values(self, column: str) -> list[Any]:
        """What the sample holds in a column, empty cells aside."""
        return [row[column] for row in self.sample if row.get(column) not in (None, "", [])]

    def label(self, among: Sequence[str], need_label: bool) -> str | None:
        """The label column: the first label-like name whose cells are single values."""
        for name in LABEL_NAMES:
            column = self.first((name,), among)
            if column is None or self._lists(column, strict=True):
                continue
            # unlabelled rows of the tutorial: the enumeration is of candidates, no label is there at all
            if not need_label and name in MAYBE_CANDIDATE_NAMES and self._lists(column):
                continue
            return column
        return None

    def candidates(self, among: Sequence[str]) -> str | None:
        """The candidates column: a name that says so, or one that may mean it with several labels a cell."""
        for name in CANDIDATE_NAMES + MAYBE_CANDIDATE_NAMES:
            column = self.first((name,), among)
            if column is None:
                continue
            unsaid = not self.sample or (name in CANDIDATE_NAMES and not self.values(column))
            if unsaid or self._lists(column):
                return column
        return None

    def _lists(self, column: str, *, strict: bool = False) -> bool:
        """Whether most cells hold several labels."""
        values = self.values(column)
        return sum(_is_listing(value, strict=strict) for value in values) * 2 > len(values)


def _is_listing(value: Any, *, strict: bool = False) -> bool:
    """Whether a cell holds several labels; ``strict``: only what cannot be one name with a comma in it."""
    if isinstance(value, list | tuple):
        return True
    if not isinstance(value, str):
        return False
    body = value.strip()
    if strict and not (body.startswith("[") and body.endswith("]")):
        return False
    try:
        names, _ = parse_candidates(body, "")
    except DataError:
        return False
    return names is not None and (len(names) > 1 or body.startswith("["))


def _form(finder: _Finder, config: DataConfig, need_label: bool) -> Form:
    turns = finder.first(TURN_NAMES)
    if turns is not None and config.text_column in (None, turns):
        if any(isinstance(value, list | tuple) for value in finder.values(turns)):
            return "messages"
    keys = set(finder.keys)
    if config.text_column is None and "instruction" in keys:
        answered = "output" in keys or config.label_column in keys or not need_label
        if answered and ("input" in keys or not keys & {"text", "content"}):
            return "alpaca"
    return "plain"


def to_example(
    row: Mapping[str, Any],
    columns: Columns,
    source: str,
    place: int | str,
    *,
    need_label: bool,
    aliases: Mapping[str, str] | None = None,
) -> Example:
    """Makes an Example of one row.

    Args:
        row: column -> value.
        columns: which column holds what.
        source: ``file:line``, kept for messages.
        place: line or row number, with the name of the file where a source has several; the id of a row that has
            none of its own.
        need_label: a row without a fitting label is bad; else the label is kept where it can be read.
        aliases: other spelling -> label, applied to label and candidates.

    Raises:
        DataError: the row is bad; the message is the reason and names the column.
    """
    text, label, candidates, verbatim, used = _parts(row, columns, need_label)
    if not text.strip():
        raise DataError(f"column {columns.text!r}: the text is empty")
    if aliases:
        label = aliases.get(label, label) if label is not None else None
        renamed = tuple(dict.fromkeys(aliases.get(name, name) for name in candidates or ()))
        if candidates is not None and renamed != candidates:
            candidates, verbatim = renamed, None  # the old wording would offer a label that is no answer
    if need_label:
        if label is None:
            raise DataError(f"column {columns.label!r}: the label is missing")
        if candidates is not None and label not in candidates:
            shown = ", ".join(candidates[:12]) + (" ..." if len(candidates) > 12 else "")
            raise DataError(f"column {columns.label!r}: label {label!r} is not among the row's candidates: {shown}")
    own = _own_id(row, columns)
    extra = {key: value for key, value in row.items() if key not in used}
    return Example(text, label, candidates, verbatim, own or str(place), source, extra)


def _parts(
    row: Mapping[str, Any], columns: Columns, need_label: bool
) -> tuple[str, str | None, tuple[str, ...] | None, str | None, set[str | None]]:
    """text, label, candidates, their wording, and the columns these came from."""
    used = {columns.text, columns.label, columns.candidates, columns.id}
    if columns.form == "messages":
        content, answer = read_turns(_cell(row, columns.text), columns.text)
        label = label_text(answer, columns.text)
        text, candidates, verbatim = split_tutorial_input(content, label)
    elif columns.form == "alpaca":
        used |= {"instruction", "input"}
        label = _label(row, columns, need_label)
        cell = row.get("input")
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            cell = row.get("instruction")
        text, candidates, verbatim = split_tutorial_input(_checked_text(cell, columns.text), label)
    else:
        label = _label(row, columns, need_label)
        text, candidates, verbatim = _checked_text(_cell(row, columns.text), columns.text), None, None
    if columns.candidates is not None:
        candidates, verbatim = parse_candidates(row.get(columns.candidates), columns.candidates)
    return text, label, candidates, verbatim, used


def _label(row: Mapping[str, Any], columns: Columns, need_label: bool) -> str | None:
    if columns.label is None:
        return None
    try:
        return label_text(row.get(columns.label), columns.label)
    except DataError:
        if need_label:
            raise
        return None


def _cell(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise DataError(f"column {column!r} is missing; the row has {shorten([str(key) for key in row])}")
    return row[column]


def _checked_text(value: Any, column: str) -> str:
    if isinstance(value, str):
        return clean_text(value)
    if value is None or value != value:  # NaN
        raise DataError(f"column {column!r}: the text is missing")
    raise DataError(f"column {column!r}: expected a text, found {describe(value)}")


def _own_id(row: Mapping[str, Any], columns: Columns) -> str | None:
    if columns.id is None:
        return None
    try:
        return label_text(row.get(columns.id), columns.id)
    except DataError:
        raise DataError(
            f"column {columns.id!r}: expected an id (text or number), found {describe(row[columns.id])}"
        ) from None
