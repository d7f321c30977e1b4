"""The figures of a report, derived from its data: what the page and report.json both show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fenlei.evaluation.ladder import outcome
from fenlei.evaluation.report.data import RUNGS, Comparison, Cost, ReportData, Row, Rung
from fenlei.evaluation.significance import wilson_interval
from fenlei.tracking.record import plain

FORMAT = 1
_HEADLINE = ("accuracy", "macro_f1", "weighted_f1", "log_loss", "brier", "ece", "aurc", "abstain_rate")
_LENGTH_BINS = 8
_LEAST_IN_BIN = 5
_MOST_POINTS = 1500


def report_json(data: ReportData) -> dict[str, Any]:
    """All figures of a report, without the texts.

    Args:
        data: what the report shows.

    Returns:
        ``title``, ``part``, ``created``, ``labels``, ``headline`` (figure -> value and 95 % interval), ``ladder``,
        ``curve``, ``metrics``, ``dev``, ``length``, ``truncation``, ``cost``, ``label_issues`` (without texts),
        ``config``, ``base_model``, ``versions``. Values are what JSON can hold; NaN is the text ``"NaN"``.
    """
    return plain(
        {
            "format": FORMAT,
            "title": data.title,
            "part": data.part,
            "created": data.created,
            "n": data.metrics["n"] if data.metrics else 0,
            "labels": list(data.labels),
            "headline": headline(data),
            "ladder": ladder(data),
            "curve": curve(data.curve),
            "metrics": data.metrics,
            "dev": {k: data.dev[k] for k in ("n", *_HEADLINE) if k in data.dev} if data.dev else None,
            "length": length_bins(data.rows),
            "truncation": truncation_effect(data.rows),
            "cost": cost(data.cost) if data.cost else None,
            "label_issues": None
            if data.label_issues is None
            else [{k: v for k, v in asdict(issue).items() if k != "text"} for issue in data.label_issues],
            "config": data.config,
            "base_model": data.base_model,
            "versions": data.versions,
        }
    )


def cost(found: Cost) -> dict[str, Any]:
    """What it took, and what a million texts cost."""
    return {**asdict(found), "price_per_million": found.price_per_million, "price_note": found.price_note}


def headline(data: ReportData) -> dict[str, Any]:
    """The totals, each with its 95 % interval where there is one."""
    if data.metrics is None:
        return {}
    sure = data.metrics.get("intervals", {})
    return {
        name: {"value": data.metrics[name], "interval": sure.get(name)} for name in _HEADLINE if name in data.metrics
    }


def share(right: int, rows: int) -> dict[str, Any]:
    """A share of right answers with its 95 % interval (Wilson's, as that of the headline)."""
    if not rows:
        return {"n": 0, "right": 0, "accuracy": None, "interval": None}
    return {"n": rows, "right": right, "accuracy": right / rows, "interval": list(wilson_interval(right, rows))}


def ladder(data: ReportData) -> dict[str, Any]:
    """Every rung, run or not, and whether the tuned model is worth it."""
    given = {rung.key: rung for rung in data.rungs}
    if "tuned" not in given and data.metrics is not None:
        figures = headline(data)
        values = [figures[name][part] for name in ("accuracy", "macro_f1") for part in ("value", "interval")]
        given["tuned"] = Rung("tuned", *values)
    extra = [key for key in given if key not in RUNGS]
    rungs = [asdict(given.get(key, Rung(key))) for key in (*RUNGS, *extra)]
    return {
        "rungs": rungs,
        "comparisons": [asdict(c) for c in data.comparisons],
        "verdict": verdict(given, data.comparisons),
    }


def verdict(rungs: Mapping[str, Rung], comparisons: Sequence[Comparison]) -> str:
    """Whether the tuned model beats TF-IDF with a linear model.

    Returns:
        What :func:`fenlei.evaluation.ladder.outcome` says of a paired test. Without any, ``better``, ``worse``,
        ``unclear`` (the intervals overlap) or ``unknown`` (one of them was not run).
    """
    tested = outcome([asdict(c) for c in comparisons])
    if tested is not None:
        return tested
    simple, tuned = rungs.get("tfidf"), rungs.get("tuned")
    if simple is None or tuned is None or simple.accuracy is None or tuned.accuracy is None:
        return "unknown"
    if simple.accuracy_interval is None or tuned.accuracy_interval is None:
        return "unclear"
    if tuned.accuracy_interval[0] > simple.accuracy_interval[1]:
        return "better"
    return "worse" if tuned.accuracy_interval[1] < simple.accuracy_interval[0] else "unclear"


def curve(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The learning curves: ``train`` and ``dev`` points by step, at most 1,500 of each."""
    wanted = {
        "train": ("step", "loss", "learning_rate", "grad_norm"),
        "dev": ("step", "accuracy", "macro_f1", "log_loss"),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for event, keys in wanted.items():
        points = [
            {k: line[k] for k in keys if isinstance(line.get(k), (int, float))}
            for line in lines
            if line.get("event") == event and not line.get("final")
        ]
        stride = -(-len(points) // _MOST_POINTS) or 1
        kept = points[::stride]
        found[event] = kept if not points or kept[-1] is points[-1] else [*kept, points[-1]]
    return found


def length_bins(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Accuracy by the length of the text: up to eight groups of about as many rows.

    Returns:
        For each group ``low`` and ``high`` (characters, both included), ``n``, ``right``, ``accuracy``, ``interval``.
    """
    lengths = sorted((len(row.text), row.label == row.predicted) for row in rows)
    bins = max(1, min(_LENGTH_BINS, len(lengths) // _LEAST_IN_BIN))
    found, start = [], 0
    for b in range(1, bins + 1):
        end = max(start, round(b * len(lengths) / bins))
        # rows of equal length stay together
        while 0 < end < len(lengths) and lengths[end][0] == lengths[end - 1][0]:
            end += 1
        part = lengths[start:end]
        if part:
            right = sum(hit for _, hit in part)
            found.append({"low": part[0][0], "high": part[-1][0], **share(right, len(part))})
        start = end
    return found


def truncation_effect(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Accuracy of the rows that were shortened and of those that were read whole."""
    if not rows:
        return None
    found = {}
    for name, flag in (("whole", False), ("shortened", True)):
        part = [row for row in rows if row.truncated is flag]
        found[name] = share(sum(row.label == row.predicted for row in part), len(part))
    return found
