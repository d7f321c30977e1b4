"""Scores against the plainest possible reference: every candidate alone, every token of it, full logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fenlei.config import InferenceConfig, LoraConfig
from fenlei.modeling.adapter import add_adapter
from fenlei.modeling.fuse import unfuse
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


def naive(model, prompt, answers, *, complete=False):
    """One forward pass a candidate, no batching, no tree, all logits; nothing of ours takes part."""
    unfuse(model)
    scores = []
    lengths = [len(a) for a in answers] if complete else decisive_lengths(answers)
    for answer, length in zip(answers, lengths, strict=True):
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


WAYS = {
    "default": {},
    "strict": {"strict": True},
    "not fused": {"fused": False},
    "prefix not shared": {"share_prefix": False},
    "padded": {"packed": False},
}


@pytest.mark.parametrize("complete", [False, True], ids=["decisive", "complete"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ANSWER_SETS)
def test_every_way_equals_each_candidate_alone(model, name, way, complete):
    answers = ANSWER_SETS[name]
    beginning = prompts(1, seed=9, low=20, high=21)[0]
    texts = [[*beginning, *prompt] for prompt in prompts(4)]
    expected = [naive(model, text, answers, complete=complete) for text in texts]
    settings = InferenceConfig(**WAYS[way], answers="complete" if complete else "decisive")
    found = CandidateScorer(model, 0, settings).score([ScoreRequest(t, answers, len(beginning)) for t in texts])
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("way", ["default", "padded"])
@pytest.mark.parametrize("count", [2, 10, 100, 1000])
def test_label_sets_of_any_size(model, count, way):
    rng = np.random.default_rng(count)
    # few first tokens, so that large sets share beginnings
    answers = {(*rng.integers(5, 25, size=rng.integers(1, 5)).tolist(), END) for _ in range(3 * count)}
    answers = tuple(sorted(answers))[:count]
    assert len(answers) == count
    prompt = prompts(1, low=20, high=40)[0]
    (found,) = CandidateScorer(model, 0, InferenceConfig(**WAYS[way])).score([ScoreRequest(prompt, answers, 16)])
    some = rng.choice(count, size=min(count, 40), replace=False)
    lengths = decisive_lengths(answers)
    unfuse(model)
    for i in some:
        with torch.no_grad():
            logp = (
                model(input_ids=torch.tensor([[*prompt, *answers[i]]]), use_cache=False).logits.float().log_softmax(-1)
            )
        expected = sum(float(logp[0, len(prompt) - 1 + k, answers[i][k]]) for k in range(lengths[i]))
        assert found[i] == pytest.approx(expected, rel=1e-6, abs=1e-5)


def passes(model, monkeypatch):
    """The number of tokens in each forward pass from here on."""
    seen = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **k: seen.append(k["input_ids"].shape[1]) or forward(self, **k)
    )
    return seen


def test_one_forward_pass_scores_all_labels(model, monkeypatch):
    """Also those that share beginnings: one row a text, not one a label."""
    scorer = CandidateScorer(model, 0)
    scorer.score([ScoreRequest([5] * 30, ANSWER_SETS["forking"])])  # with it, the comparison of packed and padded rows
    seen = passes(model, monkeypatch)
    scorer.score([ScoreRequest([5] * 30, ANSWER_SETS["forking"])])
    assert seen == [33], "the prompt and three shared tokens: 5, 8 and 8-10"
    seen.clear()
    scorer.score([ScoreRequest([5] * 30, ANSWER_SETS["first tokens differ"])])
    assert seen == [30]


def frozen(model):
    return model.requires_grad_(False)


def test_a_shared_prefix_is_computed_once(model, monkeypatch):
    scorer = CandidateScorer(frozen(model), 0, InferenceConfig(batch_tokens=64))
    beginning = list(range(5, 45))
    rows = [ScoreRequest([*beginning, *p], ANSWER_SETS["deep"], 40) for p in prompts(12, low=5, high=20)]
    scorer.score(rows[:1])
    seen = passes(model, monkeypatch)
    scorer.score(rows)
    rest = sum(len(r.prompt) - 40 + 3 for r in rows)
    assert sum(seen) == rest, "every row's own tokens and nothing else, also at the next call"


def test_prefixes_of_other_weights_are_forgotten(model, monkeypatch):
    """Negative control included: a cache that does not notice gives the old weights' scores."""
    from fenlei.modeling import scoring_packed

    beginning = list(range(5, 45))
    request = ScoreRequest([*beginning, 7, 8, 9], ANSWER_SETS["deep"], 40)
    scorer = CandidateScorer(frozen(model), 0)
    scorer.score([request])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.mul_(-1)
    found = scorer.score([request])[0]
    assert found == pytest.approx(naive(model, request.prompt, request.answers), rel=1e-6, abs=1e-5)

    monkeypatch.setattr(scoring_packed, "_weights_in_use", lambda model: "never changes")
    scorer.score([request])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.mul_(-1)
    stale = scorer.score([request])[0]
    assert np.abs(stale - naive(model, request.prompt, request.answers)).max() > 1e-3


