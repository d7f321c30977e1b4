"""Rows and curves in the small form that the page reads: columns instead of objects, long texts shortened."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fenlei.evaluation.report.data import LabelIssue, Row

MOST_ROWS = 20_000
# bytes as they stand in the page; with the chart library (0.2 MB) and the figures 10,000 rows stay under 8 MB
TEXT_BUDGET = 5_000_000
_ISSUE_BUDGET = 1_000_000
_LONGEST_ID = 120
_TOP = 5
_LIMITS = (20_000, 8000, 4000, 2000, 1200, 800, 600, 450, 350, 250, 180, 120, 80, 50, 30, 15, 8, 4)
# a wrong answer is read, a right one is seldom looked at
_WRONG_GETS = 6
_MOST_ISSUES = 500
_ISSUE_TEXT = 1000
_MOST_CURVES = 300


def compact_rows(rows: Sequence[Row], labels: Sequence[str], budget: int = TEXT_BUDGET) -> dict[str, Any]:
    """The rows for the error browser.

    Args:
        rows: all rows; of more than 20,000, all that fit, the wrong ones first.
        labels: the label set; a label outside it gets a number after its end.
        budget: bytes that their texts may take together, escaped as they are in the page.

    Returns:
        ``names`` (label of every number), ``total`` (rows there are), ``limit`` (characters that right ones were cut
        to, or None) and the columns ``id``, ``gold``, ``said``, ``flags`` (1: abstained, 2: truncated), ``length``
        (characters of the whole text), ``text`` and ``top``: number, probability x 10,000, number, ... of the five most
        probable labels and the right one.
    """
    shown = list(rows)
    if len(shown) > MOST_ROWS:
        wrong = [i for i, row in enumerate(rows) if row.label != row.predicted]
        right = [i for i, row in enumerate(rows) if row.label == row.predicted]
        room = max(0, MOST_ROWS - len(wrong))
        stride = -(-len(right) // room) if room else 0
        kept = sorted([*wrong[:MOST_ROWS], *(right[::stride] if stride else [])])
        shown = [rows[i] for i in kept]
    numbers = {label: i for i, label in enumerate(labels)}
    for row in shown:
        for name in (row.label, row.predicted, *row.probabilities):
            numbers.setdefault(name, len(numbers))
    limit = _limit(shown, budget)
    return {
        "names": list(numbers),
        "total": len(rows),
        "limit": limit,
        "id": [row.id[:_LONGEST_ID] for row in shown],
        "gold": [numbers[row.label] for row in shown],
        "said": [numbers[row.predicted] for row in shown],
        "flags": [int(row.abstained) + 2 * int(row.truncated) for row in shown],
        "length": [len(row.text) for row in shown],
        "text": [_cut(row, limit) for row in shown],
        "top": [_top(row, numbers) for row in shown],
    }


def compact_issues(issues: Sequence[LabelIssue]) -> list[dict[str, Any]]:
    """The probable label errors, the most probable first, at most 500."""
    ordered = sorted(issues, key=lambda issue: issue.score)[:_MOST_ISSUES]
    limit = _ISSUE_TEXT
    while limit > 1 and sum(bytes_in_page(issue.text[:limit]) for issue in ordered) > _ISSUE_BUDGET:
        limit //= 2
    return [
        {
            "id": issue.id[:_LONGEST_ID],
            "part": issue.part,
            "given": issue.given,
            "suggested": issue.suggested,
            "score": issue.score,
            "text": issue.text[:limit],
        }
        for issue in ordered
    ]


def compact_curves(metrics: Mapping[str, Any] | None, most: int = _MOST_CURVES) -> dict[str, Any] | None:
    """The precision-recall curves; of more than 300 classes, those with the most rows.

    Args:
        metrics: of :func:`fenlei.evaluation.evaluate_predictions`.
        most: most curves.

    Returns:
        ``average`` (mean average precision), ``classes`` (how many have rows) and ``curves``: for each, in the order of
        the labels, ``label``, ``ap``, ``rows`` and ``recall``, ``precision``, ``threshold`` of its points x 1,000. None
        without any.
    """
    found = {label: c for label, c in ((metrics or {}).get("precision_recall") or {}).items() if c is not None}
    if metrics is None or not found:
        return None
    rows = {label: int(metrics["per_class"][label]["support"]) for label in found}
    kept = set(sorted(found, key=lambda label: -rows[label])[:most])
    return {
        "average": metrics["average_precision"],
        "classes": len(found),
        "curves": [
            {
                "label": label,
                "ap": curve["average_precision"],
                "rows": rows[label],
                **{k: [round(1000 * v) for v in curve[k]] for k in ("recall", "precision", "threshold")},
            }
            for label, curve in found.items()
            if label in kept
        ],
    }


def _top(row: Row, numbers: dict[str, int]) -> list[int]:
    ordered = sorted(row.probabilities.items(), key=lambda item: -item[1])
    kept = ordered[:_TOP] + [item for item in ordered[_TOP:] if item[0] == row.label]
    return [number for name, p in kept for number in (numbers[name], round(p * 10_000))]


def compact_confusion(matrix: Sequence[Sequence[int]]) -> list[list[int]]:
    """The cells that are not 0: right label, predicted label, count. With many labels nearly all are 0."""
    return [[i, j, count] for i, row in enumerate(matrix) for j, count in enumerate(row) if count]


def bytes_in_page(text: str) -> int:
    """Bytes that a text takes in the page's data, where ``<``, ``>`` and ``&`` are six."""
    quoted = json.dumps(text, ensure_ascii=False)
    return len(quoted.encode("utf-8", "backslashreplace")) + 5 * sum(map(quoted.count, "<>&"))


def _limit(rows: Sequence[Row], budget: int) -> int | None:
    """Characters of a right row's text; None where all texts fit as they are."""
    if sum(bytes_in_page(row.text) for row in rows) <= budget:
        return None
    for limit in _LIMITS:
        if sum(bytes_in_page(_cut(row, limit)) for row in rows) <= budget:
            return limit
    return _LIMITS[-1]


def _cut(row: Row, limit: int | None) -> str:
    if limit is None:
        return row.text
    return row.text[: limit if row.label == row.predicted else limit * _WRONG_GETS]
