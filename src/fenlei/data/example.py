"""One row, as everything after the reader sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """A text with, perhaps, its label and the labels it may take.

    Attributes:
        text: the text to classify; the only part of a prompt that truncation may shorten.
        label: the right label, or None for a row to predict.
        candidates: the labels this row may take, or None when the row does not say.
        candidates_text: the candidates exactly as written in the file where they came as one string (the
            preset ``tutorial-zh`` repeats them letter for letter), else None.
        id: the row's own id where it has one, else its line or row number as text.
        source: ``file:line`` for messages.
        extra: the other columns, carried over to predictions.
    """

    text: str
    label: str | None = None
    candidates: tuple[str, ...] | None = None
    candidates_text: str | None = None
    id: str = ""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
