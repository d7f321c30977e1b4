"""Near duplicates against the definition: every pair compared in plain Python."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from fenlei.data.checks import near
from fenlei.data.checks.near import band_keys, near_pairs, pieces, rows_a_band
from tests.data.checks.clean import sentence


def shingles(text: str) -> set[str]:
    kept = "".join(char for char in text if char.isalnum())
    return {kept[i : i + 3] for i in range(len(kept) - 2)}


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def family(generator: random.Random) -> list[str]:
    """A text and edits of it, some slight, some heavy."""
    text = sentence(generator, 30, 90)
    found = [text, text + "图"]
    for edits in (1, 2, 4, 8, 16):
        chars = list(text)
        for _ in range(edits):
            chars[generator.randrange(len(chars))] = generator.choice("天地玄黄宇宙洪荒")
        found.append("".join(chars))
    return found


def compare(texts: list[str], similarity: float, band_similarity: float | None = None):
    keys = band_keys(texts, band_similarity or similarity, 10)
    lengths = np.array([len(text) for text in texts])
    return near_pairs(keys, lengths, texts.__getitem__, similarity, lambda *_: None)


def pairs_of(texts: list[str], similarity: float) -> dict[tuple[int, int], float]:
    found = compare(texts, similarity)
    return {(int(a), int(b)): float(s) for a, b, s in zip(found.first, found.second, found.similarity, strict=True)}


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_pairs_are_those_of_the_definition(similarity, monkeypatch):
    monkeypatch.setattr(near, "_NEIGHBOURS", 30)
    generator = random.Random(1)
    texts = [text for _ in range(60) for text in family(generator)]
    found = pairs_of(texts, similarity)
    for (a, b), value in found.items():
        assert a < b
        assert value == pytest.approx(jaccard(texts[a], texts[b]))
        assert value >= similarity
    true = {
        (a, b)
        for a, b in itertools.combinations(range(len(texts)), 2)
        if a // 7 == b // 7 and jaccard(texts[a], texts[b]) >= similarity
    }
    assert len(true) > 50
    assert found.keys() <= true
    assert len(found) >= 0.98 * len(true)
    monkeypatch.undo()
    # with fewer neighbours there are fewer pairs, but a row is seen by one of them
    rows, seen = ({row for pair in pairs for row in pair} for pairs in (true, pairs_of(texts, similarity)))
    assert seen <= rows
    assert len(seen) >= 0.98 * len(rows)


@pytest.mark.parametrize(("copies", "complete"), [(6, True), (30, False)])
def test_what_was_not_compared_is_not_called_all(copies, complete):
    generator = random.Random(3)
    text = sentence(generator, 60, 60)
    texts = [text + chr(0x4E00 + i) for i in range(copies)] + [sentence(generator) for _ in range(50)]
    found = compare(texts, 0.8)
    assert found.complete is complete
    pairs = set(itertools.combinations(range(copies), 2))
    assert ({(int(a), int(b)) for a, b in zip(found.first, found.second, strict=True)} == pairs) is complete


def test_bands_see_what_the_threshold_asks_for():
    for similarity in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0):
        width = rows_a_band(similarity)
        assert 1 - (1 - similarity**width) ** (64 // width) >= 0.98


def test_short_texts_have_no_keys():
    keys = band_keys(["今天天气很好", "今天天气很好，我们出去走一走吧", "。" * 50], 0.8, 10)
    assert [bool(row.any()) for row in keys] == [False, True, False]


def test_pieces_of_texts_do_not_run_into_each_other():
    hashes, offsets = pieces(["abcd", "", "ab", "bcd"])
    assert offsets.tolist() == [0, 2, 2, 2, 3]
    assert hashes[1] == hashes[2]
    assert len(set(hashes.tolist())) == 2


def test_a_million_times_the_same_text_stays_small(monkeypatch):
    """Rows that are all alike are paired with the first and four neighbours only, and there is a limit."""
    texts = [f"订单编号为{i:06d}的商品已经从上海仓库发出请您注意查收谢谢" for i in range(3000)]
    found = compare(texts, 0.7, 0.8)
    assert not found.complete
    assert len(texts) < len(found.first) < 2 * 16 * len(texts)
    monkeypatch.setattr(near, "_MOST_PAIRS", 1000)
    found = compare(texts, 0.7, 0.8)
    assert not found.complete
    assert 0 < len(found.first) <= 1000


def test_no_text_long_enough():
    assert band_keys(["短", "短文"], 0.8, 10).shape == (2, 16)
    assert len(compare(["短", "短文"], 0.8).first) == 0


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    generator = random.Random(2)
    texts = [text for _ in range(20) for text in family(generator)]
    whole = pairs_of(texts, 0.6)
    monkeypatch.setattr(near, "_CHUNK", 100)
    assert pairs_of(texts, 0.6) == whole
