"""A report's data from the files of a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from fenlei.artifact import find_classifier, read_json
from fenlei.durable import aside
from fenlei.errors import ArtifactError
from fenlei.evaluation.report.data import Comparison, Cost, LabelIssue, ReportData, Row, Rung

_IN_A_RUN = ("classifier", aside(Path("classifier")).name)
_Part = TypeVar("_Part", Rung, Comparison, Cost, LabelIssue)


def read_run(run: str | Path) -> ReportData:
    """What a finished run left: the test set where it has one, else the dev set.

    Read are ``metrics.jsonl``, ``config.yaml``, ``classifier/manifest.json``, ``predictions/<part>.jsonl`` and, below
    ``report/``, ``<part>.json``, ``cost.json``, ``ladder.json`` (of :func:`fenlei.evaluation.ladder.build_ladder`) and
    ``label_errors.json``. All but the classifier may be missing.

    Args:
        run: the run folder.

    Raises:
        ArtifactError: no finished run, or a file that is there is damaged.
    """
    folder = Path(run)
    report = folder / "report"
    part = next((name for name in ("test", "dev") if (report / f"{name}.json").is_file()), "none")
    ladder = _optional(report / "ladder.json") or {}
    # of other rows its tuned rung would contradict the headline
    rungs, comparisons = parse_ladder(ladder if ladder.get("part", part) == part else {})
    cost = _optional(report / "cost.json")
    issues = _optional(report / "label_errors.json")
    metrics = _optional(report / f"{part}.json")
    predictions = folder / "predictions" / f"{part}.jsonl"
    return ReportData(
        title=folder.resolve().name,
        part=part,
        metrics=metrics,
        rows=list(read_rows(predictions)),
        dev=_optional(report / "dev.json") if part == "test" else None,
        rungs=rungs,
        comparisons=comparisons,
        label_issues=None if issues is None else [_make(LabelIssue, row) for row in issues.get("rows", [])],
        cost=None if cost is None else _make(Cost, cost).at_speed_of(metrics),
        predictions=f"../predictions/{part}.jsonl" if predictions.is_file() else "",
        **about(folder),
    )


def about(run: str | Path) -> dict[str, Any]:
    """What a run or classifier folder says of itself: arguments of :class:`ReportData`.

    Args:
        run: the folder.

    Raises:
        ArtifactError: it is neither.
    """
    folder = Path(run)
    classifier = find_classifier(folder)
    manifest, labels = read_json(classifier / "manifest.json"), read_json(classifier / "labels.json")
    # beside a classifier that was copied somewhere there may be anybody's files
    home = classifier.parent if classifier.name in _IN_A_RUN else classifier
    return {
        "labels": label_names(labels),
        "curve": list(_lines(home / "metrics.jsonl")),
        "config": _config(home / "config.yaml"),
        "base_model": manifest.get("base_model"),
        "versions": manifest.get("libraries", {}),
        "created": str(manifest.get("created", "")),
    }


def label_names(content: Mapping[str, Any]) -> list[str]:
    """The labels of a labels.json."""
    return [str(name) for name in content["names"]]


def parse_ladder(content: Mapping[str, Any]) -> tuple[list[Rung], list[Comparison]]:
    """The baseline ladder from :func:`fenlei.evaluation.ladder.build_ladder`; nothing of an empty one."""
    whole = content.get("n")
    rungs = [
        _make(Rung, {**rung, "rows": rung.get("rows") if rung.get("rows") != whole else None})
        for rung in content.get("rungs", [])
    ]
    comparisons = [_make(Comparison, c) for c in content.get("comparisons", [])]
    return rungs, comparisons


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a ``predictions/<part>.jsonl``; none where the file is missing."""
    for line in _lines(path):
        yield Row(
            id=str(line["id"]),
            text=str(line["text"]),
            label=str(line["input_label"]),
            predicted=str(line["label"]),
            probabilities=line["probabilities"],
            abstained=bool(line["abstained"]),
            truncated=bool(line["truncated"]),
        )


def _make(kind: type[_Part], values: Mapping[str, Any]) -> _Part:
    """A part from its file; what a later version added is left out, lists become tuples."""
    known = {f.name for f in fields(kind)}
    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
    return kind(**found)


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    import yaml

    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ArtifactError(f"{path}:{number}: cannot be read as JSON: {error}") from None
