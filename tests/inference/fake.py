"""A classifier that answers in no time, always the same, and differently when rows are put together differently."""

from __future__ import annotations

import time
import zlib
from typing import Any, NamedTuple

from fenlei.config import RunConfig
from fenlei.data import LabelSet
from fenlei.errors import ConfigError, ModelError
from fenlei.inference.bulk import Selection, predict_file
from fenlei.inference.output import open_output

NAMES = ("体育", "财经", "科技")
REFUSED, NOT_FINITE = "<no room>", "<nan>"


class Answer(NamedTuple):
    """What a bulk prediction reads of a prediction."""

    label: str
    probability: float
    probabilities: dict[str, float]
    confidence: float
    abstained: bool
    truncated: bool


class FakeClassifier:
    """Answers by a checksum of the text, and of all texts that it was called with.

    Texts with :data:`REFUSED` have no prompt, those with :data:`NOT_FINITE` no score; a call with one of
    them fails as a whole. A text takes ``seconds``.
    """

    def __init__(self, overrides: tuple[str, ...] = (), seconds: float = 0.0, *, remember: bool = True) -> None:
        self.config = RunConfig.build({}, overrides=["data.on_bad_row=skip", *overrides])
        self.labels = LabelSet(NAMES)
        self.seconds = seconds
        self.remember = remember
        self.calls: list[list[str]] = []

    @property
    def predictor(self) -> FakeClassifier:
        return self

    def encode(self, examples: Any) -> Any:
        if any(REFUSED in example.text for example in examples):
            raise ConfigError("leaves no room for the text")
        return list(examples)

    def forget_failed(self) -> None:
        """Nothing is left behind."""

    def score(self, texts: Any, *, progress: Any = None) -> list[Answer]:
        together = zlib.crc32("\n".join(example.text for example in texts).encode())
        if self.remember:
            self.calls.append([example.text for example in texts])
        time.sleep(self.seconds * len(texts))
        if any(NOT_FINITE in example.text for example in texts):
            raise ModelError("scores are not finite numbers")
        found = []
        for example in texts:
            number = zlib.crc32(example.text.encode()) ^ together
            weights = [1 + (number >> shift) % 1000 for shift in (0, 10, 20)]
            p = {name: weight / sum(weights) for name, weight in zip(NAMES, weights, strict=True)}
            best = max(p, key=lambda name: p[name])
            found.append(Answer(best, p[best], p, p[best] - 1, False, len(example.text) > 500))
        if progress:
            progress(len(texts))
        return found


def predict(source: Any, out: Any, *, resume: bool = False, overwrite: bool = False, **how: Any) -> Any:
    """A bulk prediction with the fake classifier; ``how``: it, ``sha``, ``machine``, ``progress`` or a selection."""
    classifier = how.pop("classifier", None) or FakeClassifier(how.pop("overrides", ()))
    sha, progress = how.pop("sha", "0" * 64), how.pop("progress", None)
    machine = how.pop("machine", None)
    with open_output(source, out, resume=resume, overwrite=overwrite) as output:
        return predict_file(
            classifier,
            source,
            output,
            classifier_sha256=sha,
            machine=machine,
            selection=Selection(**{"chunk_rows": 8, **how}),
            progress=progress,
        )
