"""What a row's probabilities owe to its neighbours: nothing in strict mode, rounding otherwise."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fenlei.config import InferenceConfig, LoraConfig, ModelConfig, PromptConfig
from fenlei.data import Example, LabelSet
from fenlei.inference.predictor import Predictor
from fenlei.modeling.adapter import add_adapter
from fenlei.modeling.loading import load_model, load_tokenizer
from fenlei.prompting import PromptEncoder

LABELS = ("体育", "体育新闻", "财经", "财经评论", "科技")  # some share a beginning, so trees are scored too
NEEDLE = "国足今晚迎战韩国队，股市大涨。"
WORDS = "国足今晚迎战韩国队主场球迷高呼加油股市大涨基金经理看好银行 Sports Space"
STRICT = {"strict": True}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model_and_encoder(request, tiny_folder):
    settings = ModelConfig(dtype=request.param, device="cpu")
    model = add_adapter(load_model(tiny_folder, settings), LoraConfig(), seed=1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    model.requires_grad_(False)
    tokenizer = load_tokenizer(tiny_folder, settings)
    encoder = PromptEncoder(tokenizer, PromptConfig(max_length=320), LabelSet(LABELS), "all")
    return request.param, model, encoder


def predictor_of(model, encoder, **inference):
    return Predictor(model, encoder, pad_id=0, inference=InferenceConfig(**inference))


def neighbours(count, seed):
    draw = random.Random(seed)
    return [Example("".join(draw.choices(WORDS, k=draw.randrange(1, 90)))) for _ in range(count)]


def probabilities(prediction):
    return np.array([prediction.probabilities[name] for name in LABELS])


def among(predictor, count, seed):
    """The needle's probabilities among so many neighbours, at a random place, in both orders."""
    rows = neighbours(count, seed)
    rows.insert(random.Random(seed).randrange(count + 1), Example(NEEDLE))
    for order in (rows, rows[::-1]):
        place = next(i for i, row in enumerate(order) if row.text == NEEDLE)
        yield probabilities(predictor.predict(order)[place])


@pytest.mark.parametrize("way", [{}, {"packed": False}], ids=["packed", "padded"])
@pytest.mark.parametrize("count", [1, 2, 7, 32, 128])
def test_neighbours_change_rounding_only(model_and_encoder, count, way):
    dtype, model, encoder = model_and_encoder
    predictor = predictor_of(model, encoder, **way)
    alone = probabilities(predictor.predict([Example(NEEDLE)])[0])
    for found in among(predictor, count, seed=count):
        assert np.abs(found - alone).max() <= (1e-5 if dtype == "float32" else 0.02)
        margin = np.sort(alone)[-1] - np.sort(alone)[-2]
        assert margin < 0.04 or found.argmax() == alone.argmax()


@pytest.mark.parametrize("count", [1, 2, 7, 32, 128])
def test_strict_mode_is_equal_to_the_bit(model_and_encoder, count):
    _, model, encoder = model_and_encoder
    predictor = predictor_of(model, encoder, **STRICT)
    alone = probabilities(predictor.predict([Example(NEEDLE)])[0])
    for found in among(predictor, count, seed=count):
        assert (found == alone).all()
    again = probabilities(predictor_of(model, encoder, **STRICT).predict([Example(NEEDLE)])[0])
    assert (again == alone).all(), "another predictor, nothing computed before"


def test_neighbours_would_be_seen_without_strict_mode(model_and_encoder):
    """Negative control: by default, some row's last bits do depend on its neighbours."""
    dtype, model, encoder = model_and_encoder
    if dtype == "bfloat16":
        pytest.skip("the tiny model's products are too small for it; see tests/test_real_model.py")
    predictor = predictor_of(model, encoder)
    alone = probabilities(predictor.predict([Example(NEEDLE)])[0])
    seen = [found for count in (1, 7, 32, 128) for found in among(predictor, count, seed=count)]
    assert any((found != alone).any() for found in seen)


def test_order_and_subset_do_not_matter(model_and_encoder):
    dtype, model, encoder = model_and_encoder
    rows = neighbours(40, seed=3)
    predictor = predictor_of(model, encoder)
    together = [probabilities(p) for p in predictor.predict(rows)]
    bound = 1e-5 if dtype == "float32" else 0.02
    for subset in ([5], [39, 0, 17], range(0, 40, 3)):
        found = predictor.predict([rows[i] for i in subset])
        for i, prediction in zip(subset, found, strict=True):
            assert np.abs(probabilities(prediction) - together[i]).max() <= bound
