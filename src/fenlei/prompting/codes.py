"""Codes: one token that stands for a label, whatever the label's name is made of."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product

from fenlei.errors import ConfigError

# Capitals first: what multiple choice looks like in the texts that models learned from. No digits: Qwen and others
# split every number into single digits, and a text is more often about a number than about a lone letter.
_LETTERS = (string.ascii_uppercase, string.ascii_lowercase)


def code_texts() -> Iterator[str]:
    """What may become a code, in order: A to Z, a to z, then pairs of letters."""
    for alphabet in _LETTERS:
        yield from alphabet
    for alphabet in _LETTERS:
        yield from map("".join, product(alphabet, repeat=2))
    for first, second in (_LETTERS, _LETTERS[::-1]):
        yield from map("".join, product(first, second))


def assign_codes(
    labels: Sequence[str], token_of: Callable[[str], int | None], taken: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Gives every label a code: those that have one keep it, the others get the next free ones in order.

    Args:
        labels: all labels, in order.
        token_of: the one token that a text becomes at the place of the answer; None when it becomes several.
        taken: codes that labels have already.

    Returns:
        label -> code, in the order of ``labels``. No two codes are the same token.

    Raises:
        ConfigError: a taken code is not one token of its own, or the tokenizer has too few such pairs of letters.
    """
    taken = taken or {}
    used: dict[int, str] = {}
    for label in labels:
        if label in taken:
            token = token_of(taken[label])
            if token is None or token in used:
                raise ConfigError(
                    f"the code {taken[label]!r} of label {label!r} is not one token of its own with this tokenizer; "
                    "use the tokenizer that the classifier was trained with"
                )
            used[token] = taken[label]
    fresh = _free(token_of, used)
    codes: dict[str, str] = {}
    for label in labels:
        code = taken.get(label) or next(fresh, None)
        if code is None:
            raise ConfigError(
                f"prompt.answer=code: {len(labels)} labels, but this tokenizer has only {len(codes)} letters and pairs "
                "of letters that are a single token; take prompt.answer=name"
            )
        codes[label] = code
    return codes


def _free(token_of: Callable[[str], int | None], used: Iterable[int]) -> Iterator[str]:
    seen = set(used)
    for text in code_texts():
        token = token_of(text)
        if token is not None and token not in seen:
            seen.add(token)
            yield text
