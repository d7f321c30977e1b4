"""One line a row: a prediction with the columns of its row, as JSON."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import re
from collections.abc import Callable, Collection
from typing import Any

from fenlei.data.columns import Columns
from fenlei.data.example import Example
from fenlei.data.files import json_text
from fenlei.data.tables import clean_text
from fenlei.modeling.prediction import Prediction

FIELDS = ("id", "label", "probability", "probabilities", "confidence", "abstained", "truncated")
# the name of the only member of an object that stands for a value which JSON has no form for
_TYPE = "\0type"
_TAKEN = re.compile(f"(input_)*({'|'.join(FIELDS)})")


def carried_columns(example: Example, columns: Columns) -> dict[str, Any]:
    """The columns of the input that go with a prediction, by their names in the input."""
    # a conversation is one column with text and label in it: here they go apart
    plain = columns.form != "messages"
    given = {columns.id, columns.candidates, *example.extra}

    def free(name: str) -> str:
        return free(f"input_{name}") if name in given else name

    carried: dict[str, Any] = {columns.text if plain else free("text"): example.text}
    if columns.id and columns.id != "id":
        carried[columns.id] = example.id
    if columns.candidates and example.candidates is not None:
        carried[columns.candidates] = example.candidates_text or list(example.candidates)
    if columns.label and example.label is not None:
        carried[columns.label if plain else free("label")] = example.label
    carried.update(example.extra)
    return carried


def make_record(
    example: Example, columns: Columns, prediction: Prediction, keep: Collection[str] | None = None
) -> dict[str, Any]:
    """What is written for one row.

    ``id``, ``label``, ``probability``, ``probabilities`` (label -> p), ``confidence`` (compared with the threshold
    for abstaining), ``abstained`` and ``truncated``, then the input's columns. An input column whose name is taken
    becomes ``input_<name>``, and so does one that has such a name already (``input_label`` of a file that is predicted
    for the second time becomes ``input_input_label``): two columns never become one, in whichever rows they stand.

    Args:
        example: the row.
        columns: which column of its file holds what.
        prediction: the answer for it.
        keep: the input's columns to carry over; all of them by default.
    """
    record: dict[str, Any] = {
        "id": example.id,
        "label": prediction.label,
        "probability": prediction.probability,
        "probabilities": prediction.probabilities,
        "confidence": prediction.confidence,
        "abstained": prediction.abstained,
        "truncated": prediction.truncated,
    }
    for name, value in carried_columns(example, columns).items():
        if keep is None or name in keep:
            record[f"input_{name}" if _TAKEN.fullmatch(name) else name] = value
    return record


def json_line(record: dict[str, Any]) -> bytes:
    """A record as a line of JSON; what JSON has no form for (dates, bytes, infinity) as text, NaN as null."""
    return _encoded(json_text(record))


def typed_line(record: dict[str, Any]) -> bytes:
    """A record as a line of JSON from which :func:`read_typed_line` makes the same values again, dates and all."""
    return _encoded(json.dumps(_escaped(record), ensure_ascii=False, default=_tagged))


def read_typed_line(line: bytes) -> dict[str, Any]:
    """The record of a :func:`typed_line`."""
    record: dict[str, Any] = json.loads(line, object_hook=_untagged)
    return record


def _encoded(line: str) -> bytes:
    try:
        return f"{line}\n".encode()
    except UnicodeEncodeError:
        return f"{clean_text(line)}\n".encode()


def _escaped(value: Any) -> Any:
    """The value; an object of the input that looks like one of ours is written as its list of members."""
    if isinstance(value, dict):
        members = {name: _escaped(item) for name, item in value.items()}
        return {_TYPE: ["object", list(members.items())]} if list(members) == [_TYPE] else members
    return [_escaped(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tagged(value: Any) -> Any:
    kind: str | None = None
    content: Any = None
    if isinstance(value, datetime.datetime):  # a date too, so it comes first
        kind, content = "datetime", value.isoformat(timespec="microseconds")
    elif isinstance(value, datetime.date):
        kind, content = "date", value.isoformat()
    elif isinstance(value, datetime.time):
        kind, content = "time", value.isoformat()
    elif isinstance(value, datetime.timedelta):
        kind, content = "duration", [value.days, value.seconds, value.microseconds]
    elif isinstance(value, decimal.Decimal):
        kind, content = "decimal", str(value)
    elif isinstance(value, bytes):
        kind, content = "bytes", base64.b64encode(value).decode("ascii")
    return str(value) if kind is None else {_TYPE: [kind, content]}


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "duration": lambda parts: datetime.timedelta(*parts),
    "decimal": decimal.Decimal,
    "bytes": base64.b64decode,
    "object": dict,
}


def _untagged(values: dict[str, Any]) -> Any:
    if len(values) != 1 or _TYPE not in values:
        return values
    kind, content = values[_TYPE]
    return _MAKERS[kind](content)
