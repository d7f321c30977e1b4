"""Remarks that a report makes in several languages: a key and values, and the English sentence that they stand for.

``report/page/words.js`` and ``words_zh.js`` word the same keys, each as ``note_<key>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fenlei.errors import FenleiError

ENGLISH = {
    "learned_from": "learned from {rows} training rows",
    "chosen_on_dev": "{setting}, chosen on dev rows",
    "by_default": "{setting}, as there were no dev rows to choose by",
    "examples": "{count} solved examples in the prompt, at most {a_label} a label, drawn with seed {seed}",
    "too_short": "the training was so short that asking {rows} rows would take long beside it",
    "no_base_model": "lora.method=full changed the model's own weights, so the base model is not here to be asked",
    "no_room": "the model's context of {room} tokens leaves no room for examples beside prompt.max_length",
    "no_example_fits": "no example fits into {most} tokens",
    "no_second_turn": "the tokenizer's chat template has no place for solved examples: {error}",
    "one_label": "TF-IDF needs rows of two labels or more",
    "not_fitted": "TF-IDF cannot be fitted on these texts: {error}",
    "failed": "{error}",
}
_Error = TypeVar("_Error", bound=FenleiError)


@dataclass(frozen=True)
class Note:
    """One remark.

    Attributes:
        key: one of :data:`ENGLISH`.
        values: what its sentence names.
    """

    key: str
    values: Mapping[str, str | int | float] = field(default_factory=dict)

    def __str__(self) -> str:
        return ENGLISH[self.key].format(**self.values)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in JSON: ``key`` and ``values``."""
        return {"key": self.key, "values": dict(self.values)}


def note_fields(notes: Sequence[Note]) -> dict[str, Any]:
    """What a file says of remarks: ``note``, all of them in English, and ``notes``, for other languages."""
    return {"note": "; ".join(map(str, notes)), "notes": [note.to_dict() for note in notes]}


def because(kind: type[_Error], note: Note) -> _Error:
    """An error whose message is a remark, which :func:`reason` finds again."""
    error = kind(str(note))
    error.note = note
    return error


def reason(error: BaseException) -> Note:
    """What an error says, as a remark; where it is not one of :data:`ENGLISH`, the first line of its message."""
    if isinstance(error, FenleiError) and isinstance(error.note, Note):
        return error.note
    return Note("failed", {"error": str(error).split("\n")[0] or type(error).__name__})
