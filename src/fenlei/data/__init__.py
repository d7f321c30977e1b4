"""Labelled texts: readers, label set, splits."""

from fenlei.data.columns import Columns, detect_columns, to_example
from fenlei.data.example import Example
from fenlei.data.labels import LabelSet
from fenlei.data.readers import (
    ReadResult,
    Rejected,
    StreamedRow,
    iter_rows,
    read_examples,
    stream_examples,
    write_rejected,
)
from fenlei.data.splits import stratified_split

__all__ = [
    "Columns",
    "Example",
    "LabelSet",
    "ReadResult",
    "Rejected",
    "StreamedRow",
    "detect_columns",
    "iter_rows",
    "read_examples",
    "stratified_split",
    "stream_examples",
    "to_example",
    "write_rejected",
]
