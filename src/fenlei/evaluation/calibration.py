"""Fitting a calibration and an abstention threshold on labelled dev rows. Test rows never come here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fenlei.config_parts import CalibrationConfig
from fenlei.evaluation.reliability import probability_metrics
from fenlei.evaluation.selective import LEAST_ANSWERED, Threshold, choose_threshold
from fenlei.modeling.calibration import ALWAYS_ABSTAIN, Calibration
from fenlei.modeling.prediction import Prediction, recalibrate

# a bias is fitted where each label is right in so many dev rows
LEAST_PER_LABEL = 10
TEMPERATURES = (0.05, 20.0)
# Few dev rows, or rows that are all right, say little or nothing against an ever smaller temperature: the likelihood
# alone would run to the bound and make the first wrong answer on new texts cost everything. So log T has a normal
# prior around 0 (the model's own probabilities) of standard deviation 1 (a factor of 2.7 either way is ordinary); it
# weighs about as much as one row and fades as rows come in. 100 dev rows, all right with p = 0.993 (a gap of 5 nats),
# give T = 0.66 with it and run towards the bound without; 20 such rows with p = 0.9997 leave T at 0.96, as little was
# learned from them. Leaving rows out one by one would not help: where all are right, each of them votes for the bound.
_TEMPERATURE_PRIOR = 1.0
# the same for each label's bias; tighter, as there is one for each label, and fewer rows of each
_BIAS_PRIOR = 0.5


@dataclass(frozen=True)
class FittedCalibration:
    """A calibration and how it came about.

    Attributes:
        calibration: what to use.
        notes: one line each, for the console.
        unmet: why the target could not be met; None where it was, or where there is none.
    """

    calibration: Calibration
    notes: tuple[str, ...]
    unmet: str | None = None


def fit_calibration(
    gold: Sequence[str], predictions: Sequence[Prediction], settings: CalibrationConfig
) -> FittedCalibration:
    """Fits temperature, bias and threshold on dev rows.

    With fewer than ``settings.min_rows`` usable rows, the calibration is the identity. A target that cannot be met
    gives a classifier that abstains from every row: no answer breaks no promise.

    Args:
        gold: the right label of each row.
        predictions: what the model says of the rows; only their scores are used.
        settings: what to fit.
    """
    rows = [(label, p) for label, p in zip(gold, predictions, strict=True) if label in p.scores]
    left_out = len(gold) - len(rows)
    notes = []
    if left_out:
        notes.append(f"{left_out} dev rows are left out of calibration: their label is none of their candidates")
    known, said = [label for label, _ in rows], [p for _, p in rows]
    if len(rows) < settings.min_rows:
        found = len(rows) or "no"
        notes.append(
            f"calibration: none: {found} dev rows, and calibration.min_rows={settings.min_rows} are needed; the "
            "model's own probabilities are used"
        )
        plain = Calibration(signal=settings.signal, threshold=settings.threshold)
        if (target := _target(settings)) is None:
            return FittedCalibration(plain, tuple(notes))
        unmet = f"{target} needs at least calibration.min_rows={settings.min_rows} dev rows; there are {found}"
        return _always(plain, notes, unmet)
    fitted, more = _fit_method(known, said, settings)
    notes += more
    calibration = replace(fitted, signal=settings.signal, threshold=settings.threshold)
    before = probability_metrics(known, recalibrate(said, Calibration()))
    calibrated = recalibrate(said, calibration)
    after = probability_metrics(known, calibrated)
    figures = ("log_loss", "brier", "ece")
    fit: dict[str, Any] = {
        "rows": len(rows),
        "before": {k: before[k] for k in figures},
        "after": {k: after[k] for k in figures},
    }
    notes.append(_describe(calibration, fit))
    if _target(settings) is None:
        return FittedCalibration(replace(calibration, fit=fit), tuple(notes))
    return _fit_threshold(known, calibrated, replace(calibration, fit=fit), settings, notes)


def _fit_method(
    gold: list[str], predictions: list[Prediction], settings: CalibrationConfig
) -> tuple[Calibration, list[str]]:
    if settings.method == "none":
        return Calibration(), []
    table = _Table.of(gold, predictions)
    temperature = _fit_temperature(table)
    if settings.method == "temperature":
        return Calibration(temperature, method="temperature"), []
    counts = Counter(gold)
    rare = [f"{name} {counts[name]}" for name in table.labels if counts[name] < LEAST_PER_LABEL]
    if rare:
        shown = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        return Calibration(temperature, method="temperature"), [
            f"calibration.method=bias needs {LEAST_PER_LABEL} dev rows of each label; there are: {shown}. Temperature "
            "alone is fitted"
        ]
    temperature, bias = _fit_bias(table, temperature)
    return Calibration(temperature, bias, method="bias"), []


@dataclass(frozen=True)
class _Table:
    """Dev rows as arrays; rows with fewer candidates than others are filled up.

    Attributes:
        gaps: score minus the right label's score, ``(N, C)``; 0 in the fill.
        used: what is no fill, ``(N, C)``.
        index: number of each candidate's label, ``(N, C)``; 0 in the fill.
        right: number of the right label, ``(N,)``.
        labels: the labels that are numbered.
    """

    gaps: np.ndarray
    used: np.ndarray
    index: np.ndarray
    right: np.ndarray
    labels: tuple[str, ...]

    @classmethod
    def of(cls, gold: list[str], predictions: list[Prediction]) -> _Table:
        number: dict[str, int] = {}
        for p in predictions:
            for name in p.scores:
                number.setdefault(name, len(number))
        shape = len(predictions), max(len(p.scores) for p in predictions)
        gaps = np.zeros(shape)
        used: np.ndarray = np.zeros(shape, dtype=bool)
        index: np.ndarray = np.zeros(shape, dtype=int)
        for i, (label, p) in enumerate(zip(gold, predictions, strict=True)):
            n = len(p.scores)
            gaps[i, :n] = np.array(list(p.scores.values())) - p.scores[label]
            used[i, :n] = True
            index[i, :n] = [number[name] for name in p.scores]
        return cls(gaps, used, index, np.array([number[label] for label in gold]), tuple(number))

    def loss(self, log_temperature: float, bias: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum over rows of -log p(right label), plus the priors; its gradient ``(1 + labels,)``, log T first."""
        scaled = self.gaps / math.exp(log_temperature)
        logits = np.where(self.used, scaled + bias[self.index] - bias[self.right][:, None], -np.inf)
        top = logits.max(axis=1)
        exp = np.exp(logits - top[:, None])
        total = exp.sum(axis=1)
        p = exp / total[:, None]
        value = (top + np.log(total)).sum()
        slope_t = -(p * scaled).sum()  # d(1 / T) / d(log T) = -1 / T
        slope_b = np.bincount(self.index.ravel(), weights=p.ravel(), minlength=len(bias)) - np.bincount(
            self.right, minlength=len(bias)
        )
        value += 0.5 * (log_temperature / _TEMPERATURE_PRIOR) ** 2 + 0.5 * (bias**2).sum() / _BIAS_PRIOR**2
        slope_t += log_temperature / _TEMPERATURE_PRIOR**2
        slope_b = slope_b + bias / _BIAS_PRIOR**2
        return float(value), np.concatenate([[slope_t], slope_b])


