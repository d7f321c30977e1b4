"""How sure a figure is, and whether two classifiers differ: intervals, McNemar's test, a paired bootstrap.

A resample of rows changes nothing but how often each combination of (right label, predicted label) occurs, so counts
are drawn instead of rows: a bootstrap sample of the counts is a multinomial one, exactly. A thousand samples of 100,000
rows then cost as much as a thousand samples of 100.

Resampling is stratified by the right label: every sample has as many rows of each class as the data. The class sizes of
a test set are a choice of whoever made it, and a small class must not be missing from a sample, where its F1 would be
that of nothing. The interval thus says what other texts of the same classes would do to a figure, not other shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SAMPLES = 1000
LEVEL = 0.95
SEED = 42
# With fewer rows that only one of two classifiers gets right, bootstrap samples are too much alike: of five such rows,
# all for the same one, hardly a sample has none; yet five coins fall alike once in 16 times.
FEWEST_DISCORDANT = 10
# above this many draws the mean of a column is as good as normal
_MOST_DRAWS = 20_000_000


def wilson_interval(right: int, rows: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share, e.g. accuracy (Wilson 1927; Brown, Cai and DasGupta 2001 recommend it).

    Args:
        right: number of successes.
        rows: number of trials, one or more.
        level: coverage, e.g. 0.95.

    Returns:
        ``(low, high)`` in [0, 1].
    """
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    p, n = right / rows, float(rows)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test (McNemar 1947; binomial form).

    Args:
        only_first: rows that only the first classifier got right.
        only_second: rows that only the second one got right.

    Returns:
        The probability, if both were equally good, of a split at least as uneven; 1 if they never differ.
    """
    from scipy.stats import binomtest

    total = only_first + only_second
    return float(binomtest(only_first, total, 0.5).pvalue) if total else 1.0


def confusion_counts(gold: np.ndarray, *said: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each combination of right label and predicted labels occurs.

    Args:
        gold: index of the right label, ``(N,)``.
        *said: index of the predicted label, ``(N,)``, one array for each classifier.
        classes: number of labels K.

    Returns:
        The combinations that occur, ``(M, 1 + len(said))``, and their counts, ``(M,)``.
    """
    import numpy as np

    key: np.ndarray = gold.astype(np.int64)
    for column in said:
        key = key * classes + column
    found, counts = np.unique(key, return_counts=True)
    columns = []
    for _ in said:
        columns.append(found % classes)
        found = found // classes
    return np.stack([found, *reversed(columns)], axis=1), counts


def resample_counts(cells: np.ndarray, counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Bootstrap samples of the counts, stratified by the right label.

    Args:
        cells: combinations, ``(M, C)``; the first column is the right label.
        counts: how often each occurs, ``(M,)``.
        samples: number of samples B.
        seed: seed.

    Returns:
        Counts ``(B, M)``; those of a right label have the same sum in every sample.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    drawn: np.ndarray = np.empty((samples, len(counts)), dtype=np.int64)
    for label in np.unique(cells[:, 0]):
        own = np.flatnonzero(cells[:, 0] == label)
        total = int(counts[own].sum())
        drawn[:, own] = generator.multinomial(total, counts[own] / total, size=samples)
    return drawn


def figures_of_counts(gold: np.ndarray, said: np.ndarray, counts: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Accuracy and its relatives from counts, for many samples at once; definitions as in scikit-learn.

    Args:
        gold: index of the right label of each combination, ``(M,)``.
        said: index of the predicted label, ``(M,)``.
        counts: ``(B, M)``.
        classes: number of labels K.

    Returns:
        ``accuracy``, ``macro_f1`` and ``weighted_f1`` (classes that occur in the right or predicted labels),
        ``balanced_accuracy`` (classes that occur in the right labels) and ``mcc`` (0 where it is undefined), each
        ``(B,)``.
    """
    import numpy as np

    samples = len(counts)
    support, named, hits = (np.zeros((classes, samples)) for _ in range(3))
    by_row = counts.T.astype(float)
    np.add.at(support, gold, by_row)
    np.add.at(named, said, by_row)
    same = gold == said
    np.add.at(hits, gold[same], by_row[same])
    total = support.sum(axis=0)
    either = support + named
    f1 = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    right = hits.sum(axis=0)
    # Gorodkin 2004, in the form of scikit-learn's matthews_corrcoef
    covariance = right * total - (support * named).sum(axis=0)
    spread = np.sqrt((total**2 - (named**2).sum(axis=0)) * (total**2 - (support**2).sum(axis=0)))
    return {
        "accuracy": right / total,
        "macro_f1": f1.sum(axis=0) / (either > 0).sum(axis=0),
        "weighted_f1": (f1 * support).sum(axis=0) / total,
        "balanced_accuracy": recall.sum(axis=0) / (support > 0).sum(axis=0),
        "mcc": np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0),
    }


def bootstrap_intervals(
    gold: np.ndarray,
    said: np.ndarray,
    classes: int,
    *,
    samples: int = SAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap intervals (Efron 1979) of the figures of :func:`figures_of_counts`.

    None where all samples are the same, e.g. where every row is right: this says that the bootstrap does not work
    there, not that the figure is certain.

    Args:
        gold: index of the right label, ``(N,)``.
        said: index of the predicted label, ``(N,)``.
        classes: number of labels.
        samples: number of bootstrap samples.
        level: coverage.
        seed: seed; the same one gives the same intervals.
    """
    cells, counts = confusion_counts(gold, said, classes=classes)
    drawn = resample_counts(cells, counts, samples, seed)
    figures = figures_of_counts(cells[:, 0], cells[:, 1], drawn, classes)
    return {name: _ends(values, level) for name, values in figures.items()}


def mean_interval(
    values: np.ndarray, *, samples: int = SAMPLES, level: float = LEVEL, seed: int = SEED
) -> tuple[float, float] | None:
    """Interval of a mean over rows, e.g. of log loss: percentile bootstrap, and the normal one for very many rows.

    None where all rows have the same value.

    Args:
        values: one a row, ``(N,)``.
        samples: number of bootstrap samples.
        level: coverage.
        seed: seed.
    """
    import numpy as np
    from scipy.stats import norm

    rows = len(values)
    if values.min() == values.max():
        return None
    if rows * samples > _MOST_DRAWS:
        half = float(norm.ppf((1 + level) / 2)) * float(values.std()) / math.sqrt(rows)
        return float(values.mean()) - half, float(values.mean()) + half
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, rows, rows)].mean() for _ in range(samples)]
    return _ends(np.array(means), level)


