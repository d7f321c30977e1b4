"""What each sentence of a text contributes to its label: the probabilities when the sentence is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from fenlei.data.example import Example
from fenlei.inference.sentences import split_sentences
from fenlei.modeling.prediction import Prediction

if TYPE_CHECKING:
    from rich.table import Table

    from fenlei.inference.predictor import Predictor
    from fenlei.prompting import PromptEncoder

_MOST_PARTS = 40
_ELLIPSIS = "\n……\n"


@dataclass(frozen=True)
class SentenceEffect:
    """What leaving out one sentence, or a group of neighbouring ones, does.

    Attributes:
        start: its first character in the text.
        end: the one after its last.
        text: the sentence.
        read: whether the model read it: texts that are too long are shortened (``prompt.truncation``).
        change: change of the label's probability, from -1 to 1; below 0 the sentence speaks for the label. Exactly 0
            for a sentence that was not read.
        runner_up_change: the same for the second most probable label; None with one candidate only.
        label: the most probable label without the sentence.
    """

    start: int
    end: int
    text: str
    read: Literal["whole", "part", "none"]
    change: float
    runner_up_change: float | None
    label: str


@dataclass(frozen=True)
class Explanation:
    """A prediction and what each sentence contributes to it.

    Attributes:
        prediction: the prediction for the whole text.
        runner_up: the second most probable label; None with one candidate only.
        sentences: in the order of the text; together they cover it.
        grouped: whether there were so many sentences that neighbours were taken together.
    """

    prediction: Prediction
    runner_up: str | None
    sentences: tuple[SentenceEffect, ...]
    grouped: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = self.prediction
        return {
            "label": found.label,
            "probability": found.probability,
            "probabilities": dict(found.probabilities),
            "runner_up": self.runner_up,
            "truncated": found.truncated,
            "grouped": self.grouped,
            "sentences": [asdict(sentence) for sentence in self.sentences],
        }


def explain(
    predictor: Predictor,
    example: Example,
    *,
    candidates: Sequence[str] | None = None,
    most_parts: int = _MOST_PARTS,
) -> Explanation:
    """Leaves out each sentence in turn and compares the probabilities with those of the whole text.

    All texts are classified in one call. A text that is longer than the prompt has room for is explained as far as the
    model read it: a variant is what was read less one sentence, and nothing that was cut off takes its place, because
    that would mix the effect of one sentence with that of another. Sentences that were not read have no effect. When
    a text is a single sentence, it is compared with an empty text.

    The probabilities are those of any prediction, so with bfloat16 weights changes below about 0.02 mean nothing.

    Args:
        predictor: the classifier.
        example: the row.
        candidates: choose among these; by default those that the run's rule gives the row.
        most_parts: with more sentences than this, neighbours are left out together.

    Raises:
        ValueError: ``most_parts`` is not positive.
    """
    variants = leave_out(predictor.encoder, example, candidates, most_parts)
    return variants.explanation(predictor.predict(variants.rows, candidates=candidates))


@dataclass(frozen=True)
class Variants:
    """A row with and without each of its sentences: what has to be scored for an explanation.

    Attributes:
        rows: the whole row, then one variant for each part that the model reads.
        parts: sentences, or groups of them, as ``[start, end)``.
        read: how many characters of each part the model reads.
        grouped: whether neighbours were taken together.
    """

    rows: list[Example]
    parts: list[tuple[int, int]]
    read: list[int]
    grouped: bool

    def explanation(self, predictions: Sequence[Prediction]) -> Explanation:
        """What follows from the predictions for :attr:`rows`, in their order."""
        base, *found = predictions
        others = [name for name in base.probabilities if name != base.label]
        runner_up = max(others, key=base.probabilities.__getitem__) if others else None
        without, text, effects = iter(found), self.rows[0].text, []
        for part, count in zip(self.parts, self.read, strict=True):
            effects.append(_effect(text, part, count, base, runner_up, next(without) if count else base))
        return Explanation(base, runner_up, tuple(effects), self.grouped)


def leave_out(
    encoder: PromptEncoder, example: Example, candidates: Sequence[str] | None = None, most_parts: int = _MOST_PARTS
) -> Variants:
    """The first half of :func:`explain`, for those who score rows in a way of their own.

    Raises:
        ValueError: ``most_parts`` is not positive.
    """
    if most_parts < 1:
        raise ValueError(f"most_parts must be 1 or more, found {most_parts}")
    sentences = split_sentences(example.text)
    parts = _grouped(sentences, most_parts)
    spans = encoder.read_spans(example, candidates)
    read = [_overlap(part, spans) for part in parts]
    variants = [replace(example, text=_without(example.text, part, spans)) for part, n in zip(parts, read, strict=True)
                if n]  # fmt: skip
    return Variants([example, *variants], parts, read, grouped=len(parts) < len(sentences))


def _effect(
    text: str, part: tuple[int, int], read: int, base: Prediction, runner_up: str | None, without: Prediction
) -> SentenceEffect:
    start, end = part
    return SentenceEffect(
        start=start,
        end=end,
        text=text[start:end],
        read="none" if read == 0 else "whole" if read == end - start else "part",
        change=without.probabilities[base.label] - base.probabilities[base.label],
        runner_up_change=without.probabilities[runner_up] - base.probabilities[runner_up] if runner_up else None,
        label=without.label,
    )


def _grouped(sentences: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """At most ``most`` runs of neighbours, as equal in number as can be."""
    count = min(most, len(sentences))
    cuts = [i * len(sentences) // count for i in range(count + 1)] if count else []
    return [(sentences[a][0], sentences[b - 1][1]) for a, b in pairwise(cuts)]


def _overlap(part: tuple[int, int], spans: list[tuple[int, int]]) -> int:
    """Number of characters of ``part`` that lie in ``spans``."""
    return sum(max(0, min(part[1], end) - max(part[0], start)) for start, end in spans)


def _without(text: str, part: tuple[int, int], spans: list[tuple[int, int]]) -> str:
    """What was read of a text, without the characters of ``part``; the mark stands where the middle was not read."""
    kept = [text[start : max(start, min(end, part[0]))] + text[min(end, max(start, part[1])) : end] for start, end in
            spans]  # fmt: skip
    return _ELLIPSIS.join(piece for piece in kept if piece)


def render(explanation: Explanation) -> Table:
    """A table for the terminal: each sentence with the change it makes; the one that counts most is bold.

    Nothing in the text is taken as markup, and control characters are shown as ``·``.
    """
    from rich.table import Table
    from rich.text import Text

    found, runner_up = explanation.prediction, explanation.runner_up
    title = f"{found.label} ({found.probability:.3f})"
    if runner_up is not None:
        title += f", then {runner_up} ({found.probabilities[runner_up]:.3f})"
    table = Table(title=Text(_printable(title)), title_justify="left", caption_justify="left")
    table.add_column("left out", overflow="fold")
    table.add_column(Text(_printable(found.label)), justify="right")
    if runner_up is not None:
        table.add_column(Text(_printable(runner_up)), justify="right")
    most = max((abs(s.change) for s in explanation.sentences), default=0.0)
    for sentence in explanation.sentences:
        style = "dim" if sentence.read == "none" else "bold" if most and abs(sentence.change) == most else ""
        note = {"none": " (not read)", "part": " (read in part)"}.get(sentence.read, "")
        note += f" → {sentence.label}" if sentence.label != found.label else ""
        cells = [Text(_printable(sentence.text.strip()) + _printable(note)), _change(sentence.change)]
        if sentence.runner_up_change is not None:
            cells.append(_change(sentence.runner_up_change))
        table.add_row(*cells, style=style)
    table.caption = Text("change of the probability when the sentence is left out")
    return table


def _change(value: float) -> Any:
    from rich.text import Text

    return Text(f"{value:+.3f}" if value else "0")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
