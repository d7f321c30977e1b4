"""A development set split off the training rows."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fenlei.data.example import Example
from fenlei.errors import DataError


def stratified_split(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Splits rows so that each class keeps its share on both sides; the same seed gives the same split.

    A class of two rows or more has at least one on each side, a class of one row stays in train.
    (scikit-learn's stratified splitters refuse classes of one row and may leave a small class out of the
    smaller side.) Both sides keep the order of the rows.

    Args:
        examples: labelled rows.
        fraction: share of each class that goes to dev, 0 <= fraction < 1; 0 gives an empty dev set.
        seed: seed of the choice.

    Returns:
        ``(train, dev)``.

    Raises:
        DataError: a row has no label, or the fraction is out of range.
    """
    if not 0.0 <= fraction < 1.0:
        raise DataError(f"data.dev_fraction: expected 0 <= fraction < 1, found {fraction}")
    if fraction == 0.0:
        return list(examples), []
    rows: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if example.label is None:
            raise DataError(f"{example.source or f'row {index + 1}'}: cannot split rows without a label")
        rows.setdefault(example.label, []).append(index)
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    chosen: set[int] = set()
    for label in sorted(rows):
        indices = rows[label]
        if len(indices) < 2:
            continue
        size = min(max(1, round(fraction * len(indices))), len(indices) - 1)
        chosen.update(generator.sample(indices, size))
    train = [example for index, example in enumerate(examples) if index not in chosen]
    dev = [example for index, example in enumerate(examples) if index in chosen]
    return train, dev
