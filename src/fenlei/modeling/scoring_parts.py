"""What a scoring pass is made of: a prompt, the tree of its answers, and which logits are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fenlei.caches import BoundedCache
from fenlei.modeling.tree import AnswerTree, build_tree

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ScoreRequest:
    """A prompt and the answers to score after it; each answer ends with the end-of-turn token.

    Attributes:
        prompt: token ids.
        answers: one token sequence a candidate.
        prefix_length: how many ids at the beginning of the prompt other prompts have too; what they share is computed
            once.
    """

    prompt: Sequence[int]
    answers: tuple[tuple[int, ...], ...]
    prefix_length: int = 0


@dataclass(frozen=True)
class Part:
    """One row of a forward pass.

    Attributes:
        row: index of the request.
        prompt: token ids.
        tree: what is fed after the prompt, and what is read.
        candidates: the candidates that the tree scores, by index.
        last: no later part belongs to the same request.
    """

    row: int
    prompt: Sequence[int]
    tree: AnswerTree
    candidates: tuple[int, ...]
    last: bool

    @property
    def length(self) -> int:
        """Number of tokens fed."""
        return len(self.prompt) + self.tree.node_count - 1


# with what trees are made of: Python's numbers and tuples
_TREES: BoundedCache[tuple[tuple[tuple[int, ...], ...], bool], AnswerTree] = BoundedCache(
    64 << 20, lambda key, tree: tree.nbytes + sum(100 + 36 * len(answer) for answer in key[0])
)


def tree_of(answers: tuple[tuple[int, ...], ...], complete: bool) -> AnswerTree:
    """The tree of a set of answers; rows mostly have the same."""
    return _TREES.get((answers, complete), lambda: build_tree(answers, complete=complete))


def read_places(parts: Sequence[Part]) -> tuple[list[int], list[int]]:
    """(place, token) of all steps of all parts; a part has a place for each node, after those of the part before."""
    places: list[int] = []
    tokens: list[int] = []
    start = 0
    for part in parts:
        nodes, wanted, _ = part.tree.reads
        places += [node + start for node in nodes]
        tokens += wanted
        start += part.tree.node_count
    return places, tokens


def sum_paths(values: np.ndarray, parts: Sequence[Part]) -> list[np.ndarray]:
    """Scores of each part's candidates from the log-probabilities of all steps, ``(m,)`` in the order of the parts."""
    import numpy as np

    found, start = [], 0
    for part in parts:
        nodes, _, starts = part.tree.reads
        found.append(np.add.reduceat(values[start : start + len(nodes)], starts))
        start += len(nodes)
    return found
