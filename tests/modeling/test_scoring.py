"""Scores against the plainest possible reference: every candidate alone, every token of it, full logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fenlei.config import LoraConfig
from fenlei.modeling.adapter import add_adapter
from fenlei.modeling.scoring import CandidateScorer, ScoreRequest, probabilities
from fenlei.modeling.tree import build_tree

END = 2
# first tokens differ / shared beginnings / one answer is the beginning of another (told apart by the end token)
ANSWER_SETS = {
    "first tokens differ": ((10, 11, END), (20, END), (30, 31, 32, END)),
    "shared beginnings": ((10, 11, END), (10, 12, END), (10, 12, 13, END), (20, END)),
    "prefixes of each other": ((10, END), (10, 11, END), (10, 11, 12, END)),
    "deep": ((5, 6, 7, 8, END), (5, 6, 7, 9, END), (5, 6, 10, END), (5, END), (11, 12, END)),
    "one candidate": ((10, 11, END),),
}


def decisive_lengths(answers):
    """Independent of build_tree: how many tokens until no other answer begins alike."""
    lengths = []
    for a in answers:
        k = 1
        while any(b != a and b[:k] == a[:k] for b in answers):
            k += 1
        lengths.append(k)
    return lengths


def naive(model, prompt, answers):
    """One forward pass a candidate, no batching, no tree, all logits."""
    scores = []
    for answer, length in zip(answers, decisive_lengths(answers), strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logp = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        scores.append(sum(float(logp[0, len(prompt) - 1 + i, answer[i]]) for i in range(length)))
    return np.array(scores)


def prompts(count, seed=0, low=5, high=60):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 300, size=rng.integers(low, high)).tolist() for _ in range(count)]


@pytest.fixture
def model(tiny_model):
    tuned = add_adapter(tiny_model, LoraConfig(), seed=1)
    with torch.no_grad():  # a fresh adapter changes nothing: give it something to say
        for name, p in tuned.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return tuned.eval()


@pytest.mark.parametrize("name", ANSWER_SETS)
def test_tree_equals_each_candidate_alone(model, name):
    answers = ANSWER_SETS[name]
    for prompt in prompts(4):
        found = CandidateScorer(model, 0).score([ScoreRequest(prompt, answers)])[0]
        assert found == pytest.approx(naive(model, prompt, answers), abs=1e-5)


def test_one_token_too_few_would_be_seen(model):
    """Negative control: the comparison above can tell a wrong mask or position from a right one."""
    answers = ANSWER_SETS["deep"]
    prompt = prompts(1)[0]
    shifted = CandidateScorer(model, 0).score([ScoreRequest(prompt[:-1], answers)])[0]
    assert np.abs(shifted - naive(model, prompt, answers)).max() > 1e-3


def test_batched_equals_single(model):
    """Rows of every length and kind in one call, in any batch size, give what each gives alone, in order."""
    requests = [
        ScoreRequest(p, answers) for p, answers in zip(prompts(20, seed=1), 4 * list(ANSWER_SETS.values()), strict=True)
    ]
    alone = [CandidateScorer(model, 0, 16).score([r])[0] for r in requests]
    for budget in (16, 100, 100_000):
        together = CandidateScorer(model, 0, budget).score(requests)
        for a, b in zip(together, alone, strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_padding_token_does_not_matter(model):
    requests = [ScoreRequest(p, ANSWER_SETS["deep"]) for p in prompts(6, seed=2)]
    a, b = (CandidateScorer(model, pad, 100_000).score(requests) for pad in (0, 77))
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=1e-6)


def test_scores_are_log_probabilities_of_exclusive_events(model):
    """Decisive prefixes exclude each other, so their probabilities sum to at most 1; with all tokens, to 1."""
    prompt = prompts(1)[0]
    every_first_token = tuple((t, END) for t in range(3, 320))
    scores = CandidateScorer(model, 0).score([ScoreRequest(prompt, every_first_token)])[0]
    assert 0.9 < np.exp(scores).sum() <= 1 + 1e-5
    assert np.exp(CandidateScorer(model, 0).score([ScoreRequest(prompt, ANSWER_SETS["deep"])])[0]).sum() <= 1


def test_scorer_leaves_training_mode_as_it_was(model):
    model.train()
    CandidateScorer(model, 0).score([ScoreRequest([5, 6], ANSWER_SETS["deep"])])
    assert model.training


def test_tree_shape():
    tree = build_tree(((10, 11, END), (10, 12, END), (20, END)))
    assert tree.tokens == (10,)
    assert tree.steps == (((0, 10), (1, 11)), ((0, 10), (1, 12)), ((0, 20),))
    assert build_tree(ANSWER_SETS["first tokens differ"]).node_count == 1


@pytest.mark.parametrize("answers", [((1, 2), (1, 2)), ((1,), (1, 2))])
def test_answers_that_cannot_be_told_apart(answers):
    with pytest.raises(ValueError, match="told apart"):
        build_tree(answers)


def test_probabilities():
    p = probabilities(np.array([-1000.0, -1001.0, -3000.0]), temperature=2.0)
    assert p.sum() == pytest.approx(1)
    assert p[0] / p[1] == pytest.approx(np.exp(0.5))
