"""Tokenization of text that is not ours: it can never become a control token."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError
from fenlei.prompting import window

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SURROGATES = re.compile("[\ud800-\udfff]")
_WHITE = " \t\r\n▁"


@dataclass(frozen=True)
class Tokens:
    """A text as token ids that can be cut between characters.

    Attributes:
        ids: token ids, ``(T,)``.
        span: for a position in ``ids``, the characters ``(start, end)`` of the text that the token stands for. Looked
            up one by one: few texts are cut, and listing all spans takes longer than the ids.
    """

    ids: list[int]
    span: Callable[[int], tuple[int, int]]

    def cut_end(self, end: int) -> int:
        """Largest cut at or before ``end`` that splits no character (byte-level tokens may hold a third of one)."""
        while 0 < end < len(self.ids) and self.span(end)[0] < self.span(end - 1)[1]:
            end -= 1
        return end

    def cut_start(self, start: int) -> int:
        """Smallest cut at or after ``start`` that splits no character."""
        while 0 < start < len(self.ids) and self.span(start)[0] < self.span(start - 1)[1]:
            start += 1
        return start


class PlainTokenizer:
    """The model's tokenizer without its added tokens.

    ``split_special_tokens`` covers only tokens flagged special; Qwen's ``<tool_call>`` or ``<think>`` are added
    tokens that are not. Here the added tokens are taken out of a copy of the tokenizer, except those made of white
    space alone (Gemma), so their written forms are ordinary characters in a text, a label or a candidate.

    Args:
        tokenizer: a fast tokenizer (one backed by the ``tokenizers`` library).

    Raises:
        ModelError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{type(tokenizer).__name__} has no fast version; fenlei needs a tokenizer.json "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one for most models)"
            )
        spec = json.loads(backend.to_str())
        kept = [t for t in spec["added_tokens"] if not t["content"].strip(_WHITE)]
        spec.update(added_tokens=kept, post_processor=None, truncation=None, padding=None)
        self._tokenizer = Tokenizer.from_str(json.dumps(spec))
        self._may_cut = window.may_cut(spec)
        white = {t["id"] for t in kept}
        self.control_ids = frozenset(
            (set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)) - white
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Lone surrogates, which no encoding can carry, count as U+FFFD."""
        return self.encode_batch([text])[0].ids

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, in order; the ``tokenizers`` library works on them in parallel and without the GIL."""
        texts = [clean(text) for text in texts]
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [self._tokens(text, encoding) for text, encoding in zip(texts, found, strict=True)]

    def encode_ends(self, text: str, budget: int) -> tuple[str, str] | None:
        """Shorter texts whose tokens begin and end as those of a very long text do; None where none are known.

        Args:
            text: any text.
            budget: number of tokens that are of interest at either end. Where a shorter text has more tokens than
                that, its first (last) ``budget + 1`` tokens are those of ``text``.
        """
        size = window.window_size(budget)
        if not self._may_cut or len(text) <= 2 * size:
            return None
        text = clean(text)
        first, last = window.head(text, size), window.tail(text, size)
        return None if first is None or last is None else (first, last)

    def _tokens(self, text: str, encoding: Any) -> Tokens:
        ids = list(encoding.ids)
        if self.control_ids.isdisjoint(ids):
            return Tokens(ids, encoding.token_to_chars)
        ids, offsets = self._without_control(text, ids, encoding.offsets)
        return Tokens(ids, offsets.__getitem__)

    def _without_control(
        self, text: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        # A vocabulary may hold the control tokens' spellings as ordinary pieces (Unigram models do): spell them out.
        safe_ids: list[int] = []
        safe_offsets: list[tuple[int, int]] = []
        for token, (start, end) in zip(ids, offsets, strict=True):
            if token not in self.control_ids:
                safe_ids.append(token)
                safe_offsets.append((start, end))
                continue
            for position in range(start, end):
                pieces = self._tokenizer.encode(text[position], add_special_tokens=False).ids
                pieces = [p for p in pieces if p not in self.control_ids]
                safe_ids += pieces
                safe_offsets += [(position, position + 1)] * len(pieces)
        return safe_ids, safe_offsets


def clean(text: str) -> str:
    """Replaces lone surrogates by U+FFFD; all else stays as it is."""
    return _SURROGATES.sub("\ufffd", text)
