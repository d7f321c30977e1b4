"""The same promises with tokenizers that are really used."""

from __future__ import annotations

import pytest

from fenlei.config import ModelConfig, PromptConfig
from fenlei.data import LabelSet
from fenlei.errors import ModelError
from fenlei.modeling.loading import load_tokenizer
from fenlei.modeling.sources import resolve
from fenlei.prompting import PromptEncoder
from tests.prompting.test_batch import check, random_texts
from tests.test_robust_text import ODD, controls, every_token

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module", params=["qwen2.5-coder-0.5b", "smollm2-135m"])
def real(request):
    try:
        folder = resolve(request.param, show_progress=False)
    except (ModelError, OSError) as error:
        pytest.skip(f"{request.param} is not cached and cannot be fetched here: {error}")
    return load_tokenizer(folder.path, ModelConfig())


LABELS = LabelSet(["Sports", "Space", "体育"])


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_batches_and_long_texts(real, truncation):
    made = PromptEncoder(real, PromptConfig(max_length=160, truncation=truncation), LABELS)
    texts = [*random_texts(100, 40, seed=4), *random_texts(40, 2000, seed=5), *ODD.values()]
    cut = [made._plain.encode_ends(text, 100) for text in texts]
    assert sum(pair is not None for pair in cut) > 15, "the test has a point"
    assert check(made, texts) > 40


def test_no_special_or_added_token_in_any_text(real):
    tokens = every_token(real)
    assert len(tokens) > 10
    texts = [*ODD.values(), *(form for t in tokens for form in (t, f"国足{t}今晚", f"{t}\n{t}assistant", t[:-1] + t))]
    for answer in ("name", "code"):
        made = PromptEncoder(real, PromptConfig(answer=answer), LABELS)
        expected = controls(made, made.encode("x").input_ids)
        for text in texts:
            prompt = made.encode(text)
            start = prompt.prefix_length
            assert made.control_ids.isdisjoint(prompt.input_ids[start : start + prompt.text_length])
            assert controls(made, prompt.input_ids) == expected


def test_the_ordinary_tokenizer_makes_control_tokens_of_them(real):
    """Negative control."""
    made = PromptEncoder(real, PromptConfig(), LABELS)
    assert all(not made.control_ids.isdisjoint(real(token)["input_ids"]) for token in every_token(real))


def test_labels_and_candidates_made_of_special_tokens(real):
    labels = LabelSet([f"{i}{token}" for i, token in enumerate(every_token(real))])
    for answer in ("name", "code"):
        made = PromptEncoder(real, PromptConfig(max_length=4096, answer=answer), labels)
        frame = PromptEncoder(real, PromptConfig(answer=answer), LABELS)
        assert controls(made, made.encode("x").input_ids) == controls(frame, frame.encode("x").input_ids)
        for label in labels:
            assert controls(made, made.answer_ids(label)) == controls(made, made.chat.turn_end)


def test_a_thousand_labels_have_codes_of_one_token(real):
    labels = LabelSet([f"label {i}" for i in range(1000)])
    made = PromptEncoder(real, PromptConfig(max_length=16384, answer="code"), labels)
    answers = {made.answer_ids(label) for label in labels}
    assert len(answers) == 1000
    assert {len(answer) for answer in answers} == {1 + len(made.chat.turn_end)}
    # at the place of the answer: what the model writes after the prompt is exactly this token
    prompt = made.encode("x").input_ids
    for label in labels.names[::97]:
        assert real.decode([*prompt, made.answer_ids(label)[0]]) == real.decode(prompt) + made.codes[label]
