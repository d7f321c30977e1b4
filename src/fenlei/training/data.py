"""The rows of a run: read, checked against each other, split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fenlei.config import RunConfig
from fenlei.data import Example, LabelSet, read_examples, stratified_split
from fenlei.errors import ConfigError, DataError

_FIRST_SHOWN = 5


@dataclass(frozen=True)
class TrainingData:
    """Rows by their use, and the label set.

    Attributes:
        train: rows to train on.
        dev: rows for choosing; may be empty.
        test: rows for reporting; empty when no test set was given.
        labels: the label set.
        rejected: number of bad rows left out, by part.
    """

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    labels: LabelSet
    rejected: dict[str, int] = field(default_factory=dict)


def read_training_data(config: RunConfig, run_dir: Path) -> TrainingData:
    """Reads what the configuration names; a dev set is split from train when none is given.

    Raises:
        ConfigError: no training data is named.
        DataError: bad rows, fewer than two labels, or labels in dev or test that train does not have.
    """
    if not config.data.train:
        raise ConfigError("no training data: give --train FILE (or data.train=FILE)")
    parts: dict[str, list[Example]] = {}
    rejected: dict[str, int] = {}
    for role, source in (("train", config.data.train), ("dev", config.data.dev), ("test", config.data.test)):
        if not source:
            parts[role] = []
            continue
        parts[role], rejected[role] = read_part(config, source, role, run_dir)
    return split_training_data(config, **parts, rejected=rejected)


def read_part(config: RunConfig, source: str | Path, role: str, run_dir: Path) -> tuple[list[Example], int]:
    """Reads one file, folder or data set; bad rows, if they may be skipped, go to the run folder.

    Args:
        config: the settings.
        source: where the rows are.
        role: ``train``, ``dev`` or ``test``.
        run_dir: gets ``rejected.jsonl`` (``rejected-dev.jsonl``, ``rejected-test.jsonl``).

    Returns:
        The rows, and how many were left out.
    """
    if config.data.on_bad_row == "skip":
        run_dir.mkdir(parents=True, exist_ok=True)
    name = "rejected.jsonl" if role == "train" else f"rejected-{role}.jsonl"
    result = read_examples(source, config.data, role=role, rejected_path=run_dir / name, offline=config.model.offline)
    return result.examples, len(result.rejected)


def split_training_data(
    config: RunConfig,
    train: Sequence[Example],
    dev: Sequence[Example] = (),
    test: Sequence[Example] = (),
    rejected: dict[str, int] | None = None,
) -> TrainingData:
    """Checks rows that were read or given, and splits off a dev set when there is none.

    Raises:
        DataError: as for :func:`read_training_data`.
    """
    if not train:
        raise DataError("the training data has no usable row")
    labels = LabelSet.from_examples(train, config.data)
    seen = Counter(labels.canonical(e.label) for e in train if e.label is not None)
    if len(seen) < 2:
        raise DataError(
            f"the training data has one label only ({next(iter(seen), None)!r}): a classifier needs two or more; "
            "is data.label_column right?"
        )
    for role, rows in (("dev", dev), ("test", test)):
        _require_known(rows, labels, role)
    fixed = [_canonical(e, labels) for e in train]
    kept, held = fixed, [_canonical(e, labels) for e in dev]
    if not held and config.data.dev_fraction > 0:
        kept, held = stratified_split(fixed, config.data.dev_fraction, config.train.seed)
    return TrainingData(kept, held, [_canonical(e, labels) for e in test], labels, dict(rejected or {}))


def rows_digest(examples: Sequence[Example]) -> str:
    """Number and hash of rows, as run.json holds them of those that were trained on."""
    digest = hashlib.sha256()
    for example in examples:
        row = [example.text, example.label, list(example.candidates or ())]
        digest.update(json.dumps(row, ensure_ascii=True).encode())
    return f"{len(examples)} rows, sha256 {digest.hexdigest()[:16]}"


def _canonical(example: Example, labels: LabelSet) -> Example:
    return replace(example, label=labels.canonical(example.label)) if example.label is not None else example


def _require_known(rows: Sequence[Example], labels: LabelSet, role: str) -> None:
    unknown: dict[str, list[str]] = {}
    for row in rows:
        if row.label is None:
            raise DataError(f"{row.source or 'a row'}: the {role} data needs a label in every row")
        for name in {row.label, *(row.candidates or ())} - {None}:
            try:
                labels.canonical(str(name))
            except DataError:
                unknown.setdefault(str(name), []).append(row.source)
    if unknown:
        listed = "; ".join(
            f"{name!r} in {len(where)} rows, first {where[0]}" for name, where in list(unknown.items())[:_FIRST_SHOWN]
        )
        raise DataError(
            f"the {role} data has labels that the training data does not have: {listed}. The labels are "
            f"{', '.join(labels.names)}. Map spellings with data.aliases, or list all labels in data.labels"
        )
