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
    "forking": ((5, 6, END), (5, 7, END), (8, 9, END), (8, 10, END), (8, 10, 11, END), (12, END)),
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


def test_one_forward_pass_scores_all_labels(model, monkeypatch):
    """Also those that share beginnings: one row a text, not one a label."""
    seen = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **k: seen.append(tuple(k["input_ids"].shape)) or forward(self, **k)
    )
    CandidateScorer(model, 0).score([ScoreRequest([5] * 30, ANSWER_SETS["forking"])])
    assert seen == [(1, 33)], "the prompt and three shared tokens: 5, 8 and 8-10"
    seen.clear()
    CandidateScorer(model, 0).score([ScoreRequest([5] * 30, ANSWER_SETS["first tokens differ"])])
    assert seen == [(1, 30)]


def test_siblings_that_see_each_other_would_be_seen(model, monkeypatch):
    """Negative control: without its mask the forking tree gives other scores."""
    from fenlei.modeling import scoring

    request = ScoreRequest(prompts(1)[0], ANSWER_SETS["forking"])
    right = CandidateScorer(model, 0).score([request])[0]
    mask = scoring._tree_mask

    def causal(rows, width):
        import torch

        found, positions = mask(rows, width)
        return torch.ones_like(found).tril(), positions

    monkeypatch.setattr(scoring, "_tree_mask", causal)
    wrong = CandidateScorer(model, 0).score([request])[0]
    assert np.abs(right - wrong).max() > 1e-3


SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": END,
}  # fmt: skip


def other_model(name):
    import transformers

    torch.manual_seed(0)
    config, kind, attention = {
        "llama": ("LlamaConfig", "LlamaForCausalLM", "sdpa"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", "sdpa"),
        "mistral, window 16": ("MistralConfig", "MistralForCausalLM", "sdpa"),
        "gemma 3, window 16": ("Gemma3TextConfig", "Gemma3ForCausalLM", "sdpa"),
        "gemma 2, eager": ("Gemma2Config", "Gemma2ForCausalLM", "eager"),
    }[name]
    window = {"sliding_window": 16} if "window" in name or "gemma" in name else {}
    made = getattr(transformers, config)(**SMALL, **window, attn_implementation=attention)
    return getattr(transformers, kind)(made).eval()


@pytest.mark.parametrize("answers", ["deep", "forking"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral, window 16", "gemma 3, window 16", "gemma 2, eager"])
def test_other_architectures(name, answers):
    """A window shorter than the prompt, and attention that takes no boolean mask, give the reference's scores too."""
    made = other_model(name)
    for prompt in prompts(2, low=50, high=70):
        found = CandidateScorer(made, 0).score([ScoreRequest(prompt, ANSWER_SETS[answers])])[0]
        assert found == pytest.approx(naive(made, prompt, ANSWER_SETS[answers]), abs=1e-4)


@pytest.mark.parametrize("name", ["mistral, window 16", "gemma 2, eager"])
def test_a_tree_would_be_wrong_there(name, monkeypatch):
    """Negative control: what the limit on trees is for."""
    from fenlei.modeling import scoring

    made = other_model(name)
    monkeypatch.setattr(scoring, "_longest_tree", lambda config: float("inf"))
    prompt = prompts(1, low=50, high=70)[0]
    found = CandidateScorer(made, 0).score([ScoreRequest(prompt, ANSWER_SETS["forking"])])[0]
    assert np.abs(found - naive(made, prompt, ANSWER_SETS["forking"])).max() > 1e-3


def test_one_token_too_few_would_be_seen(model):
    """Negative control: the comparison above can tell a wrong mask or position from a right one."""
    answers = ANSWER_SETS["deep"]
    prompt = prompts(1)[0]
    shifted = CandidateScorer(model, 0).score([ScoreRequest(prompt[:-1], answers)])[0]
    assert np.abs(shifted - naive(model, prompt, answers)).max() > 1e-3


def test_batched_equals_single(model):
    """Rows of every length and kind in one call, in any batch size, give what each gives alone, in order."""
    requests = [
        ScoreRequest(p, answers) for p, answers in zip(prompts(24, seed=1), 4 * list(ANSWER_SETS.values()), strict=True)
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
