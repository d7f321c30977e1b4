"""The loss at answer positions is the loss over all positions with the prompt masked, gradients included."""

from __future__ import annotations

import pytest
import torch

from fenlei.config import LoraConfig, PromptConfig
from fenlei.data import Example, LabelSet
from fenlei.modeling.adapter import add_adapter
from fenlei.prompting import PromptEncoder
from fenlei.training.dataset import AnswerCollator, build_training_set, oversampled_order


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def batch_rows(tokenizer, rows):
    labels = LabelSet(["体育", "财经", "科技"])
    encoder = PromptEncoder(tokenizer, PromptConfig(max_length=256), labels)
    examples = [Example(r["text"] * (i + 1), r["output"], tuple(r["category"])) for i, r in enumerate(rows[:3])]
    return build_training_set(examples, encoder).rows


def full_batch(rows, pad):
    """As the tutorial does it: all positions, prompt masked with -100, an attention mask."""
    width = max(len(r.input_ids) for r in rows)
    ids, labels, mask = [], [], []
    for r in rows:
        fill = width - len(r.input_ids)
        ids.append(r.input_ids + [pad] * fill)
        labels.append([-100] * r.answer_start + r.input_ids[r.answer_start :] + [-100] * fill)
        mask.append([1] * len(r.input_ids) + [0] * fill)
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "attention_mask": torch.tensor(mask),
    }


def test_answer_loss_equals_full_logits_loss(tiny_model, tokenizer, batch_rows):
    model = add_adapter(tiny_model, LoraConfig(), seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1)
    kept = AnswerCollator(tokenizer.pad_token_id)(batch_rows)
    sparse = model(**kept, use_cache=False)
    full = model(**full_batch(batch_rows, tokenizer.pad_token_id), use_cache=False)
    assert sparse.logits.shape[0] == len(kept["shift_labels"]) < full.logits.shape[0] * full.logits.shape[1] / 4
    assert float(sparse.loss) == pytest.approx(float(full.loss), abs=1e-6)
    ours, theirs = gradients(model, sparse.loss), gradients(model, full.loss)
    assert ours.keys() == theirs.keys()
    assert any(g.abs().max() > 0 for g in ours.values())
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6), name


def test_a_shifted_mask_would_be_seen(tiny_model, tokenizer, batch_rows):
    """Negative control: one position off gives another loss."""
    kept = AnswerCollator(tokenizer.pad_token_id)(batch_rows)
    wrong = {**kept, "logits_to_keep": kept["logits_to_keep"].roll(1, dims=1)}
    right_loss, wrong_loss = (float(tiny_model(**b, use_cache=False).loss) for b in (kept, wrong))
    assert abs(right_loss - wrong_loss) > 1e-3


def test_oversampling():
    labels = ["a"] * 100 + ["b"] * 4
    order = oversampled_order(labels, 0.5, seed=0)
    assert sum(labels[i] == "a" for i in order) == 100
    assert sum(labels[i] == "b" for i in order) == 20  # 4 * (100 / 4) ** 0.5
    assert oversampled_order(labels, 0.0, seed=0) == list(range(104))
    assert sum(labels[i] == "b" for i in oversampled_order(labels, 1.0, seed=0)) == 100
    assert order == oversampled_order(labels, 0.5, seed=0)
