"""What a classifier must beat: the most frequent class, and TF-IDF with a linear model (seconds, no GPU).

Both answer like the tuned model does: with one of the row's candidates, and a probability for each.
"""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fenlei.errors import DataError
from fenlei.evaluation.notes import Note, because
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import Prediction, make_predictions

# decision values of a linear SVM lie around -1 to 1; a label without a training row stays far below all others
_NEVER = -10.0
# beyond this many characters a sample of the training rows is used, so that the baseline stays a matter of seconds
_MOST_CHARACTERS = 20_000_000
# up to here the n-grams that occur once are tried too: they help short texts (+1 point on news titles), hurt long ones
_FEW_CHARACTERS = 500_000
# share of white space above which a language is taken to put spaces between its words (English: about 0.17)
_SPACED = 0.08
# scikit-learn's own pattern leaves out words of one letter
_WORD = r"\b\w+\b"


class MajorityBaseline:
    """Always the most frequent label of the training rows among a row's candidates.

    Args:
        labels: the training rows' labels, one or more.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._counts = Counter(labels)

    def predict(self, texts: Sequence[str], candidates: Sequence[tuple[str, ...]]) -> list[Prediction]:
        """Probabilities are the training shares, one row added to each label (Laplace's rule)."""
        import numpy as np

        scores = [np.array([math.log(self._counts[name] + 1) for name in names]) for names in candidates]
        return make_predictions(list(candidates), scores, [False] * len(texts), Calibration())


@dataclass(frozen=True)
class TfidfSetting:
    """One way to set up the TF-IDF baseline.

    Attributes:
        c: inverse strength of the SVM's regularisation.
        min_df: an n-gram counts if it occurs in so many training texts.
    """

    c: float
    min_df: int

    def __str__(self) -> str:
        return f"C={self.c:g}, min_df={self.min_df}"


DEFAULT_SETTING = TfidfSetting(c=0.2, min_df=2)
_OTHERS = (TfidfSetting(c=1.0, min_df=2),)
_FOR_SHORT = TfidfSetting(c=1.0, min_df=1)


class TfidfBaseline:
    """TF-IDF (n-grams of 1 to 3 characters, and words where they are set apart) and a linear SVM, classes balanced.

    Args:
        setting: strength of regularisation and rarest n-gram.
        seed: seed of the SVM's solver.
    """

    def __init__(self, setting: TfidfSetting = DEFAULT_SETTING, seed: int = 42) -> None:
        self.setting, self.seed = setting, seed
        self.calibration = Calibration()
        self.train_rows = 0
        self._model: Any = None
        self._columns: dict[str, int] = {}

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> TfidfBaseline:
        """Fits both parts.

        Args:
            texts: training texts, ``(N,)``.
            labels: their labels, two different ones or more.

        Raises:
            DataError: one label only, or no text holds anything.
        """
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC

        if len(set(labels)) < 2:
            raise because(DataError, Note("one_label"))
        texts, labels = _sample(texts, labels, self.seed)
        svm = LinearSVC(C=self.setting.c, class_weight="balanced", random_state=self.seed)
        with warnings.catch_warnings():  # a solver that stops at its limit is good enough for a baseline
            warnings.simplefilter("ignore")
            # 1: so few texts that no n-gram occurs twice
            for min_df in dict.fromkeys((self.setting.min_df, 1)):
                self._model = make_pipeline(_features(_are_spaced(texts), min_df), svm)
                try:
                    self._model.fit(list(texts), list(labels))
                    break
                except ValueError as error:
                    if min_df == 1:
                        raise because(DataError, Note("not_fitted", {"error": str(error)})) from error
        self._columns = {name: i for i, name in enumerate(self._model.classes_)}
        self.train_rows = len(texts)
        return self

    def predict(self, texts: Sequence[str], candidates: Sequence[tuple[str, ...]]) -> list[Prediction]:
        """The candidate with the highest decision value; probabilities are their softmax under :attr:`calibration`.

        Args:
            texts: ``(N,)``.
            candidates: each row's candidates, ``(N,)``.
        """
        import numpy as np

        if not texts:
            return []
        values = self._model.decision_function(list(texts))
        if values.ndim == 1:  # two labels
            values = np.stack([-values, values], axis=1)
        table = np.concatenate([values, np.full((len(values), 1), _NEVER)], axis=1)
        wanted: dict[tuple[str, ...], list[int]] = {}
        for names in candidates:
            if names not in wanted:
                wanted[names] = [self._columns.get(name, -1) for name in names]
        scores = [row[wanted[names]] for row, names in zip(table, candidates, strict=True)]
        return make_predictions(list(candidates), scores, [False] * len(texts), self.calibration)


def settings_to_try(texts: Sequence[str]) -> tuple[TfidfSetting, ...]:
    """Two or three settings, all of them cheap for these training texts."""
    short = sum(map(len, texts)) <= _FEW_CHARACTERS
    return (DEFAULT_SETTING, *_OTHERS, *((_FOR_SHORT,) if short else ()))


def best_tfidf(
    train: tuple[Sequence[str], Sequence[str]],
    dev: tuple[Sequence[str], Sequence[str]],
    dev_candidates: Sequence[tuple[str, ...]],
    seed: int = 42,
) -> TfidfBaseline:
    """The setting with the highest macro-F1 on the dev rows, fitted on the training rows.

    Args:
        train: texts and labels.
        dev: texts and labels to choose by; without any, the default setting is taken.
        dev_candidates: the candidates of the dev rows.
        seed: seed of the solver.

    Raises:
        DataError: see :meth:`TfidfBaseline.fit`.
    """
    from sklearn.metrics import f1_score

    if not dev[0]:
        return TfidfBaseline(seed=seed).fit(*train)
    best, highest = None, -1.0
    for setting in settings_to_try(train[0]):
        model = TfidfBaseline(setting, seed).fit(*train)
        said = [p.label for p in model.predict(dev[0], dev_candidates)]
        score = float(f1_score(list(dev[1]), said, average="macro", zero_division=0.0))
        if score > highest:
            best, highest = model, score
    assert best is not None
    return best


def _features(spaced: bool, min_df: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    def grams(analyzer: str, low: int, high: int) -> Any:
        return TfidfVectorizer(
            analyzer=analyzer, ngram_range=(low, high), token_pattern=_WORD, sublinear_tf=True, min_df=min_df
        )

    return make_union(grams("char_wb", 2, 4), grams("word", 1, 2)) if spaced else grams("char", 1, 3)


def _are_spaced(texts: Sequence[str]) -> bool:
    shown = "".join(text[:200] for text in texts[:500])
    return sum(map(str.isspace, shown)) > _SPACED * len(shown)


def _sample(texts: Sequence[str], labels: Sequence[str], seed: int) -> tuple[Sequence[str], Sequence[str]]:
    """All rows, or as many by chance as hold so many characters; one of each label at least."""
    total = sum(map(len, texts))
    if total <= _MOST_CHARACTERS:
        return texts, labels
    share = _MOST_CHARACTERS / total
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    kept = {label: i for i, label in enumerate(labels)}
    chosen = sorted({*kept.values(), *(i for i in range(len(texts)) if generator.random() < share)})
    return [texts[i] for i in chosen], [labels[i] for i in chosen]