def compare(
    gold: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    *,
    samples: int = SAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> dict[str, Any]:
    """Whether the second classifier is better than the first on the same rows.

    Args:
        gold: right labels, ``(N,)``.
        first: what the first classifier said.
        second: what the second one said.
        samples: number of bootstrap samples.
        level: coverage of the intervals.
        seed: seed.

    Returns:
        ``rows``; ``accuracy_difference`` and ``macro_f1_difference`` (second minus first) with ``..._interval``
        (paired bootstrap: both classifiers on the same resampled rows; None where all samples are the same);
        ``accuracy_p`` (McNemar, exact) with ``only_first_right`` and ``only_second_right``; ``macro_f1_p`` (two-sided,
        from the bootstrap; None where fewer than :data:`FEWEST_DISCORDANT` rows are right for only one of the two).
    """
    import numpy as np

    index: dict[str, int] = {}
    g, a, b = (np.array([index.setdefault(x, len(index)) for x in column]) for column in (gold, first, second))
    cells, counts = confusion_counts(g, a, b, classes=len(index))
    drawn = resample_counts(cells, counts, samples, seed)

    def both(column: int, table: np.ndarray) -> dict[str, np.ndarray]:
        return figures_of_counts(cells[:, 0], cells[:, column], table, len(index))

    seen, resampled = [both(i, counts[None]) for i in (1, 2)], [both(i, drawn) for i in (1, 2)]
    only_first, only_second = int(((a == g) & (b != g)).sum()), int(((a != g) & (b == g)).sum())
    found: dict[str, Any] = {
        "rows": len(g),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "accuracy_p": mcnemar_exact(only_first, only_second),
    }
    for name in ("accuracy", "macro_f1"):
        difference = resampled[1][name] - resampled[0][name]
        found[f"{name}_difference"] = float(seen[1][name][0] - seen[0][name][0])
        found[f"{name}_interval"] = _ends(difference, level)
    enough = only_first + only_second >= FEWEST_DISCORDANT
    found["macro_f1_p"] = bootstrap_p(difference) if enough else None
    return found


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value from bootstrap differences ``(B,)``: twice the smaller tail beyond 0, never below 2 / (B + 1).

    One is added to count and total (Davison and Hinkley 1997, equation 4.11): a finite number of samples proves no 0.
    """
    count = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (1 + count) / (1 + len(differences)))


def _ends(values: np.ndarray, level: float) -> tuple[float, float] | None:
    import numpy as np

    if np.ptp(values) < 1e-12:  # the same but for rounding
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
