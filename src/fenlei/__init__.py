"""fenlei (分类): turn an instruct LLM into a text classifier you can trust.

>>> from fenlei import TextClassifier                                   # doctest: +SKIP
>>> clf = TextClassifier("qwen2.5-coder-0.5b").fit("train.jsonl")       # doctest: +SKIP
>>> clf.predict_proba(["国足今晚迎战韩国队"])                              # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fenlei.classifier import TextClassifier
    from fenlei.config import RunConfig
    from fenlei.data import Example, LabelSet
    from fenlei.errors import FenleiError

__version__ = "0.1.0"
__all__ = ["Example", "FenleiError", "LabelSet", "RunConfig", "TextClassifier", "__version__"]

_HOMES = {
    "TextClassifier": "fenlei.classifier",
    "RunConfig": "fenlei.config",
    "Example": "fenlei.data",
    "LabelSet": "fenlei.data",
    "FenleiError": "fenlei.errors",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``import fenlei`` stays under half a second."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fenlei' has no attribute {name!r}")