def test_adapter_switched_off_in_between(model):
    beginning = list(range(5, 45))
    request = ScoreRequest([*beginning, 7, 8, 9], ANSWER_SETS["deep"], 40)
    scorer = CandidateScorer(frozen(model), 0)
    with_adapter = scorer.score([request])[0]
    with model.disable_adapter():
        without = scorer.score([request])[0]
        assert without == pytest.approx(naive(model, request.prompt, request.answers), rel=1e-6, abs=1e-5)
    assert np.abs(with_adapter - without).max() > 1e-3
    assert scorer.score([request])[0] == pytest.approx(with_adapter, abs=1e-6)


def test_weights_that_change_while_they_are_trained(model):
    """The dev scores of a running training: nothing may be left over from the last evaluation."""
    request = ScoreRequest([*range(5, 45), 7, 8, 9], ANSWER_SETS["deep"], 40)
    scorer = CandidateScorer(model, 0)
    assert any(p.requires_grad for p in model.parameters())
    scorer.score([request])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data = -p.data
    found = scorer.score([request])[0]
    assert found == pytest.approx(naive(model, request.prompt, request.answers), rel=1e-6, abs=1e-5)


def test_siblings_that_see_each_other_would_be_seen(model, monkeypatch):
    """Negative control: without its mask the forking tree gives other scores."""
    from fenlei.modeling import scoring_packed, scoring_padded

    request = ScoreRequest(prompts(1)[0], ANSWER_SETS["forking"])
    right = CandidateScorer(model, 0).score([request])[0]
    monkeypatch.setattr(scoring_packed, "ancestors", lambda tree: np.tri(tree.node_count - 1, dtype=bool))
    monkeypatch.setattr(scoring_padded, "ancestors", lambda tree: np.tri(tree.node_count - 1, dtype=bool))
    for way in ("default", "padded"):
        wrong = CandidateScorer(model, 0, InferenceConfig(**WAYS[way])).score([request])[0]
        assert np.abs(right - wrong).max() > 1e-3


def test_packed_rows_that_differ_are_not_packed(model, monkeypatch, caplog):
    """The comparison at the first call: a packed pass that goes wrong is not used, and the scores are right."""
    from fenlei.modeling import scoring_packed

    monkeypatch.setattr(scoring_packed, "ancestors", lambda tree: np.tri(tree.node_count - 1, dtype=bool))
    scorer = CandidateScorer(model, 0)
    requests = [ScoreRequest(p, ANSWER_SETS["forking"]) for p in prompts(5)]
    found = scorer.score(requests)
    assert "cannot be packed" in caplog.text
    for one, request in zip(found, requests, strict=True):
        assert one == pytest.approx(naive(model, request.prompt, request.answers), rel=1e-6, abs=1e-5)


def test_trees_are_compared_when_the_first_one_forks(model, monkeypatch, caplog):
    """The first call's answers need no tree; a mask that is wrong shows at a later one."""
    from fenlei.modeling import scoring_packed

    monkeypatch.setattr(scoring_packed, "ancestors", lambda tree: np.tri(tree.node_count - 1, dtype=bool))
    scorer = CandidateScorer(model, 0)
    scorer.score([ScoreRequest(p, ANSWER_SETS["first tokens differ"]) for p in prompts(2)])
    assert not caplog.text
    request = ScoreRequest(prompts(1)[0], ANSWER_SETS["forking"])
    found = scorer.score([request])[0]
    assert "cannot be packed" in caplog.text
    assert found == pytest.approx(naive(model, request.prompt, request.answers), rel=1e-6, abs=1e-5)


def test_a_window_is_compared_when_the_first_row_is_longer(monkeypatch, caplog):
    from fenlei.modeling import packed_attention

    attend = packed_attention._CpuAttention.apply
    without_window = lambda q, k, v, layout, scale, window: attend(q, k, v, layout, scale, None)  # noqa: E731
    made = other_model("mistral, window 64")
    monkeypatch.setattr(packed_attention._CpuAttention, "apply", without_window)
    scorer = CandidateScorer(made, 0)
    short, long = (ScoreRequest(prompts(1, low=n, high=n + 1)[0], ANSWER_SETS["deep"]) for n in (30, 90))
    scorer.score([short])
    assert not caplog.text
    found = scorer.score([short, long])[1]
    assert "cannot be packed" in caplog.text
    assert found == pytest.approx(naive(made, long.prompt, long.answers), rel=1e-6, abs=1e-5)


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
        "mistral": ("MistralConfig", "MistralForCausalLM", "sdpa"),
        "gemma 3": ("Gemma3TextConfig", "Gemma3ForCausalLM", "sdpa"),
        "gemma 2": ("Gemma2Config", "Gemma2ForCausalLM", "eager"),
    }[name.partition(",")[0]]
    window = {"sliding_window": int(name.split()[-1])} if "window" in name else {}
    window = {"sliding_window": 16} if "gemma 2" in name else window
    made = getattr(transformers, config)(**SMALL, **window, attn_implementation=attention)
    return getattr(transformers, kind)(made).eval()