def _fit_temperature(table: _Table) -> float:
    """The temperature of the smallest log loss, with its prior; in :data:`TEMPERATURES`."""
    from scipy.optimize import minimize_scalar

    none = np.zeros(len(table.labels))
    low, high = (math.log(t) for t in TEMPERATURES)
    # the log loss is convex in 1 / T but not in log T: a grid first, so that no other valley is taken
    grid = np.linspace(low, high, 61)
    best = int(np.argmin([table.loss(u, none)[0] for u in grid]))
    around = (float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)]))
    found = minimize_scalar(lambda u: table.loss(u, none)[0], bounds=around, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def _fit_bias(table: _Table, temperature: float) -> tuple[float, dict[str, float]]:
    """Temperature and bias together, from the best temperature on (BCTS, Alexandari et al. 2020)."""
    from scipy.optimize import minimize

    start = np.concatenate([[math.log(temperature)], np.zeros(len(table.labels))])
    low, high = (math.log(t) for t in TEMPERATURES)
    bounds = [(low, high)] + [(None, None)] * len(table.labels)
    found = minimize(lambda x: table.loss(x[0], x[1:]), start, jac=True, method="L-BFGS-B", bounds=bounds)
    bias = {name: float(b) for name, b in zip(table.labels, found.x[1:], strict=True)}
    return math.exp(float(found.x[0])), bias


def _fit_threshold(
    gold: list[str],
    predictions: list[Prediction],
    calibration: Calibration,
    settings: CalibrationConfig,
    notes: list[str],
) -> FittedCalibration:
    found = choose_threshold(
        [p.confidence for p in predictions],
        [p.label == label for p, label in zip(predictions, gold, strict=True)],
        target_precision=settings.target_precision,
        target_coverage=settings.target_coverage,
    )
    target = _target(settings)
    reached = (
        f"dev accuracy {found.precision:.3f} (95 % interval {found.interval[0]:.3f} to {found.interval[1]:.3f}) on "
        f"{found.answered} answered rows, coverage {found.coverage:.3f}"
    )
    fit = {**calibration.fit, "abstain": _record(found, settings)}
    calibration = replace(calibration, fit=fit)
    if not found.met:
        unmet = f"{target} cannot be met on the dev rows with {LEAST_ANSWERED} or more answers; the best is {reached}"
        return _always(calibration, notes, unmet)
    if found.value is None:
        notes.append(f"abstains from no row: {target} is met with all rows answered ({reached})")
    else:
        notes.append(f"abstains where {calibration.signal} is below {found.value:.4g} ({target}): {reached}")
    return FittedCalibration(replace(calibration, threshold=found.value), tuple(notes))


def _always(calibration: Calibration, notes: list[str], unmet: str) -> FittedCalibration:
    line = f"{unmet}. The classifier abstains from EVERY row until fenlei calibrate gives it another target"
    return FittedCalibration(replace(calibration, threshold=ALWAYS_ABSTAIN), (*notes, line), unmet)


def _target(settings: CalibrationConfig) -> str | None:
    for name in ("target_precision", "target_coverage"):
        if (value := getattr(settings, name)) is not None:
            return f"calibration.{name}={value:g}"
    return None


def _record(found: Threshold, settings: CalibrationConfig) -> dict[str, Any]:
    return {
        "target_precision": settings.target_precision,
        "target_coverage": settings.target_coverage,
        "met": found.met,
        "answered": found.answered,
        "coverage": found.coverage,
        "precision": found.precision,
        "precision_95": list(found.interval),
    }


def _describe(calibration: Calibration, fit: dict[str, Any]) -> str:
    if calibration.method == "none":
        return "calibration: none (calibration.method=none)"
    what = f"temperature {calibration.temperature:.3f}"
    if calibration.bias:
        low, high = min(calibration.bias.values()), max(calibration.bias.values())
        what += f" and a bias a label ({low:+.2f} to {high:+.2f})"
    before, after = fit["before"], fit["after"]
    return (
        f"calibration: {what}, fitted on {fit['rows']} dev rows: log loss {before['log_loss']:.4f} to "
        f"{after['log_loss']:.4f}, ECE {before['ece']:.4f} to {after['ece']:.4f}"
    )
