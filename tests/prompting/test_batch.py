"""Many texts at once, and very long ones: the same ids as one whole text at a time."""

from __future__ import annotations

import json
import random

import pytest

from fenlei.config import PromptConfig
from fenlei.data import Example, LabelSet
from fenlei.prompting import PromptEncoder, window
from fenlei.prompting.plain import PlainTokenizer

LABELS = LabelSet(["Sports", "Space", "体育"])
_PIECES = [
    "国足今晚迎战韩国队", "，", "。", "！\n", "\n\n", " ", "   ", "\t", "a", "I'll", "don't ", "word", "Word.", "\r\n",
    "3.14", "2026", "\x00", "\ud800", "\udfff", "\ufffd", "e\u0301", "\u0301", "\uac01", "\u1100\u1161\u11a8", "ﬁ",
    "ß", "\u0130", "\u200b", "\u2028", "\ufeff", "👩‍👩‍👧", "𠮷", "<|im_end|>", "<|im_start|>assistant\n", "<tool_call>",
    "<|endoftext|>", "ſ", "'", "…", "——", "“引号”", "カタカナ", "ひらがな", ";", "；", "\u037e", "x" * 50, "啊" * 40,
    "\n" * 30, "!" * 30,
]  # fmt: skip


def random_texts(count, most, seed):
    draw = random.Random(seed)
    return ["".join(draw.choices(_PIECES, k=draw.randint(0, most))) for _ in range(count)]


def whole_text_ids(made: PromptEncoder, text: str, budget: int) -> tuple[list[int], bool]:
    """The definition, told again: tokenize the whole text, then cut between characters."""
    plain = made._plain
    encoding = plain._tokenizer.encode("".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in text))
    ids, offsets = encoding.ids, encoding.offsets
    if len(ids) <= budget:
        return ids, False

    def splits(cut):
        return 0 < cut < len(ids) and offsets[cut][0] < offsets[cut - 1][1]

    def head(end):
        while splits(end):
            end -= 1
        return ids[:end]

    def tail(start):
        while splits(start):
            start += 1
        return ids[start:]

    kind, room = made.config.truncation, budget - len(made._ellipsis)
    if kind == "tail":
        return tail(len(ids) - budget), True
    if kind == "head" or room < 2:
        return head(budget), True
    return [*head(room - room // 2), *made._ellipsis, *tail(len(ids) - room // 2)], True


def check(made: PromptEncoder, texts: list[str]) -> int:
    """Compares a call with all texts to one text at a time and to the definition; returns how many were shortened."""
    examples = [Example(text, candidates=("Sports", "体育") if i % 3 == 0 else None) for i, text in enumerate(texts)]
    together = made.encode_examples(examples)
    assert together == [made.encode_example(example) for example in examples]
    for example, prompt in zip(examples, together, strict=True):
        budget = made._frame(*made.candidates_of(example)).budget
        expected, truncated = whole_text_ids(made, example.text, budget)
        found = prompt.input_ids[prompt.prefix_length : prompt.prefix_length + prompt.text_length]
        assert (found, prompt.truncated) == (expected, truncated), repr(example.text[:200])
        assert made.control_ids.isdisjoint(found)
    return sum(prompt.truncated for prompt in together)


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_a_batch_is_its_texts_one_by_one(tokenizer, truncation):
    made = PromptEncoder(tokenizer, PromptConfig(max_length=256, truncation=truncation), LABELS)
    assert check(made, ["", " ", "\x00", "\ud800", *random_texts(150, 12, seed=1)]) > 20


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_long_texts_are_cut_first_and_lose_nothing(tokenizer, truncation):
    made = PromptEncoder(tokenizer, PromptConfig(max_length=230, truncation=truncation), LABELS)
    texts = random_texts(60, 3000, seed=2)
    cut = [made._plain.encode_ends(text, made._frame(LABELS.names, None).budget) for text in texts]
    assert sum(pair is not None for pair in cut) > 30, "the test has a point"
    assert all(len(first) + len(last) < len(text) for pair, text in zip(cut, texts, strict=True) if pair
               for first, last in [pair])  # fmt: skip
    assert check(made, texts) > 30


def test_texts_with_many_characters_a_token_are_read_whole(tokenizer, monkeypatch):
    monkeypatch.setattr(window, "window_size", lambda budget: 40)  # so short that it holds fewer tokens than the budget
    made = PromptEncoder(tokenizer, PromptConfig(max_length=256), LABELS)
    assert check(made, random_texts(40, 300, seed=3)) > 10


def test_candidates_for_all_rows(tokenizer):
    made = PromptEncoder(tokenizer, PromptConfig(max_length=256), LABELS)
    examples = [Example("a", candidates=("Sports", "Space")), Example("b")]
    found = made.encode_examples(examples, ["体育", "Space", "体育"])
    assert [p.candidates for p in found] == [("体育", "Space")] * 2
    assert found == [made.encode(e.text, ["体育", "Space"]) for e in examples]
    assert made.encode_examples([]) == []


def test_a_megabyte(tokenizer):
    made = PromptEncoder(tokenizer, PromptConfig(max_length=256), LABELS)
    check(made, ["国足今晚，" * 66_000, "a" * 1_000_000, " " * 1_000_000, "\x00" * 1_000_000, "ok"])


class TestWhereACutIsSafe:
    def spec(self, tokenizer):
        return json.loads(PlainTokenizer(tokenizer)._tokenizer.to_str())

    def test_known_patterns(self, tokenizer):
        assert window.may_cut(self.spec(tokenizer))  # GPT-2's
        qwen = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": window._QWEN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }
        assert window.may_cut({**self.spec(tokenizer), "pre_tokenizer": qwen})

    @pytest.mark.parametrize(
        "change",
        [{"normalizer": {"type": "NFKC"}}, {"model": {"type": "Unigram"}}, {"model": {"type": "BPE", "dropout": 0.1}},
         {"added_tokens": [{"content": " "}]}, {"pre_tokenizer": None}, {"pre_tokenizer": {"type": "Metaspace"}},
         {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
         {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
             {"type": "Split", "pattern": {"Regex": ".+"}, "behavior": "Isolated", "invert": False},
             {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}}],
    )  # fmt: skip
    def test_any_other_tokenizer_reads_the_whole_text(self, tokenizer, change):
        assert not window.may_cut({**self.spec(tokenizer), **change})

    def test_an_unsafe_cut_would_be_noticed(self, tokenizer, monkeypatch):
        """Negative control: cut anywhere."""
        monkeypatch.setattr(window, "head", lambda text, size: text[:size])
        monkeypatch.setattr(window, "window_size", lambda budget: budget // 4)
        monkeypatch.setattr(window, "tail", lambda text, size: text[-size:])
        made = PromptEncoder(tokenizer, PromptConfig(max_length=230), LABELS)
        texts = [pre + "Sports" * 300 for pre in ("", "a", "ab", "abc")]
        budget = made._frame(LABELS.names, None).budget
        pieces = [made._plain.encode_ends(text, budget)[0] for text in texts]
        whole = [made._plain.encode(text) for text in texts]
        cut = [made._plain.encode(piece) for piece in pieces]
        assert any(w[: len(c)] != c for w, c in zip(whole, cut, strict=True))
