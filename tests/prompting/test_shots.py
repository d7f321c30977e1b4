"""Solved examples in the prompt: the same wording as in training, and no token less for the text."""

from __future__ import annotations

import pytest

from fenlei.config import PromptConfig
from fenlei.data import Example, LabelSet
from fenlei.inference.untuned import choose_examples
from fenlei.prompting import PromptEncoder

NAMES = ("体育", "财经")
SHOTS = [Example("国足今晚迎战", "体育"), Example("股市大涨", "财经")]
TEXT = "基金经理看好银行股。" * 60


@pytest.fixture
def encoder(tokenizer):
    return PromptEncoder(tokenizer, PromptConfig(max_length=256), LabelSet(NAMES))


def test_reads_as_a_conversation(encoder, tokenizer):
    shown, count = encoder.with_shots(SHOTS, 2000)
    assert count == 2
    turns = [{"role": "system", "content": "S"}]
    before = "类别：体育、财经\n文本："
    for shot in SHOTS:
        turns += [{"role": "user", "content": before + shot.text}, {"role": "assistant", "content": shot.label}]
    turns.append({"role": "user", "content": before + "央行"})
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    found = tokenizer.decode(shown.encode("央行").input_ids)
    system = tokenizer.decode(encoder.encode("").input_ids).split("system\n")[1].split("<|im_end|>")[0]
    assert found == expected.replace("S<", f"{system}<", 1)


def test_the_text_keeps_its_room(encoder):
    shown, _ = encoder.with_shots(SHOTS, 2000)
    plain, more = encoder.encode(TEXT), shown.encode(TEXT)
    assert plain.truncated
    assert more.text_length == plain.text_length
    own = len(plain.input_ids) - plain.prefix_length
    assert more.input_ids[-own:] == plain.input_ids[-own:]
    assert encoder.encode(TEXT) == plain, "the encoder itself stays as it was"


def test_the_examples_are_a_common_beginning(encoder):
    shown, _ = encoder.with_shots(SHOTS, 2000)
    one, two = shown.encode("央行"), shown.encode("男篮")
    assert one.prefix_length == two.prefix_length
    assert one.input_ids[: one.prefix_length] == two.input_ids[: two.prefix_length]
    assert one.prefix_length > encoder.encode("央行").prefix_length
    # candidates of the row's own come after the examples
    other = shown.encode("央行", candidates=("财经", "体育"))
    assert other.input_ids[: other.prefix_length] == one.input_ids[: other.prefix_length]


def test_as_many_as_fit(encoder):
    size = len(encoder.with_shots(SHOTS[:1], 2000)[0]._shots)
    assert encoder.with_shots(SHOTS, size)[1] == 1
    assert encoder.with_shots(SHOTS, size - 1)[1] == 0
    shown, count = encoder.with_shots([Example(TEXT, "体育"), Example(TEXT, "财经")], 400)
    assert count == 2, "long texts are shortened so that every label has one"
    assert len(shown._shots) <= 400


def test_choice_is_seeded_and_goes_round_the_labels():
    rows = [Example(f"文{i}", NAMES[i % 2]) for i in range(20)]
    chosen = choose_examples(rows, 3, seed=1)
    assert len({e.text for e in chosen}) == 6
    assert all({a.label, b.label} == set(NAMES) for a, b in zip(chosen[::2], chosen[1::2], strict=True))
    assert chosen == choose_examples(rows, 3, seed=1)
    assert chosen != choose_examples(rows, 3, seed=2)
    assert len(choose_examples(rows[:3], 5, seed=1)) == 3
