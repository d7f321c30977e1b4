"""What the checks say: findings with examples, and the figures of each split."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_WIDTH = 80
# control, format (BOM, zero width, direction), surrogate, private, unassigned: written as escapes, so that they are
# seen and do nothing to a terminal
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn"}


@dataclass(frozen=True)
class Place:
    """An example of a finding.

    Attributes:
        source: ``file:line``; empty where the finding is about no row.
        text: the text, shortened; invisible characters as escapes.
        note: what is to be seen there.
    """

    source: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of problem in one split.

    Attributes:
        code: stable name, e.g. ``duplicate-exact``.
        severity: ``error``: training refuses the data, or figures measured on them would be wrong; ``warning``: look at
            it before training; ``note``: good to know.
        split: ``train``, ``dev`` or ``test``.
        title: what was found.
        count: how many.
        total: of how many.
        unit: of what: ``rows`` or ``labels``.
        advice: what to do.
        examples: some of them.
        at_least: there may be more than ``count``.
    """

    code: str
    severity: Severity
    split: str
    title: str
    count: int
    total: int
    advice: str
    examples: tuple[Place, ...] = ()
    unit: str = "rows"
    at_least: bool = False

    @property
    def share(self) -> float:
        """``count / total``, 0 to 1."""
        return self.count / self.total if self.total else 0.0


@dataclass(frozen=True)
class Lengths:
    """Distribution of lengths, in characters or tokens."""

    min: int
    median: int
    p95: int
    p99: int
    max: int


@dataclass(frozen=True)
class TokenSummary:
    """Token lengths of a split, measured with the prompt that training would use.

    Attributes:
        text: tokens of the texts, unshortened.
        prompt: tokens of prompt and longest answer around an unshortened text.
        max_length: ``prompt.max_length``.
        shortened: share of texts that do not fit.
        fits_99: the ``prompt.max_length`` at which 99 % of the texts stay whole.
        rows: rows measured.
        of: rows there are.
    """

    text: Lengths
    prompt: Lengths
    max_length: int
    shortened: float
    fits_99: int
    rows: int
    of: int


@dataclass(frozen=True)
class SplitSummary:
    """Figures of one split.

    Attributes:
        name: ``train``, ``dev`` or ``test``.
        source: where it was read.
        read: rows found.
        used: rows that can be used; only these are looked at further.
        labels: label -> rows, most rows first.
        characters: lengths of the texts; None without a usable row.
        tokens: the same in tokens; None where they were not measured.
        scripts: script (Han, Latin, ...) that most letters of a row belong to -> rows.
        languages: language (ISO 639-1) -> rows of a sample of the longer texts in scripts that languages share.
    """

    name: str
    source: str
    read: int
    used: int
    labels: Mapping[str, int]
    characters: Lengths | None
    tokens: TokenSummary | None
    scripts: Mapping[str, int]
    languages: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckReport:
    """All that the checks found.

    Attributes:
        splits: figures of each split.
        findings: errors first, then warnings, then notes.
        remarks: what was not looked at, and why.
        seconds: time taken.
    """

    splits: tuple[SplitSummary, ...]
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0
    version: int = field(default=1, init=False)

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.of("error")

    def verdict(self) -> str:
        """The number of findings in words."""
        counts = [(len(self.of(severity)), severity) for severity in SEVERITIES]
        return ", ".join(f"{n} {severity}{'' if n == 1 else 's'}" for n, severity in counts)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        values = dataclasses.asdict(self)
        for found, finding in zip(values["findings"], self.findings, strict=True):
            found["share"] = finding.share
        return {**values, "ok": self.ok, "counts": {s: len(self.of(s)) for s in SEVERITIES}}


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings by severity, in the order in which they were made within one."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def clip(text: str, at: int = 0, width: int = _WIDTH) -> str:
    """A piece of a text in one line that shows the character at ``at``.

    White space is one space; characters that cannot be seen are written as escapes.
    """
    start = max(0, at - width // 3) if at > width // 2 else 0
    piece = text[start : start + width]
    shown = printable(" ".join(piece.split()))
    return ("…" if start else "") + shown + ("…" if start + width < len(text) else "")


def printable(text: str) -> str:
    """A text with escapes in place of characters that cannot be seen, line ends included."""
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(char: str) -> str:
    if char.isascii():
        return char if char.isprintable() else f"\\x{ord(char):02x}"
    return f"\\u{ord(char):04x}" if unicodedata.category(char) in _HIDDEN else char
