"""What a process of the prediction benchmark is told to do: plain data, read and written as JSON, free of torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from train_speed_job import ModelSource

ONE_BY_ONE, BATCHED, FENLEI, VLLM = "generate", "batched", "fenlei", "vllm"


@dataclass(frozen=True)
class Row:
    """A text to classify.

    Attributes:
        text: the text, whole.
        label: the right label.
        answer: what the model has to write for it: the label's name or code.
        prompt: the prompt as token ids, as this package makes it: shortened, ready for the answer.
        new_tokens: tokens of the right answer, its end included.
        candidates: the labels that the row may take, or None where it does not say.
    """

    text: str
    label: str
    answer: str
    prompt: list[int]
    new_tokens: int
    candidates: list[str] | None = None


@dataclass(frozen=True)
class PredictJob:
    """One measured process.

    Attributes:
        name: name of the variant in the report.
        method: `generate`, `batched`, `fenlei`, `vllm` or `matrix` (the rate of plain matrix products).
        model: the base model; a folder.
        classifier: the classifier folder.
        portions_file: JSON file with the rows of each step.
        device: `cpu` or `cuda`.
        max_new_tokens: most tokens of an answer; None: each answer has exactly the tokens of the right one, for an
            adapter that was never trained and would not stop.
        settings: what only this method knows.
    """

    name: str
    method: str
    model: ModelSource
    classifier: str
    portions_file: str
    device: str = "cpu"
    max_new_tokens: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def adapter(self) -> Path:
        return Path(self.classifier) / "adapter"

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> PredictJob:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "model": ModelSource(**values["model"])})

    def portions(self) -> list[list[Row]]:
        """The rows of each step, the warm-up first."""
        found = json.loads(Path(self.portions_file).read_text(encoding="utf-8"))
        return [[Row(**row) for row in portion] for portion in found]


def write_portions(portions: Sequence[Sequence[Row]], path: Path) -> None:
    # ASCII: a lone surrogate in a text has no UTF-8
    path.write_text(json.dumps([[asdict(row) for row in portion] for portion in portions]), encoding="utf-8")
