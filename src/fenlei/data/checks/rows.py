"""Rows that cannot be used: what training would stop at."""

from __future__ import annotations

from collections.abc import Iterator

from fenlei.config import DataConfig
from fenlei.data.checks.report import Finding, Severity
from fenlei.data.checks.table import Split

_SKIP = "; data.on_bad_row=skip sets such rows aside"
_KINDS = {
    "row-unreadable": ("rows that cannot be read", "Mend the rows" + _SKIP),
    "text-empty": ("rows without a text", "Delete the rows or fill in their texts" + _SKIP),
    "label-missing": ("rows without a label", "Label the rows or delete them" + _SKIP),
    "label-not-candidate": (
        "rows whose label is not among their candidates",
        "Add the label to the row's candidates or mend its spelling; data.candidates=all leaves the candidates out"
        + _SKIP,
    ),
    "label-unknown": (
        "rows with a label or candidate that data.labels does not list",
        "Add it to data.labels, or map it with data.aliases" + _SKIP,
    ),
}


def check_rows(split: Split, config: DataConfig) -> Iterator[Finding]:
    """One finding a kind of bad row; errors where training stops at them."""
    severity: Severity = "error" if config.on_bad_row == "stop" else "warning"
    for code, (title, advice) in _KINDS.items():
        if code in split.bad:
            bad = split.bad[code]
            yield Finding(code, severity, split.name, title, bad.count, split.read, advice, tuple(bad.examples))
