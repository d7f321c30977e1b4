"""Which replaced characters were lone surrogates in the file: the reader has made them U+FFFD."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from fenlei.data.checks.characters import SURROGATE
from fenlei.data.checks.table import Split
from fenlei.data.encodings import open_text
from fenlei.data.tables import kind_of
from fenlei.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LONE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


def rows_with_surrogates(split: Split, rows: NDArray[np.intp]) -> set[int]:
    """Those of ``rows`` whose line in a JSON Lines file holds half of a surrogate pair.

    Args:
        split: the rows.
        rows: rows with U+FFFD, or with surrogates where the rows did not come from a file.
    """
    found = {int(row) for row in rows if split.characters.flags[row] & SURROGATE}
    by_file: dict[int, dict[int, int]] = {}
    for row in map(int, rows):
        by_file.setdefault(int(split.file[row]), {})[int(split.line[row])] = row
    for number, lines in by_file.items():
        path = Path(split.files[number])
        if kind_of(path) != "jsonl" or not path.is_file():
            continue
        try:
            with open_text(path) as handle:
                for line, text in enumerate(handle, start=1):
                    if line in lines and _LONE.search(text):
                        found.add(lines[line])
        except DataError:  # data.encoding was needed: the rows are reported as replaced characters
            continue
    return found
