"""Tokenization of text that is not ours: it can never become a control token."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from fenlei.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SURROGATES = re.compile("[\ud800-\udfff]")
_WHITE = " \t\r\n▁"


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
        white = {t["id"] for t in kept}
        self.control_ids = frozenset(
            (set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)) - white
        )

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and, for each, the characters ``[start, end)`` of the cleaned text it stands for.

        Lone surrogates, which no encoding can carry, count as U+FFFD.
        """
        text = clean(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids, offsets = list(encoding.ids), list(encoding.offsets)
        if self.control_ids.isdisjoint(ids):
            return ids, offsets
        return self._without_control(text, ids, offsets)

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
