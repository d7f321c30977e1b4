"""Which tokens have to be scored to tell a set of answers apart.

Answers are token sequences that end with the end-of-turn token, so none is a prefix of another. For a label, the
*decisive prefix* is the shortest beginning of its answer that no other candidate shares. Its log-probability is the
label's score:

    score(label) = sum over the tokens t_1 .. t_k of its decisive prefix of log p(t_i | prompt, t_1 .. t_{i-1})

The events "the output begins with this decisive prefix" exclude each other, so the softmax of the scores is exactly
the model's distribution over the labels, given that the output begins like one of them. When all first tokens differ,
every k is 1 and one forward pass over the prompt scores all labels; where labels share a beginning, only the shared
tokens are added to the pass, once each, as a tree.

With ``complete`` the score is the log-probability of the whole answer, its end included. It differs where a model
begins like a label and goes on otherwise, which a tuned one hardly ever does, and costs a token or more a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: trees are large and made once
class AnswerTree:
    """The shared beginnings of a set of answers.

    Node 0 is the end of the prompt. The other nodes are tokens that are fed to the model after it.

    Attributes:
        tokens: token of each node but the root, ``(N - 1,)``; empty when all first tokens differ.
        parents: parent node of each node but the root, ``(N - 1,)``; parents come before children.
        depths: distance of each node but the root from it, ``(N - 1,)``.
        steps: per candidate, its decisive prefix, or its whole answer, as (node whose logits are read, token that is
            scored).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def node_count(self) -> int:
        """Number of nodes, the root included."""
        return len(self.tokens) + 1

    @property
    def forks(self) -> bool:
        """Whether the nodes are more than one chain, so that causal attention alone would mix branches."""
        return self.parents != tuple(range(len(self.parents)))

    @cached_property
    def reads(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(node, token) of every step of all paths one after the other, and where each path begins."""
        nodes = tuple(node for path in self.steps for node, _ in path)
        tokens = tuple(token for path in self.steps for _, token in path)
        starts = [0]
        for path in self.steps[:-1]:
            starts.append(starts[-1] + len(path))
        return nodes, tokens, tuple(starts)

    @cached_property
    def family(self) -> np.ndarray:
        """See :func:`ancestors`."""
        import numpy as np

        above: np.ndarray = np.eye(self.node_count - 1, dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent:
                above[node] |= above[parent - 1]
        return above

    @property
    def nbytes(self) -> int:
        """About the memory that it takes with all that is made of it."""
        steps = sum(map(len, self.steps))
        return 200 * len(self.steps) + 150 * steps + 100 * len(self.tokens) + len(self.tokens) ** 2


def build_tree(answers: Sequence[tuple[int, ...]], *, complete: bool = False) -> AnswerTree:
    """Builds the tree of shared beginnings.

    Args:
        answers: one token sequence a candidate, each ending with the end-of-turn token.
        complete: score whole answers instead of their decisive prefixes.

    Raises:
        ValueError: two answers are equal, or one is a beginning of another (no end-of-turn token).
    """
    lengths = _decisive_lengths(answers)
    if complete:
        lengths = [len(answer) for answer in answers]
    node_of: dict[tuple[int, ...], int] = {(): 0}
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    steps = []
    for answer, length in zip(answers, lengths, strict=True):
        path = []
        for i in range(length):
            beginning = answer[:i]
            if beginning not in node_of:
                node_of[beginning] = len(tokens) + 1
                tokens.append(beginning[-1])
                parents.append(node_of[beginning[:-1]])
                depths.append(i)
            path.append((node_of[beginning], answer[i]))
        steps.append(tuple(path))
    return AnswerTree(tuple(tokens), tuple(parents), tuple(depths), tuple(steps))


def _decisive_lengths(answers: Sequence[tuple[int, ...]]) -> list[int]:
    """Length of each answer's decisive prefix: in sorted order, the neighbours share the longest beginnings."""
    lengths = [1] * len(answers)
    order = sorted(range(len(answers)), key=lambda i: answers[i])
    for i, j in pairwise(order):
        one, other = answers[i], answers[j]
        both = min(len(one), len(other))
        shared = next((k for k in range(both) if one[k] != other[k]), both)
        if shared == both:
            raise ValueError(f"answers {one} and {other} cannot be told apart")
        lengths[i] = max(lengths[i], shared + 1)
        lengths[j] = max(lengths[j], shared + 1)
    return lengths


def ancestors(tree: AnswerTree) -> np.ndarray:
    """Which node is an ancestor of which, or itself: ``(N - 1, N - 1)`` bool, the root left out; not to be changed."""
    return tree.family
