"""One function from (text, candidates) to token ids.

Training, evaluation, prediction and serving all call :meth:`PromptEncoder.encode`; none has a copy. A prompt is

    [chat template + system turn + user turn before the text] [text] [user turn after the text + chat template]

and only the middle part is ever shortened. The parts are tokenized apart, so rows with the same candidates share the
first part's ids exactly, whatever their text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fenlei.config import PromptConfig
from fenlei.data.example import Example
from fenlei.errors import ConfigError, DataError
from fenlei.prompting.chat import ChatFrame, chat_frame
from fenlei.prompting.plain import PlainTokenizer
from fenlei.prompting.templates import render, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fenlei.data.labels import LabelSet

_FRAMES_KEPT = 4096
# Stands where the middle of a text was left out, so that the model does not read the two ends as one sentence.
_ELLIPSIS = "\n……\n"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids; the answer begins right after the last one.

    Attributes:
        input_ids: the whole prompt, ``(T,)``.
        prefix_length: ids before the text; the same for every text with the same candidates.
        text_length: ids of the text that were kept.
        truncated: whether the text was shortened.
        candidates: the labels the answer may be.
    """

    input_ids: list[int]
    prefix_length: int
    text_length: int
    truncated: bool
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class _Frame:
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    budget: int


class PromptEncoder:
    """Turns texts into prompts and labels into answers for one model and one label set.

    Args:
        tokenizer: the model's tokenizer, fast.
        config: wording, length and truncation.
        labels: all labels; ``labels.descriptions`` are shown by the presets that have a place for them.
        candidates: ``"row"``: a row's own candidates where it has them; ``"all"``: always the whole label set.
        chat: the chat frame as a classifier folder stored it; read off the tokenizer by default.

    Raises:
        ConfigError: a template does not fit, or two labels become the same answer ids.
        ModelError: the tokenizer is not fast or its chat template does not render.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PromptConfig,
        labels: LabelSet,
        candidates: Literal["row", "all"] = "row",
        chat: ChatFrame | None = None,
    ) -> None:
        self.config = config
        self.labels = labels
        self.candidates = candidates
        self._tokenizer = tokenizer
        self._template = template_of(config)
        self._plain = PlainTokenizer(tokenizer)
        self.chat = chat or chat_frame(tokenizer, with_system=bool(self._template.system.strip()))
        self._answers: dict[str, tuple[int, ...]] = {}
        self._frames: OrderedDict[tuple[tuple[str, ...], str | None], _Frame] = OrderedDict()
        self._ellipsis = self._plain.encode(_ELLIPSIS)[0]
        for label in labels:
            self.answer_ids(label)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that no text, label or candidate can become."""
        return self._plain.control_ids

    def answer_ids(self, label: str) -> tuple[int, ...]:
        """The ids the model must produce for a label, the end of its turn included.

        Raises:
            ConfigError: another label has the same ids, so no score could tell the two apart.
        """
        found = self._answers.get(label)
        if found is None:
            found = (*self._plain.encode(label)[0], *self.chat.turn_end)
            twin = next((name for name, ids in self._answers.items() if ids == found), None)
            if twin is not None:
                raise ConfigError(f"labels {twin!r} and {label!r} become the same tokens; rename one")
            self._answers[label] = found
        return found

    def candidates_of(self, example: Example) -> tuple[tuple[str, ...], str | None]:
        """The candidates of a row by the run's rule, and their wording in the file if the row's own are used.

        Raises:
            DataError: a candidate is not in the label set.
        """
        if self.candidates == "all" or not example.candidates:
            return self.labels.names, None
        return tuple(self.labels.canonical(name) for name in example.candidates), example.candidates_text

    def encode(
        self, text: str, candidates: Sequence[str] | None = None, *, candidates_text: str | None = None
    ) -> EncodedPrompt:
        """The prompt for a text.

        Args:
            text: any string; what does not fit into the length is left out by ``config.truncation``.
            candidates: the labels the answer may be; the whole label set by default.
            candidates_text: their wording where the data file gave one.

        Raises:
            ConfigError: ``max_length`` leaves no room for any text.
        """
        names = tuple(dict.fromkeys(candidates)) if candidates is not None else self.labels.names
        frame = self._frame(names, candidates_text)
        ids, offsets = self._plain.encode(text)
        truncated = len(ids) > frame.budget
        if truncated:
            ids = self._shorten(ids, offsets, frame.budget)
        return EncodedPrompt(
            input_ids=[*frame.prefix, *ids, *frame.suffix],
            prefix_length=len(frame.prefix),
            text_length=len(ids),
            truncated=truncated,
            candidates=names,
        )

    def encode_example(self, example: Example) -> EncodedPrompt:
        """The prompt for a row, with the candidates that the run's rule gives it."""
        names, wording = self.candidates_of(example)
        return self.encode(example.text, names, candidates_text=wording)

    def encode_training(self, example: Example) -> tuple[EncodedPrompt, tuple[int, ...]]:
        """The prompt of a row and the answer that belongs to it; together at most ``max_length`` ids.

        Raises:
            DataError: the row has no label, or its label is not among its candidates.
        """
        if example.label is None:
            raise DataError(f"{example.source}: a training row needs a label")
        prompt = self.encode_example(example)
        label = self.labels.canonical(example.label)
        if label not in prompt.candidates:
            raise DataError(
                f"{example.source}: label {label!r} is not among the row's candidates {list(prompt.candidates)}"
            )
        return prompt, self.answer_ids(label)

    def _frame(self, names: tuple[str, ...], wording: str | None) -> _Frame:
        key = (names, wording)
        frame = self._frames.get(key)
        if frame is None:
            frame = self._frames[key] = self._build_frame(names, wording)
            if len(self._frames) > _FRAMES_KEPT:  # rows may each bring their own candidates
                self._frames.popitem(last=False)
        return frame

    def _build_frame(self, names: tuple[str, ...], wording: str | None) -> _Frame:
        if not names:
            raise ConfigError("a prompt needs at least one candidate")
        system, before, after = render(
            self._template, names, candidates_text=wording, descriptions=self.labels.descriptions
        )
        chat = self.chat
        prefix = (
            *self._control(chat.before_system),
            *self._plain.encode(system)[0],
            *self._control(chat.between),
            *self._plain.encode(before)[0],
        )
        suffix = (*self._plain.encode(after)[0], *self._control(chat.after_user))
        # room for the longest answer, so that a row gets the same prompt with and without its label
        answer = max(len(self.answer_ids(name)) for name in names)
        budget = self.config.max_length - len(prefix) - len(suffix) - answer
        if budget < 1:
            raise ConfigError(
                f"prompt.max_length={self.config.max_length} leaves no room for the text: prompt and candidates take "
                f"{len(prefix) + len(suffix)} tokens and the longest answer {answer}; "
                f"set it to {len(prefix) + len(suffix) + answer + 64} or more"
            )
        return _Frame(prefix, suffix, budget)

    def _control(self, text: str) -> list[int]:
        """Ids of the chat template's own text, where control tokens are meant."""
        if not text:
            return []
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _shorten(self, ids: list[int], offsets: list[tuple[int, int]], budget: int) -> list[int]:
        kind = self.config.truncation
        if kind == "head":
            return ids[: _cut_end(offsets, budget)]
        if kind == "tail":
            return ids[_cut_start(offsets, len(ids) - budget) :]
        room = budget - len(self._ellipsis)
        if room < 2:  # no place for two ends and a mark
            return ids[: _cut_end(offsets, budget)]
        head = ids[: _cut_end(offsets, room - room // 2)]
        tail = ids[_cut_start(offsets, len(ids) - room // 2) :]
        return [*head, *self._ellipsis, *tail]


def _cut_end(offsets: list[tuple[int, int]], end: int) -> int:
    """Largest cut at or before ``end`` that splits no character (byte-level tokens may hold a third of one)."""
    while 0 < end < len(offsets) and offsets[end][0] < offsets[end - 1][1]:
        end -= 1
    return end


def _cut_start(offsets: list[tuple[int, int]], start: int) -> int:
    """Smallest cut at or after ``start`` that splits no character."""
    while 0 < start < len(offsets) and offsets[start][0] < offsets[start - 1][1]:
        start += 1
    return start
