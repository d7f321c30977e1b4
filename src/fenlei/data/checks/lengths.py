"""Lengths of texts, and how many of them a prompt has no room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fenlei.data.checks.report import Finding, Lengths, Place, TokenSummary, clip
from fenlei.data.checks.settings import CheckSettings
from fenlei.data.checks.table import Split
from fenlei.data.example import Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TokenLengths(NamedTuple):
    """Tokens of ``N`` rows.

    Attributes:
        text: of the texts, unshortened, ``(N,)``.
        prompt: of the prompts around them with the longest answer, ``(N,)``.
        max_length: a prompt with more is shortened.
    """

    text: NDArray[np.int64]
    prompt: NDArray[np.int64]
    max_length: int


# (rows) -> their token lengths; given by the layer that knows prompts
Measure = Callable[[Sequence[Example]], TokenLengths]


def lengths(values: NDArray[np.int64]) -> Lengths | None:
    """The distribution of lengths; None of nothing."""
    import numpy as np

    if not len(values):
        return None
    low, median, p95, p99, high = np.quantile(values, [0, 0.5, 0.95, 0.99, 1], method="inverted_cdf")
    return Lengths(int(low), int(median), int(p95), int(p99), int(high))


def summarize_tokens(found: TokenLengths, of: int) -> TokenSummary:
    """Figures of the token lengths of a sample of ``of`` rows."""
    text, prompt = lengths(found.text), lengths(found.prompt)
    assert text is not None
    assert prompt is not None
    shortened = float((found.prompt > found.max_length).mean())
    return TokenSummary(text, prompt, found.max_length, shortened, prompt.p99, len(found.text), of)


def check_tokens(
    split: Split, found: TokenLengths, summary: TokenSummary, settings: CheckSettings
) -> Iterator[Finding]:
    """Texts that truncation would shorten."""
    import numpy as np

    long = np.flatnonzero(found.prompt > found.max_length)
    if not len(long):
        return
    order = long[np.argsort(-found.prompt[long], kind="stable")][: settings.examples]
    lost = 1 - (found.text[long] - (found.prompt[long] - found.max_length)) / found.text[long]
    sampled = f" (of a sample of {summary.rows:,} rows)" if summary.rows < summary.of else ""
    places = []
    for place in order:
        example = split.sample[int(place)]
        places.append(Place(example.source, clip(example.text), f"{int(found.text[place]):,} tokens"))
    yield Finding(
        "text-shortened",
        "warning" if summary.shortened >= settings.shortened else "note",
        split.name,
        f"texts that prompt.max_length={found.max_length} shortens, by {np.median(lost):.0%} at the median{sampled}",
        len(long),
        summary.rows,
        f"prompt.max_length={summary.fits_99} keeps 99 % whole, at more time and memory; or choose which part is kept: "
        "prompt.truncation=head, tail or head_tail",
        tuple(places),
    )
