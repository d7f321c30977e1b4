"""Asks every rung of the baseline ladder and puts their answers together."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fenlei.config_parts import EvaluationConfig
from fenlei.data.example import Example
from fenlei.errors import FenleiError
from fenlei.evaluation.baselines import MajorityBaseline, best_tfidf
from fenlei.evaluation.ladder import TITLES, Rung, build_ladder
from fenlei.evaluation.notes import Note, reason
from fenlei.inference.predictor import Predictor
from fenlei.inference.untuned import untuned, with_examples
from fenlei.modeling.prediction import Prediction

Progress = Callable[[int], None]

# with fewer rows the answers of the model as it is say next to nothing
FEWEST_ROWS = 30


@dataclass(frozen=True)
class LadderData:
    """Rows of a ladder, each with its label.

    Attributes:
        train: what the baselines learn from, and the examples of few-shot come from.
        dev: rows that choose TF-IDF's settings; none if the ladder is measured on them.
        rows: the rows that everybody answers.
        part: what these rows are called: ``test``, ``dev``, or a file's name.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    rows: Sequence[Example]
    part: str


def measure_ladder(
    predictor: Predictor,
    tuned: Sequence[Prediction],
    data: LadderData,
    settings: EvaluationConfig,
    *,
    seed: int,
    tuned_seconds: float = 0.0,
    model_rows: int | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The ladder; see :func:`fenlei.evaluation.ladder.build_ladder` for what it holds.

    A rung that cannot be measured is left out with its reason: a baseline must not cost the run that it belongs to.

    Args:
        predictor: the tuned classifier.
        tuned: its predictions for ``data.rows``.
        data: the rows.
        settings: which rungs, and how.
        seed: seed of everything drawn.
        tuned_seconds: wall time of the tuned predictions.
        model_rows: most rows that the untuned model is asked; ``settings.ladder_rows`` by default.
        say: told what is being done.
        progress: called between batches; may raise to stop.
    """
    rungs: list[Rung] = []
    left_out: dict[str, Note] = {}
    ask = _Ask(predictor, data, settings, seed, progress)
    asked = settings.ladder_rows if model_rows is None else model_rows
    for name in ("majority", "tfidf", "zero_shot", "few_shot"):
        if name not in settings.ladder:
            continue
        of_model = name in ("zero_shot", "few_shot")
        if of_model and asked is not None and asked < min(FEWEST_ROWS, len(data.rows)):
            left_out[name] = Note("too_short", {"rows": FEWEST_ROWS})
            continue
        if say is not None and of_model:
            say(f"asking the model without its tuning ({TITLES[name]}) ...")
        try:
            rungs.append(ask.model(name, asked) if of_model else ask.baseline(name))
        except (FenleiError, ValueError, RuntimeError, MemoryError) as error:
            left_out[name] = reason(error)
    rungs.append(Rung("tuned", tuned, seconds=tuned_seconds))
    gold = [str(example.label) for example in data.rows]
    return build_ladder(gold, rungs, part=data.part, left_out=left_out, samples=settings.bootstrap)


@dataclass(frozen=True)
class _Ask:
    predictor: Predictor
    data: LadderData
    settings: EvaluationConfig
    seed: int
    progress: Progress | None

    def baseline(self, name: str) -> Rung:
        start = time.monotonic()
        data = self.data
        train = [e.text for e in data.train], [str(e.label) for e in data.train]
        detail: dict[str, Any] = {"train_rows": len(data.train)}
        notes = []
        if name == "majority":
            model: Any = MajorityBaseline(train[1])
        else:
            dev = [e.text for e in data.dev], [str(e.label) for e in data.dev]
            model = best_tfidf(train, dev, self._candidates(data.dev), self.seed)
            detail = {"train_rows": model.train_rows, "setting": str(model.setting), "chosen_on_dev": bool(data.dev)}
            notes = [Note("chosen_on_dev" if data.dev else "by_default", {"setting": str(model.setting)})]
        said = model.predict([e.text for e in data.rows], self._candidates(data.rows))
        notes.insert(0, Note("learned_from", {"rows": detail["train_rows"]}))
        return Rung(name, said, seconds=time.monotonic() - start, detail=detail, notes=tuple(notes))

    def model(self, name: str, most: int | None) -> Rung:
        start = time.monotonic()
        settings = self.settings
        rows = sample_rows([str(e.label) for e in self.data.rows], most, self.seed)
        examples = [self.data.rows[i] for i in rows]
        detail: dict[str, Any] = {}
        notes: tuple[Note, ...] = ()
        with untuned(self.predictor) as plain:
            if name == "few_shot":
                plain, count = with_examples(
                    plain,
                    self.data.train,
                    a_label=settings.few_shot,
                    most_tokens=settings.few_shot_tokens,
                    seed=self.seed,
                )
                detail = {"examples": count, "a_label": settings.few_shot, "seed": self.seed}
                notes = (Note("examples", {"count": count, "a_label": settings.few_shot, "seed": self.seed}),)
            said = plain.predict(examples, progress=self.progress)
        whole = len(rows) == len(self.data.rows)
        return Rung(name, said, None if whole else tuple(rows), time.monotonic() - start, detail, notes)

    def _candidates(self, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        return [self.predictor.encoder.candidates_of(example)[0] for example in examples]


def sample_rows(labels: Sequence[str], most: int | None, seed: int) -> list[int]:
    """Indices of at most so many rows, each label with its share; all of them if there are no more. In row order."""
    if most is None or len(labels) <= most:
        return list(range(len(labels)))
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    order = sorted(range(len(labels)), key=lambda i: (labels[i], generator.random()))
    # every so many rows of the sorted list: a systematic sample, which keeps the shares
    step = len(order) / most
    start = generator.random() * step
    return sorted(order[min(len(order) - 1, int(start + k * step))] for k in range(most))
