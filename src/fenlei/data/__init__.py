"""Labelled texts: readers, label set, splits."""

from fenlei.data.example import Example

__all__ = ["Example"]
