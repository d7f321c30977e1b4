"""How far a bulk prediction has come: one small file beside the output, replaced in one step after each chunk.

Everything in it is about the input and the content of the files, nothing about time or the process: a run that goes on
after a crash does what the run that did not crash would have done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fenlei.durable import write_json
from fenlei.errors import DataError
from fenlei.inference.records import FIELDS

JOURNAL_VERSION = 1
# No run is finished in another form than it began: raise the number when chunks, staged lines or the meaning of a field
# change. Fields that come or go are noticed by themselves.
OUTPUT_FORMAT = f"3 ({', '.join(FIELDS)})"
PREDICTING = "predicting"
PUBLISHING = "publishing"


@dataclass(frozen=True)
class Counts:
    """Rows so far: ``read == written + rejected``.

    Attributes:
        read: rows of the input.
        written: rows with a prediction.
        rejected: bad rows, put aside.
        shortened: written rows whose text was too long.
        abstained: written rows for which the classifier declined to answer.
    """

    read: int = 0
    written: int = 0
    rejected: int = 0
    shortened: int = 0
    abstained: int = 0

    def plus(self, other: Counts) -> Counts:
        """The sum."""
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Extent:
    """The valid part of a file that only grows.

    Attributes:
        size: its length in bytes; what comes after it was torn by a crash.
        sha256: hash of these bytes.
    """

    size: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Journal:
    """What is done, and of what.

    Attributes:
        identity: what the output depends on: the run can go on only while it is the same.
        counts: rows done.
        consumed: hash of these rows as they were read.
        staged: the valid part of the staged predictions.
        rejected: the valid part of the staged bad rows.
        stage: ``predicting``, or ``publishing`` once the files are whole and take their places.
        overwrite: whether an older output may be replaced.
    """

    identity: Mapping[str, Any]
    counts: Counts = field(default_factory=Counts)
    consumed: str = ""
    staged: Extent = field(default_factory=Extent)
    rejected: Extent = field(default_factory=Extent)
    stage: str = PREDICTING
    overwrite: bool = False

    def write(self, path: Path) -> None:
        """Replaces the journal durably.

        Raises:
            OSError: it cannot be written; the old one is as it was.
        """
        write_json(path, {"journal_version": JOURNAL_VERSION, **asdict(self)})

    def advanced(self, counts: Counts, consumed: str, staged: Extent, rejected: Extent) -> Journal:
        """The journal after one more chunk."""
        return replace(self, counts=self.counts.plus(counts), consumed=consumed, staged=staged, rejected=rejected)

    def require_same(self, identity: Mapping[str, Any], out: Path) -> None:
        """Holds what the output depends on against what it depended on when the run began.

        Raises:
            DataError: something is different; it is named.
        """
        now = json.loads(json.dumps(identity))
        keys = list(dict.fromkeys([*self.identity, *now]))
        changed = [key for key in keys if self.identity.get(key) != now.get(key)]
        if changed:
            listed = "; ".join(
                f"{key} was {_short(self.identity.get(key))}, is {_short(now.get(key))}" for key in changed
            )
            raise DataError(
                f"{out}: cannot go on: {listed}. Resume with what the run began with, "
                "or begin again with --overwrite or another --out"
            )


def read_journal(path: Path, out: Path) -> Journal:
    """Reads the journal of an unfinished run.

    Raises:
        DataError: it is not whole, or another version of fenlei wrote it.
    """
    again = f"begin again with: --out {out} --overwrite"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("journal_version")
        if version != JOURNAL_VERSION:
            raise DataError(
                f"{path}: journal version {version!r}, this fenlei reads {JOURNAL_VERSION}; "
                f"go on with the version that began it, or {again}"
            )
        parts = {"counts": Counts, "staged": Extent, "rejected": Extent}
        return Journal(**{**content, **{name: kind(**content[name]) for name, kind in parts.items()}})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as a journal: {error}; {again}") from None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
