"""The next chunk is read and tokenized while the model scores this one, and nothing else changes by it."""

from __future__ import annotations

import json
import threading

import pytest

from fenlei.errors import DataError
from fenlei.inference import bulk
from fenlei.inference.ahead import one_ahead
from tests.inference.fake import FakeClassifier, predict


def test_items_keep_their_order_and_only_one_is_made_ahead():
    made = []

    def items():
        for number in range(5):
            made.append(number)
            yield number

    seen = []
    for item in one_ahead(items()):
        seen.append(item)
        assert len(made) <= item + 2
    assert seen == made == [0, 1, 2, 3, 4]


def test_what_goes_wrong_comes_up_in_its_turn():
    def items():
        yield 1
        raise DataError("row 2 is torn")

    found = one_ahead(items())
    assert next(found) == 1
    with pytest.raises(DataError, match="row 2 is torn"):
        next(found)


def test_closing_waits_for_the_thread():
    def threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]

    found = one_ahead(iter(range(10)))
    next(found)
    assert threads()
    found.close()
    assert not threads()


class Meets(FakeClassifier):
    """Scores a chunk only once the next one has been encoded."""

    def __init__(self, chunks):
        super().__init__()
        self.encoded = [threading.Event() for _ in range(chunks)]
        self.scored = 0

    def encode(self, examples):
        self.encoded[int(examples[0].extra["n"]) // 8].set()
        return super().encode(examples)

    def score(self, texts, *, progress=None):
        self.scored += 1
        following = self.encoded[self.scored : self.scored + 1]
        assert all(event.wait(timeout=5) for event in following), "the next chunk was not encoded meanwhile"
        return super().score(texts, progress=progress)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n}", "n": n}) + "\n" for n in range(24)), encoding="utf-8")
    return path


def test_a_chunk_is_encoded_while_the_one_before_it_is_scored(tmp_path, source):
    predict(source, tmp_path / "o.jsonl", classifier=Meets(3))
    assert len((tmp_path / "o.jsonl").read_text().split("\n")) == 25


def test_encoding_in_turn_is_seen(tmp_path, source, monkeypatch):
    """Negative control."""
    monkeypatch.setattr(bulk, "one_ahead", lambda items: (item for item in items))
    with pytest.raises(AssertionError, match="was not encoded meanwhile"):
        predict(source, tmp_path / "o.jsonl", classifier=Meets(3))
