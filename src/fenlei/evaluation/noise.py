"""Probable label errors: rows whose given label a model that has not seen them finds hard to believe.

Ranking and selection are confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating
Uncertainty in Dataset Labels") by the package cleanlab. All of it stands on out-of-sample probabilities: a model that
was trained on a wrong label has learned to believe it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fenlei.errors import ConfigError, DataError, MissingDependency
from fenlei.evaluation.baselines import TfidfBaseline
from fenlei.modeling.prediction import Prediction, recalibrate

if TYPE_CHECKING:
    import numpy as np

FOLDS = 5
SEED = 42


@dataclass(frozen=True)
class LabelIssue:
    """One row, as it stands in the ranking.

    Attributes:
        row: index of the row.
        given: the label in the data.
        suggested: the label that the model finds most probable.
        probability: of the given label.
        suggested_probability: of the suggested one.
        score: label quality, 0 (surely wrong) to 1; see :func:`rank_label_errors`.
        probable: whether confident learning counts the row among the errors.
    """

    row: int
    given: str
    suggested: str
    probability: float
    suggested_probability: float
    score: float
    probable: bool


def rank_label_errors(given: Sequence[str], predictions: Sequence[Prediction]) -> list[LabelIssue]:
    """All rows, the most probable label errors first.

    The score is the self-confidence, p(given): on both data sets measured it ranks planted errors better than the
    normalised margin and the entropy do (docs/evaluation.md). A row is probably wrong if
    another label's probability is above that label's own threshold, the mean of p(j) over the rows labelled j, and
    higher than all others that are (confident learning, "off-diagonals of the confident joint"). Rows that the model
    would label as given never count.

    Args:
        given: the labels in the data, ``(N,)``.
        predictions: out-of-sample predictions for the same rows. A label that was no candidate of a row has
            probability 0 there.

    Raises:
        ValueError: no rows, or lengths that differ.
        MissingDependency: cleanlab is not installed.
    """
    import numpy as np

    if not given or len(given) != len(predictions):
        raise ValueError(f"{len(given)} labels for {len(predictions)} predictions")
    index: dict[str, int] = {}
    for name in (*given, *(name for p in predictions for name in p.probabilities)):
        index.setdefault(name, len(index))
    names = list(index)
    labels = np.array([index[name] for name in given])
    table = np.zeros((len(given), len(names)))
    for row, prediction in enumerate(predictions):
        for name, p in prediction.probabilities.items():
            table[row, index[name]] = p
    score, wrong = _confident_learning(labels, table)
    suggested = table.argmax(axis=1)
    own = table[np.arange(len(labels)), labels]
    issues = [
        LabelIssue(
            row=row,
            given=given[row],
            suggested=names[suggested[row]],
            probability=float(own[row]),
            suggested_probability=float(table[row, suggested[row]]),
            score=float(score[row]),
            probable=bool(wrong[row] and suggested[row] != labels[row]),
        )
        for row in np.argsort(score, kind="stable").tolist()
    ]
    return issues


def _confident_learning(labels: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quality score and whether a row is probably wrong, ``(N,)`` each."""
    import numpy as np

    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise MissingDependency("this needs the package 'cleanlab': pip install 'cleanlab>=2.9'") from None
    if table.shape[1] < 2:
        return np.ones(len(labels)), np.zeros(len(labels), dtype=bool)
    score = get_label_quality_scores(labels, table, method="self_confidence")
    wrong = find_label_issues(labels, table, filter_by="confident_learning", n_jobs=1, min_examples_per_class=0)
    return np.asarray(score), np.asarray(wrong, dtype=bool)


def out_of_fold(
    texts: Sequence[str],
    labels: Sequence[str],
    candidates: Sequence[tuple[str, ...]],
    *,
    folds: int = FOLDS,
    seed: int = SEED,
) -> list[Prediction]:
    """TF-IDF's predictions for rows that it was not trained on, by cross-validation.

    The decision values of all folds are made probabilities by one temperature (see
    :mod:`fenlei.evaluation.calibration`).

    Args:
        texts: ``(N,)``.
        labels: the given labels.
        candidates: each row's candidates.
        folds: number of parts; each is predicted by a model trained on the others, classes spread evenly.
        seed: seed of the parts.

    Returns:
        One prediction a row.

    Raises:
        ConfigError: fewer than two folds, or more than rows.
        DataError: fewer than two labels with two rows each: nothing can be learned and held out.
    """
    from fenlei.config_parts import CalibrationConfig
    from fenlei.evaluation.calibration import fit_calibration

    if not 2 <= folds <= max(2, len(texts)):
        raise ConfigError(f"--folds {folds}: expected 2 to the number of rows, {len(texts)}")
    found: dict[int, Prediction] = {}
    for held in _parts(labels, folds, seed):
        out = set(held)
        kept = [i for i in range(len(texts)) if i not in out]
        own = [labels[i] for i in kept]
        if len(set(own)) < 2:
            raise DataError("label errors can be found only where two labels or more have two rows or more")
        model = TfidfBaseline(seed=seed).fit([texts[i] for i in kept], own)
        said = model.predict([texts[i] for i in held], [candidates[i] for i in held])
        found.update(zip(held, said, strict=True))
    ordered = [found[i] for i in range(len(texts))]
    fitted = fit_calibration(list(labels), ordered, CalibrationConfig())
    return recalibrate(ordered, fitted.calibration)


def _parts(labels: Sequence[str], folds: int, seed: int) -> list[list[int]]:
    """Indices of each fold; a class goes round the folds, so small ones are spread too (scikit-learn only warns)."""
    import random

    generator = random.Random(seed)  # noqa: S311 - not for secrets
    order = sorted(range(len(labels)), key=lambda i: (labels[i], generator.random()))
    return [part for k in range(folds) if (part := sorted(order[k::folds]))]


def ranking_quality(order: Sequence[int], planted: set[int], shares: Sequence[float] = (1.0, 2.0)) -> dict[str, Any]:
    """How well a ranking finds errors that are known.

    Args:
        order: rows, the most suspicious first.
        planted: the rows whose labels are wrong; one or more.
        shares: where to look, in numbers of planted errors.

    Returns:
        ``planted``; ``average_precision`` (scikit-learn's); for each share ``precision@1x``, ``recall@1x`` and so on.
    """
    import numpy as np
    from sklearn.metrics import average_precision_score

    hit = np.array([row in planted for row in order])
    found: dict[str, Any] = {
        "planted": len(planted),
        "average_precision": float(average_precision_score(hit, -np.arange(len(hit)))),
    }
    for share in shares:
        top = hit[: round(share * len(planted))]
        found[f"precision@{share:g}x"] = float(top.mean())
        found[f"recall@{share:g}x"] = float(top.sum() / len(planted))
    return found


def plant_errors(labels: Sequence[str], share: float, seed: int) -> tuple[list[str], set[int]]:
    """Wrong labels for a share of the rows, drawn evenly among the other labels.

    Args:
        labels: right labels of two kinds or more.
        share: share of the rows, 0 to 1.
        seed: seed.

    Returns:
        The labels with errors, and the rows that have one.
    """
    import random

    generator = random.Random(seed)  # noqa: S311 - not for secrets
    names = sorted(set(labels))
    rows = generator.sample(range(len(labels)), round(share * len(labels)))
    noisy = list(labels)
    for row in rows:
        noisy[row] = generator.choice([name for name in names if name != labels[row]])
    return noisy, set(rows)
