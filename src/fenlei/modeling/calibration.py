"""From scores to probabilities that mean what they say, and to the decision to abstain.

Shape letters: N rows, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from fenlei.config_parts import CalibrationConfig, Method, Signal
from fenlei.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

SIGNALS: tuple[Signal, ...] = get_args(Signal)
METHODS: tuple[Method, ...] = get_args(Method)
# above every confidence there is: the classifier answers no row
ALWAYS_ABSTAIN = 2.0
_LOWEST = {"max_probability": 0.0, "entropy": -1.0, "answer_likelihood": -math.inf, "label_likelihood": 0.0}
_HIGHEST = {"max_probability": 1.0, "entropy": 0.0, "answer_likelihood": 0.0, "label_likelihood": 1.0}
_KEYS = ("method", "temperature", "bias", "signal", "threshold", "fit")


@dataclass(frozen=True)
class Calibration:
    """How a row's scores become probabilities, a confidence, and an answer or none.

    With scores s (log-probabilities of the candidates' answers, see :mod:`fenlei.modeling.tree`), temperature T and
    bias b, the probability of candidate i among the row's own candidates C is

        p_i = exp(s_i / T + b_i) / sum over j in C of exp(s_j / T + b_j)

    T alone is temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2): it
    changes how sure the classifier is, never which label it names. With b it is bias-corrected temperature scaling
    (Alexandari et al. 2020, "Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift
    Adaptation"), which can also change the label. A label without an entry in ``bias``, e.g. one added at prediction
    time, has b = 0.

    The confidence of a row is one of four signals, all of them larger for surer rows:

    - ``max_probability``: max of p, 1 / C to 1 (Hendrycks and Gimpel 2017).
    - ``entropy``: minus the entropy of p divided by log C, -1 (all candidates alike) to 0 (one is certain), so that
      rows with different numbers of candidates compare; 0 for a row with one candidate.
    - ``answer_likelihood``: log of the sum of exp(s), the log-probability that the model's answer begins like one of
      the candidates at all, at most 0. Neither T nor b plays a part in it. It is low where no candidate fits.
    - ``label_likelihood``: exp of the largest s, the probability of the likeliest candidate's answer among all that the
      model could say, 0 to 1; without T and b as well. It is low where no candidate fits, and where two candidates
      are near each other.

    Attributes:
        temperature: T, above 0.
        bias: b by label.
        signal: which confidence is compared with the threshold.
        threshold: the classifier abstains from rows whose confidence is lower; None: it answers every row.
        method: how T and b were found.
        fit: what was found on the dev rows, for people to read; nothing is computed from it.

    Raises:
        ValueError: a value that no calibration can have.
    """

    temperature: float = 1.0
    bias: Mapping[str, float] = field(default_factory=dict, hash=False)
    signal: Signal = "max_probability"
    threshold: float | None = None
    method: Method = "none"
    fit: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not self.temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, found {self.temperature!r}")
        if not isinstance(self.bias, Mapping):
            raise ValueError(f"bias: expected label -> number, found {self.bias!r:.80}")
        for name, value in self.bias.items():
            if not isinstance(name, str) or not _is_number(value):
                raise ValueError(f"bias: expected a number for the label {name!r}, found {value!r:.80}")
        if self.signal not in SIGNALS:
            raise ValueError(f"signal: expected one of {', '.join(SIGNALS)}; found {self.signal!r}")
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}; found {self.method!r}")
        if self.threshold is not None:
            self._check_threshold(self.threshold)

    def _check_threshold(self, threshold: float) -> None:
        low, high = _LOWEST[self.signal], _HIGHEST[self.signal]
        if not _is_number(threshold) or not (low <= threshold <= high or threshold == ALWAYS_ABSTAIN):
            between = f"{low:g} to {high:g}" if math.isfinite(low) else f"at most {high:g}"
            raise ValueError(
                f"threshold: expected {between} for the signal {self.signal} ({ALWAYS_ABSTAIN:g}: abstain from every "
                f"row), found {threshold!r}"
            )

    @property
    def is_identity(self) -> bool:
        """Whether probabilities are the plain softmax of the scores."""
        return self.temperature == 1.0 and not any(self.bias.values())

    def logits(self, scores: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """``s / T + b``, shifted so that each row's largest is 0; shapes as for :meth:`probabilities`."""
        import numpy as np

        scores = np.asarray(scores, dtype=np.float64)
        # shifted before the division as well: no temperature, however small, makes an infinity of two
        with np.errstate(over="ignore"):  # minus infinity, a probability of 0
            found = (scores - scores.max(axis=-1, keepdims=True)) / self.temperature
        if self.bias:
            found = found + np.array([self.bias.get(name, 0.0) for name in names])
            found = found - found.max(axis=-1, keepdims=True)
        return found

    def probabilities(self, scores: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities of the candidates; they sum to 1 in each row.

        Args:
            scores: finite log-probabilities, ``(C,)`` or ``(N, C)``.
            names: the C candidates, the same ones for all rows.

        Returns:
            The same shape as ``scores``, float64.
        """
        import numpy as np

        exp = np.exp(self.logits(scores, names))
        return exp / exp.sum(axis=-1, keepdims=True)

    def best(self, scores: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Index of the most probable candidate, ``()`` or ``(N,)``; the first of several that are alike."""
        import numpy as np

        # without a bias the scores themselves decide: not even rounding lets a temperature change a label
        return np.asarray((self.logits(scores, names) if self.bias else np.asarray(scores)).argmax(axis=-1))

    def confidence(self, scores: np.ndarray, probabilities: np.ndarray, signal: Signal | None = None) -> np.ndarray:
        """The signal that is compared with the threshold, ``()`` or ``(N,)``.

        Args:
            scores: as for :meth:`probabilities`.
            probabilities: what :meth:`probabilities` made of them.
            signal: another one than the calibration's own.
        """
        import numpy as np

        signal = signal or self.signal
        p = np.asarray(probabilities)
        if signal == "max_probability":
            return p.max(axis=-1)
        if signal == "entropy":
            count = p.shape[-1]
            if count == 1:
                return np.zeros(p.shape[:-1])
            terms = p * np.log(np.where(p > 0, p, 1.0))  # p log p goes to 0 with p
            return np.clip(terms.sum(axis=-1) / math.log(count), -1.0, 0.0)
        scores = np.asarray(scores, dtype=np.float64)
        top = scores.max(axis=-1)
        if signal == "label_likelihood":
            return np.exp(np.minimum(top, 0.0))
        # a sum of probabilities of events that exclude each other; rounding in the model's softmax may pass 1
        return np.minimum(top + np.log(np.exp(scores - top[..., None]).sum(axis=-1)), 0.0)

    def abstains(self, confidence: np.ndarray) -> np.ndarray:
        """Whether the classifier declines to answer, for each confidence."""
        import numpy as np

        confidence = np.asarray(confidence)
        if self.threshold is None:
            return np.zeros(confidence.shape, dtype=bool)
        return confidence < self.threshold

    def with_settings(self, settings: CalibrationConfig) -> Calibration:
        """What ``calibration.*`` settings make of it when a classifier is loaded; only those that were given count.

        Raises:
            ConfigError: a setting that needs dev rows, or a threshold that would mean something else than it did.
        """
        given = settings.model_fields_set
        if fitted := given & {"target_precision", "target_coverage", "min_rows"}:
            raise ConfigError(
                f"calibration.{min(fitted)} needs labelled dev rows and cannot be set when a classifier is loaded; "
                "choose a threshold with: fenlei calibrate RUN DEVFILE, or set calibration.threshold"
            )
        made: dict[str, Any] = self.to_dict()
        if "method" in given and settings.method != self.method:
            if settings.method != "none":
                raise ConfigError(
                    f"calibration.method={settings.method} is fitted on labelled dev rows; this classifier has "
                    f"{self.method}. Fit it with: fenlei calibrate RUN DEVFILE --method {settings.method}"
                )
            made |= {"method": "none", "temperature": 1.0, "bias": {}}
        if "signal" in given:
            made["signal"] = settings.signal
        if "threshold" in given:
            made["threshold"] = settings.threshold
        elif self.threshold is not None and self.threshold != ALWAYS_ABSTAIN:
            # likelihoods do not depend on temperature and bias
            same = made["method"] == self.method or self.signal in ("answer_likelihood", "label_likelihood")
            if made["signal"] != self.signal or not same:
                raise ConfigError(
                    f"the classifier's threshold {self.threshold:.4g} was chosen for {self.signal} with "
                    f"method={self.method}; give calibration.threshold as well (null: answer every row)"
                )
        if made == self.to_dict():
            return self
        try:
            return Calibration.from_dict({**made, "fit": {}})
        except ValueError as error:
            raise ConfigError(f"calibration.{error}") from None

    def require_for_more_labels(self, settings: CalibrationConfig) -> None:
        """Makes sure that no threshold outlives the label set that it was chosen for.

        With more candidates the probabilities of all are lower, so the same threshold has another precision and
        coverage. Temperature and bias stay; how well they still fit, only labelled rows can tell.

        Raises:
            ConfigError: the threshold is not one of ``settings``, which the user gave.
        """
        chosen = self.threshold is not None and self.threshold != ALWAYS_ABSTAIN
        if chosen and settings.threshold != self.threshold:
            raise ConfigError(
                f"the classifier's threshold {self.threshold:.4g} was chosen without the labels to be added, and would "
                "mean something else with them; give calibration.threshold as well (null: answer every row)"
            )

    def to_dict(self) -> dict[str, Any]:
        """Content of calibration.json; :meth:`from_dict` takes it back."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            "bias": dict(self.bias),
            "signal": self.signal,
            "threshold": self.threshold,
            "fit": dict(self.fit),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Makes what :meth:`to_dict` wrote; earlier releases wrote ``method`` and ``temperature`` only.

        Raises:
            ValueError: ``temperature`` is missing, a key is unknown, or a value cannot be.
        """
        if not isinstance(values, Mapping) or "temperature" not in values:
            raise ValueError(f"expected 'temperature', found {values!r:.80}")
        if unknown := [key for key in values if key not in _KEYS]:
            # it might change what the probabilities mean
            raise ValueError(f"unknown key {unknown[0]!r} (known: {', '.join(_KEYS)})")
        if not isinstance(values.get("fit", {}), Mapping):
            raise ValueError(f"fit: expected an object, found {values['fit']!r:.80}")
        return cls(**dict(values))


def check_settings(settings: CalibrationConfig) -> None:
    """Finds out before any work whether a fixed threshold can be one of its signal.

    Raises:
        ConfigError: it cannot.
    """
    try:
        Calibration(signal=settings.signal, threshold=settings.threshold)
    except ValueError as error:
        raise ConfigError(f"calibration.{error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
