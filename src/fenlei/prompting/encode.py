"""One way from (text, candidates) to token ids.

Training, evaluation, prediction and serving all use :class:`PromptEncoder`; none has a copy. A prompt is

    [chat template + system turn + user turn before the text] [text] [user turn after the text + chat template]

and only the middle part is ever shortened. The parts are tokenized apart, so rows with the same candidates share the
first part's ids exactly, whatever their text.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fenlei.caches import BoundedCache
from fenlei.config import PromptConfig
from fenlei.data.example import Example
from fenlei.data.labels import LabelSet
from fenlei.errors import ConfigError, DataError
from fenlei.prompting.chat import ChatFrame, chat_frame, next_turn
from fenlei.prompting.codes import assign_codes
from fenlei.prompting.plain import PlainTokenizer, Tokens
from fenlei.prompting.templates import render, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_FRAME_BYTES = 64 << 20
# transformers sets something on its tokenizer at every call, and encoders in other threads may share it
_TOKENIZER = threading.Lock()
_LEAST_SHOT = 48
# Stands where the middle of a text was left out, so that the model does not read the two ends as one sentence.
_ELLIPSIS = "\n……\n"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids; the answer begins right after the last one.

    Attributes:
        input_ids: the whole prompt, ``(T,)``.
        prefix_length: ids before the text; the same for every text with the same candidates. With solved examples and
            candidates of a row's own: ids up to the end of the examples.
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
    head: int  # ids of the prefix before the user turn's own content
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    budget: int
    shared: int  # ids of the prefix that are worth computing once


def _frames() -> BoundedCache[tuple[tuple[str, ...], str | None], _Frame]:
    """Frames by candidates and their wording, which rows may each bring along."""

    def size(key: tuple[tuple[str, ...], str | None], frame: _Frame) -> int:
        names, wording = key
        text = sum(80 + 2 * len(name) for name in names) + 4 * len(wording or "")
        return 500 + text + 36 * (len(frame.prefix) + len(frame.suffix))

    return BoundedCache(_MOST_FRAME_BYTES, size)


class PromptEncoder:
    """Turns texts into prompts and labels into answers for one model and one label set.

    Args:
        tokenizer: the model's tokenizer, fast.
        config: wording, length and truncation.
        labels: all labels; ``labels.descriptions`` are shown by the presets that have a place for them.
        candidates: ``"row"``: a row's own candidates where it has them; ``"all"``: always the whole label set.
        chat: the chat frame as a classifier folder stored it; read off the tokenizer by default.
        codes: label -> code, as a classifier folder stored them; labels without one get a fresh one. Only with
            ``config.answer == "code"``.
        plain: what another encoder made of the same tokenizer (:attr:`plain`), to save its memory.

    Raises:
        ConfigError: a template does not fit, two labels become the same answer ids, or the tokenizer has too few
            single tokens for codes.
        ModelError: the tokenizer is not fast or its chat template does not render.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PromptConfig,
        labels: LabelSet,
        candidates: Literal["row", "all"] = "row",
        chat: ChatFrame | None = None,
        codes: Mapping[str, str] | None = None,
        plain: PlainTokenizer | None = None,
    ) -> None:
        self.config = config
        self.candidates = candidates
        self._tokenizer = tokenizer
        self._template = template_of(config)
        self._plain = plain or PlainTokenizer(tokenizer)
        self.chat = chat or chat_frame(tokenizer, with_system=bool(self._template.system.strip()))
        self._ellipsis = self._plain.encode(_ELLIPSIS)
        self._shots: tuple[int, ...] = ()
        self._set_labels(labels, codes)

    def _set_labels(self, labels: LabelSet, codes: Mapping[str, str] | None) -> None:
        self.labels = labels
        self.codes: dict[str, str] = {}
        if self.config.answer == "code":
            self.codes = assign_codes(labels.names, self._single_token, codes)
        self._answers: dict[str, tuple[int, ...]] = {}
        self._answered: dict[tuple[int, ...], str] = {}
        self._frames = _frames()
        for label in labels:
            self.answer_ids(label)

    def with_labels(self, names: Sequence[str], descriptions: Mapping[str, str] | None = None) -> PromptEncoder:
        """An encoder with more labels, added after those that are there; this one stays as it is.

        Every label keeps its answer and, with ``config.answer == "code"``, its code; the new ones get fresh codes. Rows
        that bring candidates of their own keep those, all other rows choose among the new labels too.

        Args:
            names: the new labels.
            descriptions: what they mean (label -> text).

        Raises:
            DataError: a name is there already, differs from another only in white space, width or case, is an alias,
                or a description belongs to none of them.
            ConfigError: a new label becomes the same tokens as another one, or there are no more codes.
        """
        if isinstance(names, str):
            raise DataError(f"expected a list of labels, found one string: put it into a list, [{names!r}]")
        others = [name for name in descriptions or {} if name not in names]
        if others:
            raise DataError(f"description of {others[0]!r}, which is not among the new labels {list(names)}")
        old = self.labels
        labels = LabelSet(
            (*old.names, *names), descriptions={**old.descriptions, **(descriptions or {})}, aliases=old.aliases
        )
        made = copy.copy(self)
        made._set_labels(labels, self.codes)
        return made

    @property
    def plain(self) -> PlainTokenizer:
        """The tokenizer for texts and labels; it can be shared between encoders and threads."""
        return self._plain

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that no text, label or candidate can become."""
        return self._plain.control_ids

    def answer_ids(self, label: str) -> tuple[int, ...]:
        """The ids the model must produce for a label (its name or its code), the end of its turn included.

        Raises:
            ConfigError: another label has the same ids, so no score could tell the two apart.
            DataError: answers are codes and the label has none, as it is not in the label set.
        """
        found = self._answers.get(label)
        if found is None:
            if self.codes and label not in self.codes:
                raise DataError(self.labels.unknown(label))
            found = (*self._plain.encode(self.codes.get(label, label)), *self.chat.turn_end)
            twin = self._answered.setdefault(found, label)
            if twin != label:
                raise ConfigError(f"labels {twin!r} and {label!r} become the same tokens; rename one")
            self._answers[label] = found
        return found

    def _single_token(self, text: str) -> int | None:
        """The token that an answer becomes if it is exactly one."""
        ids = self._plain.encode(text)
        return ids[0] if len(ids) == 1 else None

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
        return self._encode([text], [(names, candidates_text)])[0]

    def encode_example(self, example: Example, candidates: Sequence[str] | None = None) -> EncodedPrompt:
        """The prompt for a row; see :meth:`encode_examples`."""
        return self.encode_examples([example], candidates)[0]

    def encode_examples(
        self, examples: Sequence[Example], candidates: Sequence[str] | None = None
    ) -> list[EncodedPrompt]:
        """The prompts for rows, in order; the texts are tokenized together, in parallel and without the GIL.

        Args:
            examples: rows; the prompt of each is the same whatever its neighbours.
            candidates: the labels that every row may take; by default those that the run's rule gives it.

        Raises:
            ConfigError: ``max_length`` leaves no room for any text.
            DataError: a row's candidate is not in the label set.
        """
        if candidates is None:
            choices = [self.candidates_of(example) for example in examples]
        else:
            choices = [(tuple(dict.fromkeys(candidates)), None)] * len(examples)
        return self._encode([example.text for example in examples], choices)

    def _encode(
        self, texts: Sequence[str], choices: Sequence[tuple[tuple[str, ...], str | None]]
    ) -> list[EncodedPrompt]:
        """The prompts of texts with (candidates, their wording or None) for each."""
        frames = [self._frame(*choice) for choice in choices]
        kept = self._fit(texts, [frame.budget for frame in frames])
        return [
            EncodedPrompt(
                input_ids=[*frame.prefix, *ids, *frame.suffix],
                prefix_length=frame.shared,
                text_length=len(ids),
                truncated=truncated,
                candidates=names,
            )
            for frame, (ids, truncated), (names, _) in zip(frames, kept, choices, strict=True)
        ]

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

    def with_shots(self, examples: Sequence[Example], most: int) -> tuple[PromptEncoder, int]:
        """An encoder whose prompts show solved examples before a row's own turn (few-shot); this one stays as it is.

        Each example is a user turn and its answer, worded as in training. They belong to the constant beginning, come
        on top of ``max_length``, and leave a row's text exactly the room that it has without them.

        Args:
            examples: rows with labels, in the order to show them; those that fit are used.
            most: most ids of all examples together. Texts are shortened so that one of each label fits, if that
                leaves them a few words.

        Returns:
            The encoder, and how many examples it shows.

        Raises:
            DataError: an example has no label, or its label is not among its candidates.
            ModelError: the chat template knows no second user turn.
        """
        link = next_turn(self._tokenizer, self.chat)
        each = most // max(1, len({example.label for example in examples}))
        shots: list[int] = []
        count = 0
        for example in examples:
            prompt, answer = self.encode_training(example)
            frame = self._frame(*self.candidates_of(example))
            around = len(frame.prefix) - frame.head + len(frame.suffix) + len(answer) + len(link)
            limit = min(frame.budget, max(_LEAST_SHOT, each - around))
            ids = prompt.input_ids[len(frame.prefix) : len(frame.prefix) + prompt.text_length]
            if len(ids) > limit:
                ids = self._fit([example.text], [limit])[0][0]
            turn = [*frame.prefix[frame.head :], *ids, *frame.suffix, *answer, *link]
            if len(shots) + len(turn) > most:
                break
            shots += turn
            count += 1
        made = copy.copy(self)
        made._shots, made._frames = tuple(shots), _frames()
        return made, count

    def _frame(self, names: tuple[str, ...], wording: str | None) -> _Frame:
        return self._frames.get((names, wording), lambda: self._build_frame(names, wording))

    def _build_frame(self, names: tuple[str, ...], wording: str | None) -> _Frame:
        if not names:
            raise ConfigError("a prompt needs at least one candidate")
        system, before, after = render(
            self._template, names, candidates_text=wording, descriptions=self.labels.descriptions, codes=self.codes
        )
        chat = self.chat
        head = (*self._control(chat.before_system), *self._plain.encode(system), *self._control(chat.between))
        prefix = (*head, *self._plain.encode(before))
        suffix = (*self._plain.encode(after), *self._control(chat.after_user))
        # room for the longest answer, so that a row gets the same prompt with and without its label
        answer = max(len(self.answer_ids(name)) for name in names)
        budget = self.config.max_length - len(prefix) - len(suffix) - answer
        if budget < 1:
            raise ConfigError(
                f"prompt.max_length={self.config.max_length} leaves no room for the text: prompt and candidates take "
                f"{len(prefix) + len(suffix)} tokens and the longest answer {answer}; "
                f"set it to {len(prefix) + len(suffix) + answer + 64} or more"
            )
        if not self._shots:
            return _Frame(len(head), prefix, suffix, budget, len(prefix))
        # rows with candidates of their own have only the examples in common, and those are most of the tokens
        shared = len(head) + len(self._shots) + (len(prefix) - len(head) if names == self.labels.names else 0)
        return _Frame(len(head), (*head, *self._shots, *prefix[len(head) :]), suffix, budget, shared)

    def _control(self, text: str) -> list[int]:
        """Ids of the chat template's own text, where control tokens are meant."""
        if not text:
            return []
        with _TOKENIZER:
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _fit(self, texts: Sequence[str], budgets: Sequence[int]) -> list[tuple[list[int], bool]]:
        """The ids of each text, shortened to its budget, and whether they were shortened."""
        ends = [self._plain.encode_ends(text, budget) for text, budget in zip(texts, budgets, strict=True)]
        pieces = [piece for text, pair in zip(texts, ends, strict=True) for piece in pair or (text,)]
        tokens = iter(self._plain.encode_batch(pieces))
        kept = []
        for text, pair, budget in zip(texts, ends, budgets, strict=True):
            first = last = next(tokens)
            if pair is not None:
                last = next(tokens)
                if min(len(first.ids), len(last.ids)) <= budget:  # many characters a token: the ends are too short
                    first = last = self._plain.encode_batch([text])[0]
            if len(first.ids) > budget:
                kept.append((self._shorten(first, last, budget), True))
            else:
                kept.append((first.ids, False))
        return kept

    def read_spans(self, example: Example, candidates: Sequence[str] | None = None) -> list[tuple[int, int]]:
        """Which characters ``[start, end)`` of a row's text its prompt holds: the whole text, or what truncation keeps.

        The last character of a span may be part of a word that was cut.
        """
        names, wording = self.candidates_of(example) if candidates is None else (tuple(dict.fromkeys(candidates)), None)
        tokens = self._plain.encode_batch([example.text])[0]
        budget, whole = self._frame(names, wording).budget, len(example.text)
        if len(tokens.ids) <= budget:
            return [(0, whole)]
        end, start = self._cuts(tokens, tokens, budget)
        spans = [(0, tokens.span(end - 1)[1])] if end else []
        return [*spans, (tokens.span(start)[0], whole)] if start < len(tokens.ids) else spans

    def _shorten(self, first: Tokens, last: Tokens, budget: int) -> list[int]:
        """At most ``budget`` ids of a text; see :meth:`_cuts`."""
        end, start = self._cuts(first, last, budget)
        head, tail = first.ids[:end], last.ids[start:]
        return [*head, *self._ellipsis, *tail] if self.config.truncation == "head_tail" and tail else head + tail

    def _cuts(self, first: Tokens, last: Tokens, budget: int) -> tuple[int, int]:
        """Where a text is cut that has more than ``budget`` tokens.

        Args:
            first: begins with the text's first ``budget + 1`` tokens at least.
            last: ends with its last ``budget + 1`` tokens at least.
            budget: tokens that there is room for.

        Returns:
            The end of what is kept of ``first`` and the start of what is kept of ``last``.
        """
        kind, count = self.config.truncation, len(last.ids)
        room = budget - len(self._ellipsis)
        if kind == "tail":
            return 0, last.cut_start(count - budget)
        if kind == "head" or room < 2:  # no place for two ends and a mark
            return first.cut_end(budget), count
        return first.cut_end(room - room // 2), last.cut_start(count - room // 2)
