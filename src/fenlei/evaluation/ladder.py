"""The baseline ladder: what each step up from the simplest classifier brings, and how sure that is.

Nothing is predicted here; see :mod:`fenlei.inference.ladder` for who answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fenlei.evaluation.metrics import intervals, label_metrics
from fenlei.evaluation.notes import Note, note_fields
from fenlei.evaluation.significance import LEVEL, SAMPLES, SEED, compare
from fenlei.modeling.prediction import Prediction

TITLES = {
    "majority": "most frequent class",
    "tfidf": "TF-IDF + linear SVM",
    "zero_shot": "model, zero-shot",
    "few_shot": "model, few-shot",
    "tuned": "model, tuned",
}
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


@dataclass(frozen=True)
class Rung:
    """One classifier's answers.

    Attributes:
        name: a key of :data:`TITLES`.
        predictions: one for each row that it was asked.
        rows: indices of these rows; None for all.
        seconds: wall time, fitting included.
        detail: how it was set up.
        notes: the same in words.
    """

    name: str
    predictions: Sequence[Prediction]
    rows: tuple[int, ...] | None = None
    seconds: float = 0.0
    detail: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    def said(self, rows: Sequence[int]) -> list[str]:
        """The labels of some of its rows."""
        place = {row: i for i, row in enumerate(self.rows)} if self.rows is not None else None
        return [self.predictions[place[row] if place else row].label for row in rows]


def build_ladder(
    gold: Sequence[str],
    rungs: Sequence[Rung],
    *,
    part: str,
    left_out: Mapping[str, Note] | None = None,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """Figures of all rungs, and a paired test between each and the next.

    Args:
        gold: the right label of each row, ``(N,)``.
        rungs: from the simplest up, one or more.
        part: which rows these are: ``test``, ``dev``, or a file.
        left_out: rungs that were not measured, and why; they come last, without figures.
        samples: bootstrap samples.

    Returns:
        ``part``, ``n``, ``level``, ``samples``, ``seed``; ``rungs``: for each ``key``, ``title``, ``rows``,
        ``accuracy``, ``accuracy_interval`` (Wilson), ``macro_f1``, ``macro_f1_interval`` (bootstrap), ``seconds``,
        ``note`` (how it was set up, or why it was not measured), ``notes`` (the same as keys and values, see
        :mod:`fenlei.evaluation.notes`), ``detail``; ``comparisons``: for each rung and the
        next, and for TF-IDF and the tuned model, one of accuracy (exact McNemar test) and one of macro-F1 (paired
        bootstrap), on the rows that both answered: ``first``, ``second``, ``metric``, ``rows``, ``difference``
        (second minus first), ``interval``, ``p_value`` (see :func:`fenlei.evaluation.significance.compare`);
        ``verdict``: whether the tuned model is worth its cost, in a sentence, or None if there is nothing to compare.
        An interval is None where all bootstrap samples are the same.
    """
    found: list[dict[str, Any]] = []
    for rung in rungs:
        rows = range(len(gold)) if rung.rows is None else rung.rows
        own = [gold[row] for row in rows]
        figures = label_metrics(own, rung.said(rows), ())
        sure = intervals(own, rung.predictions, samples=samples)
        found.append(
            {
                "key": rung.name,
                "title": TITLES[rung.name],
                "rows": len(own),
                "accuracy": figures["accuracy"],
                "accuracy_interval": sure["accuracy"],
                "macro_f1": figures["macro_f1"],
                "macro_f1_interval": sure["macro_f1"],
                "seconds": rung.seconds,
                **note_fields(rung.notes),
                "detail": dict(rung.detail),
            }
        )
    ladder: dict[str, Any] = {"part": part, "n": len(gold), "level": LEVEL, "samples": samples, "seed": SEED}
    comparisons = _comparisons(gold, rungs, samples)
    missing = [
        {"key": key, "title": TITLES[key], "accuracy": None, **note_fields([why])}
        for key, why in (left_out or {}).items()
    ]
    return {
        **ladder,
        "rungs": [*found, *missing],
        "comparisons": comparisons,
        "verdict": verdict(found, comparisons),
    }


def ladder_lines(ladder: Mapping[str, Any]) -> list[str]:
    """A ladder in words: a line a rung, then the verdict.

    Args:
        ladder: of :func:`build_ladder`.
    """
    lines = []
    for rung in ladder["rungs"]:
        if rung["accuracy"] is None:
            lines.append(f"{rung['title']}: not measured: {rung['note']}")
            continue
        figures = [
            f"{words} {rung[key]:.3f}{_within(rung[f'{key}_interval'], '.3f')}" for key, words in METRICS.items()
        ]
        lines.append(f"{rung['title']}: {', '.join(figures)}, {rung['rows']} rows")
    return [*lines, *([ladder["verdict"]] if ladder["verdict"] else [])]


def _comparisons(gold: Sequence[str], rungs: Sequence[Rung], samples: int) -> list[dict[str, Any]]:
    pairs = list(pairwise(rungs))
    named = {rung.name: rung for rung in rungs}
    whole = (named.get("tfidf"), named.get("tuned"))
    if whole[0] is not None and whole[1] is not None and whole not in pairs:
        pairs.append((whole[0], whole[1]))
    comparisons = []
    for first, second in pairs:
        asked = [set(r.rows) for r in (first, second) if r.rows is not None]
        rows = sorted(set.intersection(*asked)) if asked else list(range(len(gold)))
        if not rows:
            continue
        right = [gold[row] for row in rows]
        figures = compare(right, first.said(rows), second.said(rows), samples=samples)
        comparisons += [
            {
                "first": first.name,
                "second": second.name,
                "metric": metric,
                "rows": len(rows),
                "difference": figures[f"{metric}_difference"],
                "interval": (ends := figures[f"{metric}_interval"]) and list(ends),
                "p_value": figures[f"{metric}_p"],
            }
            for metric in METRICS
        ]
    return comparisons


def outcome(comparisons: Sequence[Mapping[str, Any]]) -> str | None:
    """How the tuned model compares with TF-IDF.

    A figure differs if its p-value is below 0.05: of the exact McNemar test for accuracy, of the paired bootstrap for
    macro-F1, which has none where too few rows differ.

    Args:
        comparisons: of a ladder.

    Returns:
        ``better``, ``worse``, ``mixed`` (one figure is better, the other one worse), ``same`` (none differs) or None
        where nothing was tested.
    """
    pair = [c for c in comparisons if (c["first"], c["second"]) == ("tfidf", "tuned") and c["p_value"] is not None]
    if not pair:
        return None
    sure = [c["difference"] for c in pair if c["p_value"] < 1 - LEVEL]
    above, below = any(d > 0 for d in sure), any(d < 0 for d in sure)
    return "mixed" if above and below else "better" if above else "worse" if below else "same"


def verdict(rungs: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> str | None:
    """Whether the tuned model beats TF-IDF, in one plain sentence; see :func:`outcome`.

    Args:
        rungs: of a ladder.
        comparisons: of the same ladder.
    """
    found = outcome(comparisons)
    if found is None:
        return None
    pairs = {c["metric"]: c for c in comparisons if (c["first"], c["second"]) == ("tfidf", "tuned")}
    by_key = {rung["key"]: rung for rung in rungs}
    simple, tuned, rows = by_key["tfidf"], by_key["tuned"], pairs["accuracy"]["rows"]
    figures = "; ".join(
        f"{words} {simple[key]:.3f} against {tuned[key]:.3f}, difference {pairs[key]['difference']:+.3f}"
        f"{_within(pairs[key]['interval'], '+.3f', f'{LEVEL:.0%} interval ')}"
        for key, words in METRICS.items()
    )
    if found == "better":
        return f"The tuned model is better than TF-IDF with a linear model on these {rows} rows: {figures}."
    if found == "worse":
        return (
            f"TF-IDF with a linear model is better than the tuned model on these {rows} rows: {figures}. "
            "Use it, or give the model more rows or epochs."
        )
    if found == "mixed":
        return (
            f"The tuned model and TF-IDF with a linear model are each better in one figure on these {rows} rows: "
            f"{figures}. Accuracy counts rows, macro-F1 counts every class alike: choose by what matters to you."
        )
    return (
        f"TF-IDF with a linear model is as good as the tuned model, as far as these {rows} rows can tell: "
        f"{figures}. The model may not be worth its cost here."
    )


def _within(ends: Sequence[float] | None, form: str, before: str = "") -> str:
    return "" if ends is None else f" ({before}{ends[0]:{form}} to {ends[1]:{form}})"