@pytest.mark.parametrize("answers", list(ANSWER_SETS))
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral, window 16", "gemma 3, window 16", "gemma 2, eager"])
def test_other_architectures(name, answers):
    """A window shorter than the prompt, and attention that takes no boolean mask, give the reference's scores too."""
    made = other_model(name)
    scorer = CandidateScorer(made, 0)
    for prompt in prompts(2, low=50, high=70):
        found = scorer.score([ScoreRequest(prompt, ANSWER_SETS[answers], 30)])[0]
        assert found == pytest.approx(naive(made, prompt, ANSWER_SETS[answers]), rel=1e-6, abs=1e-5)
    assert (scorer._packed is None) == (name == "gemma 2, eager")


@pytest.mark.parametrize("name", ["mistral, window 16", "gemma 2, eager"])
def test_a_tree_would_be_wrong_there(name, monkeypatch):
    """Negative control: what the limit on trees is for."""
    from fenlei.modeling import scoring_padded

    made = other_model(name)
    monkeypatch.setattr(scoring_padded, "_longest_tree", lambda config: float("inf"))
    prompt = prompts(1, low=50, high=70)[0]
    found = CandidateScorer(made, 0, InferenceConfig(packed=False)).score(
        [ScoreRequest(prompt, ANSWER_SETS["forking"])]
    )[0]
    assert np.abs(found - naive(made, prompt, ANSWER_SETS["forking"])).max() > 1e-3


def test_one_token_too_few_would_be_seen(model):
    """Negative control: the comparison above can tell a wrong mask or position from a right one."""
    answers = ANSWER_SETS["deep"]
    prompt = prompts(1)[0]
    shifted = CandidateScorer(model, 0).score([ScoreRequest(prompt[:-1], answers)])[0]
    assert np.abs(shifted - naive(model, prompt, answers)).max() > 1e-3


def mixed_requests():
    """Rows of every length and kind; some share a beginning of their own, some the first tokens only, some nothing."""
    beginnings = [prompts(1, seed=s, low=30, high=31)[0] for s in range(3)]
    beginnings[1][:20] = beginnings[0][:20]
    rows = []
    for i, prompt in enumerate(prompts(36, seed=1)):
        kind = i % 4
        beginning = beginnings[kind] if kind < 3 else []
        rows.append(ScoreRequest([*beginning, *prompt], list(ANSWER_SETS.values())[i % 5], len(beginning)))
    return rows


@pytest.mark.parametrize("way", WAYS)
def test_rows_with_different_beginnings_and_candidates(model, way):
    requests = mixed_requests()
    expected = [naive(model, r.prompt, r.answers) for r in requests]
    found = CandidateScorer(model, 0, InferenceConfig(**WAYS[way], batch_tokens=200)).score(requests)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-5)


def test_long_rows_cut_into_blocks(model, monkeypatch):
    from fenlei.modeling.packed import BlockSize

    monkeypatch.setattr(BlockSize, "of", classmethod(lambda cls, model: cls(4, queries=7)))
    requests = mixed_requests()
    found = CandidateScorer(model, 0).score(requests)
    for one, request in zip(found, requests, strict=True):
        assert one == pytest.approx(naive(model, request.prompt, request.answers), rel=1e-6, abs=1e-5)


def test_batched_equals_single(model):
    """Rows of every length and kind in one call, in any batch size, give what each gives alone, in order."""
    requests = [
        ScoreRequest(p, answers) for p, answers in zip(prompts(24, seed=1), 4 * list(ANSWER_SETS.values()), strict=True)
    ]
    alone = [CandidateScorer(model, 0, InferenceConfig(batch_tokens=16)).score([r])[0] for r in requests]
    for budget in (16, 100, 100_000):
        together = CandidateScorer(model, 0, InferenceConfig(batch_tokens=budget)).score(requests)
        for a, b in zip(together, alone, strict=True):
            assert a == pytest.approx(b, rel=1e-6, abs=1e-5)


def test_padding_token_does_not_matter(model):
    requests = [ScoreRequest(p, ANSWER_SETS["deep"]) for p in prompts(6, seed=2)]
    a, b = (
        CandidateScorer(model, pad, InferenceConfig(packed=False, batch_tokens=100_000)).score(requests)
        for pad in (0, 77)
    )
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
