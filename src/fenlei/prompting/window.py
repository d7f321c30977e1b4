r"""Where a very long text may be cut before it is tokenized, without changing the tokens on either side.

Tokenizing a megabyte takes about half a second, and a prompt keeps a few hundred tokens of it. Cutting the text first
is exact only where the tokenizer's first step, a pattern that splits text into words, is known to split at the cut
whatever surrounds it. For the patterns listed below that is proven for a cut between a letter and a character of
``_CUT``'s second set:

- Matching goes from left to right, so what lies right of a split never changes with what lies left of it, as no
  pattern looks back. It remains to show that there is a split, and that the left part splits as it did in the whole.
- An alternative that takes a letter takes nothing but letters after it (``\p{L}+``, the contractions), so no match
  holds a letter followed by one of that set: every match that holds the letter ends with it.
- The only look-ahead, ``\s+(?!\S)``, follows white space, so it looks at most at the letter itself.
- Digits that are split off first (SmolLM) change nothing: neither side of the cut is a digit.
- NFC joins nothing across the cut: its characters are starters that compose with none before them.
- Byte-level BPE works within a word.

With any other tokenizer the whole text is tokenized: slower, and exact too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# letters that every Unicode version agrees on: ASCII, kana, the common CJK ideographs
_CUT = re.compile("(?<=[A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5])(?=[\n ,.!?;:，。！？；：、])")
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_CHARACTERS_A_TOKEN = 8
_SMALLEST = 512


def may_cut(spec: Mapping[str, Any]) -> bool:
    """Whether the proof above holds for a tokenizer.

    Args:
        spec: the content of its tokenizer.json.
    """
    model, normalizer = spec.get("model") or {}, spec.get("normalizer")
    plain_bpe = model.get("type") == "BPE" and not any(
        model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    )
    same_text = normalizer is None or normalizer.get("type") == "NFC"
    return plain_bpe and same_text and not spec.get("added_tokens") and _splits_known(spec.get("pre_tokenizer"))


def window_size(budget: int) -> int:
    """Characters that hold more than ``budget`` tokens of all but odd texts; the caller checks that they do."""
    return max(_SMALLEST, _CHARACTERS_A_TOKEN * budget)


def head(text: str, size: int) -> str | None:
    """The beginning of a text, about ``size`` characters; None where there is no safe cut."""
    cuts = [found.start() for found in _CUT.finditer(text, size // 2, size + 1)]
    return text[: cuts[-1]] if cuts else None


def tail(text: str, size: int) -> str | None:
    """The end of a text, about ``size`` characters; None where there is no safe cut."""
    start = max(0, len(text) - size)
    found = _CUT.search(text, start, len(text) - size // 2)
    return text[found.start() :] if found else None


def _splits_known(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    steps = list((pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer] if pre_tokenizer else []))
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return False
    *first, bytes_step = steps
    if bytes_step.get("use_regex", True):  # GPT-2's own pattern
        return all(step.get("type") == "Digits" for step in first)
    split = first[0] if len(first) == 1 else {}
    return (
        split.get("type") == "Split"
        and split.get("pattern", {}).get("Regex") in (_QWEN, _LLAMA)
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
    )
