"""Classifiers without a model, for what is about HTTP: answers by a checksum of the text, and waits when told to."""

from __future__ import annotations

import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fenlei.artifact import MANIFEST
from fenlei.data import Example, LabelSet
from fenlei.errors import ArtifactError
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import make_predictions
from fenlei.prompting import EncodedPrompt
from fenlei.server.models import Models, Served

NEWS = ("体育", "财经", "科技")
MOOD = ("正面", "负面")
POISON = "毒"
LONGEST = 64
CREATED = 1_700_000_000


class FakePredictor:
    """Scores a text by its checksum.

    Args:
        hold: while this file is there, nothing is scored.
    """

    batch_tokens = 256

    def __init__(self, labels: LabelSet, calibration: Calibration, hold: Path | None = None) -> None:
        self.labels, self.calibration, self.hold = labels, calibration, hold
        self.broken = False
        self.go = threading.Event()
        self.go.set()
        config = SimpleNamespace(max_length=LONGEST)
        self.encoder = SimpleNamespace(config=config, labels=labels, read_spans=lambda e, _c=None: [(0, len(e.text))])

    def encode(self, examples: Any, *, candidates: Any = None) -> list[EncodedPrompt]:
        found = []
        for example in examples:
            ids = list(example.text.encode("utf-8", "replace"))
            names = tuple(candidates) if candidates is not None else self.labels.names
            found.append(EncodedPrompt(ids[:LONGEST], 0, min(len(ids), LONGEST), len(ids) > LONGEST, names))
        return found

    def costs(self, prompts: Any) -> list[int]:
        return [max(1, len(prompt.input_ids)) for prompt in prompts]

    def beginning_cost(self, prompt: Any) -> int:
        return 0

    def score(self, prompts: Any) -> list[Any]:
        self.go.wait()
        while self.hold is not None and self.hold.exists():
            time.sleep(0.005)
        texts = [bytes(prompt.input_ids) for prompt in prompts]
        if self.broken or any(POISON.encode() in text for text in texts):
            raise RuntimeError(f"cannot score {texts!r}")
        scores = []
        for prompt, text in zip(prompts, texts, strict=True):
            numbers = [zlib.crc32(text + name.encode()) % 1000 / 250 for name in prompt.candidates]
            scores.append(np.array(numbers) - 5.0)
        cut = [prompt.truncated for prompt in prompts]
        return make_predictions([prompt.candidates for prompt in prompts], scores, cut, self.calibration)

    def predict(self, examples: Any, *, candidates: Any = None) -> list[Any]:
        return self.score(self.encode(examples, candidates=candidates))

    def warm(self) -> None:
        if self.broken:
            raise RuntimeError("device-side assert")
        self.predict([Example("1")])

    def forget_failed(self) -> None:
        pass


class FakeClassifier:
    """What the server asks of a :class:`fenlei.TextClassifier`."""

    def __init__(self, names: tuple[str, ...], threshold: float | None, hold: Path | None = None) -> None:
        self.labels = LabelSet(names, aliases={"sport": names[0]})
        self.calibration = Calibration(threshold=threshold)
        self.predictor = FakePredictor(self.labels, self.calibration, hold)
        self.manifest = {"base_model": {"spec": "tiny"}}


class FakeModels(Models):
    """Takes every folder with a manifest in it for a classifier."""

    def add(self, name: str, folder: Path) -> Served:
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(f"{folder}: neither a run folder nor a classifier folder")
        with self._reserved(name):
            served = Served(name, FakeClassifier(MOOD, None), CREATED)  # type: ignore[arg-type]
            self._served[name] = served
        return served

    def _divide_memory(self) -> None:
        pass


def fake_models(hold: Path | None = None) -> Models:
    """``news`` and ``mood``; the first abstains below 0.5."""
    found = FakeModels(None, None, ())
    for name, labels, threshold in (("news", NEWS, 0.5), ("mood", MOOD, None)):
        found._served[name] = Served(name, FakeClassifier(labels, threshold, hold), CREATED)  # type: ignore[arg-type]
    return found


def predictor_of(models: Models, name: str = "news") -> FakePredictor:
    return models.get(name).classifier.predictor  # type: ignore[return-value]
