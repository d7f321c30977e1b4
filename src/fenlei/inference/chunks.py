"""The input of a bulk prediction, cut into chunks: the same ones whenever and however often it is read."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from fenlei.data import StreamedRow
from fenlei.errors import DataError
from fenlei.inference.records import carried_columns

# A chunk ends at either. Rows of a chunk are sorted by length for the model, so it should be long; a crash loses a
# chunk, so it should not be: some thousand titles, some hundred articles, or one text of a megabyte.
CHUNK_ROWS = 1024
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Rows that are predicted and written together.

    Attributes:
        rows: good and bad ones, in order.
        end: rows of the input up to and with this chunk.
        consumed: hash of all these rows as they were read.
    """

    rows: list[StreamedRow]
    end: int
    consumed: str


def iter_chunks(rows: Iterable[StreamedRow], most_rows: int, most_bytes: int) -> Iterator[Chunk]:
    """Cuts rows into chunks by nothing but their content and order."""
    digest = hashlib.sha256()
    held: list[StreamedRow] = []
    size = end = 0
    for row in rows:
        content = json.dumps([row.source, row.found], default=str).encode("ascii")
        digest.update(content + b"\n")
        held.append(row)
        size += len(content)
        end += 1
        if len(held) >= most_rows or size >= most_bytes:
            yield Chunk(held, end, digest.hexdigest())
            held, size = [], 0
    if held:
        yield Chunk(held, end, digest.hexdigest())


def skip_done(chunks: Iterator[Chunk], rows: int, consumed: str, source: object) -> None:
    """Reads again the rows that are done, and makes sure that they are the same ones.

    Args:
        chunks: the input from its beginning; afterwards, from the first row that is not done.
        rows: how many rows are done.
        consumed: their hash.
        source: the input, for the message.

    Raises:
        DataError: they are other rows.
    """
    end, found = 0, ""
    while end < rows:
        chunk = next(chunks, None)
        if chunk is None:
            break
        end, found = chunk.end, chunk.consumed
    if end != rows or (rows and found != consumed):
        raise DataError(
            f"{source}: cannot go on: its first {rows} rows, which are done, are not what they were. "
            "Resume with the same input, or begin again with --overwrite or another --out"
        )


def check_columns(wanted: Collection[str], rows: Iterable[StreamedRow]) -> None:
    """Makes sure that columns exist; reads no further than to the row with the last of them.

    Raises:
        DataError: a column is in no row; names the nearest one.
    """
    missing = set(wanted)
    seen: dict[str, None] = {}
    for row in rows:
        if not missing:
            return
        if row.example is not None and row.columns is not None:
            names = carried_columns(row.example, row.columns).keys() | (
                row.found.keys() if isinstance(row.found, Mapping) else set()
            )
            if not names <= seen.keys():
                seen.update(dict.fromkeys(names))
                missing -= names
    if missing and seen:
        name = next(name for name in wanted if name in missing)
        near = difflib.get_close_matches(name, [str(other) for other in seen], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(repr(str(other)) for other in sorted(seen, key=str)[:20])
        raise DataError(f"--columns: no column {name!r} in the input{hint} Columns: {shown}")
