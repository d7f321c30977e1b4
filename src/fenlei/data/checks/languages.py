"""Languages that share a script, such as English and French: by py3langid, on a sample of the longer texts.

py3langid (BSD, 139 languages) holds its model of 5 MB itself and downloads nothing. Short texts are left out: on them
it guesses.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from fenlei.data.checks.characters import SCRIPTS
from fenlei.data.checks.report import Finding
from fenlei.data.checks.settings import CheckSettings
from fenlei.data.checks.table import Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MISSING = "languages: English and French cannot be told apart without py3langid: pip install 'fenlei[check]'"
# scripts that many languages are written in; the others are told by `scripts`
_SHARED = ("Latin", "Cyrillic", "Arabic")
_SHORTEST = 40
_READ = 400
_SURE = 0.95
_FEWEST = 20


class Languages(NamedTuple):
    """What was found.

    Attributes:
        rows: language (ISO 639-1) -> rows of the sample that are surely in it, most rows first.
        findings: rows that are in another language than nearly all.
        remark: why nobody looked; empty where somebody did, or where there was nothing to tell apart.
    """

    rows: dict[str, int]
    findings: list[Finding]
    remark: str = ""


def check_languages(split: Split, settings: CheckSettings) -> Languages:
    """Tells the languages of up to ``check.token_sample`` texts of 40 characters and more, spread over the split."""
    chosen = _sample(split, settings.token_sample)
    if len(chosen) < _FEWEST:
        return Languages({}, [])
    identifier = _identifier()
    if identifier is None:
        return Languages({}, [], MISSING)
    sure: dict[int, str] = {}
    for row in map(int, chosen):
        name, p = identifier.classify(split.texts[row][:_READ].encode("utf-8", "replace"))
        if p >= _SURE:
            sure[row] = str(name)
    counts: dict[str, int] = {}
    for name in sure.values():
        counts[name] = counts.get(name, 0) + 1
    counts = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    main = next(iter(counts), "")
    others = [row for row, name in sure.items() if name != main]
    if not others or counts[main] < settings.main_script * len(sure):
        return Languages(counts, [])
    finding = Finding(
        "text-language",
        "note",
        split.name,
        f"texts of {_SHORTEST} characters and more in another language, among {counts[main] / len(sure):.1%} in {main}",
        len(others),
        len(sure),
        "Is another language meant to be there?",
        tuple(split.place(row, sure[row]) for row in others[: settings.examples]),
        at_least=len(sure) < len(split),
    )
    return Languages(counts, [finding])


def _sample(split: Split, most: int) -> NDArray[np.intp]:
    import numpy as np

    characters = split.characters
    shared = np.isin(characters.script, [SCRIPTS.index(name) for name in _SHARED])
    rows = np.flatnonzero(shared & (characters.length >= _SHORTEST))
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)] if len(rows) else rows


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """py3langid's model; None where it is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
