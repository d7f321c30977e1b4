"""Rows that the classifier refuses: put aside one by one, named where the run is to stop, and no end of the others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fenlei.config import InferenceConfig, PromptConfig
from fenlei.data import Example, LabelSet
from fenlei.errors import ConfigError, DataError, ModelError, StopNow
from fenlei.inference import Predictor
from fenlei.prompting import PromptEncoder
from tests.inference.fake import NOT_FINITE, REFUSED, FakeClassifier, predict
from tests.inference.test_bulk import lines, write

TEXTS = [f"第{i}条" for i in range(40)]
BAD = {5: REFUSED, 6: NOT_FINITE, 12: NOT_FINITE, 21: "", 39: REFUSED}
for place, mark in BAD.items():
    TEXTS[place] = f"{TEXTS[place]}{mark}" if mark else ""


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.jsonl", [{"text": text, "n": i} for i, text in enumerate(TEXTS)])


class Heard:
    """What a progress bar is told."""

    def __init__(self):
        self.done, self.notes = 0, []

    def start(self, done, total):
        self.done = done

    def advance(self, rows):
        self.done += rows

    def note(self, text):
        self.notes.append(text)


def test_they_are_put_aside_with_their_reasons_and_all_others_are_answered(tmp_path, source):
    out, heard = tmp_path / "o.jsonl", Heard()
    counts = predict(source, out, progress=heard).counts
    assert (counts.read, counts.written, counts.rejected) == (40, 35, 5)
    assert [row["n"] for row in lines(out)] == [i for i in range(40) if i not in BAD]
    rejected = lines(tmp_path / "o.jsonl.rejected.jsonl")
    assert [row["source"] for row in rejected] == [f"{source}:{place + 1}" for place in BAD]
    assert [row["row"]["n"] for row in rejected] == list(BAD)
    words = {REFUSED: "leaves no room", NOT_FINITE: "not finite", "": "text is empty"}
    assert all(words[mark] in row["reason"] for mark, row in zip(BAD.values(), rejected, strict=True))
    assert heard.done == 40, "rows that are scored again are not counted twice"
    assert heard.notes == [f"put aside, as every such row: {source}:6: leaves no room for the text"]


class DiesOf(FakeClassifier):
    """Is interrupted when it sees a text."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def score(self, texts, *, progress=None):
        if any(self.text in example.text for example in texts):
            raise StopNow(15)
        return super().score(texts, progress=progress)


@pytest.mark.parametrize("text", ["第8条", "第14条", "第38条"])
def test_going_on_ends_with_the_same_bytes(tmp_path, source, text):
    predict(source, tmp_path / "whole.jsonl")
    with pytest.raises(StopNow):
        predict(source, tmp_path / "o.jsonl", classifier=DiesOf(text))
    predict(source, tmp_path / "o.jsonl", resume=True)
    for ending in ("", ".rejected.jsonl"):
        assert (tmp_path / f"o.jsonl{ending}").read_bytes() == (tmp_path / f"whole.jsonl{ending}").read_bytes()


@pytest.mark.parametrize(("place", "mark", "kind"), [(13, REFUSED, ConfigError), (14, NOT_FINITE, ModelError)])
def test_the_row_is_named_where_the_run_is_to_stop_and_can_be_put_aside_later(tmp_path, place, mark, kind):
    texts = [f"第{i}条{mark if i == place else ''}" for i in range(30)]
    source = write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    out, stop = tmp_path / "o.jsonl", ("data.on_bad_row=stop",)
    with pytest.raises(kind, match=rf"in\.jsonl:{place + 1}: .*\n.*go on with --resume data\.on_bad_row=skip"):
        predict(source, out, overrides=stop)
    with pytest.raises(kind, match=rf"in\.jsonl:{place + 1}: "):
        predict(source, out, overrides=stop, resume=True)
    assert predict(source, out, resume=True).counts.rejected == 1
    predict(source, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_in_the_first_chunk_nothing_is_left_to_go_on_with(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "a"}, {"text": REFUSED}])
    with pytest.raises(ConfigError, match=r"in\.jsonl:2: .*\n.*begin again with data\.on_bad_row=skip"):
        predict(source, tmp_path / "o.jsonl", overrides=("data.on_bad_row=stop",))
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_run_that_stops_at_bad_rows_ends_at_one_it_finds_only_when_going_on(tmp_path, source):
    """Begun with skip, gone on with stop."""
    out = tmp_path / "o.jsonl"
    with pytest.raises(StopNow):
        predict(source, out, classifier=DiesOf("第17条"))
    with pytest.raises(DataError, match=r"in\.jsonl:22: column 'text': the text is empty"):
        predict(source, out, resume=True, overrides=("data.on_bad_row=stop",))


@pytest.mark.parametrize(("mark", "kind"), [(REFUSED, ConfigError), (NOT_FINITE, ModelError)])
def test_rows_refused_one_and_all_end_the_run_with_one_reason(tmp_path, mark, kind):
    texts = [f"{i}{mark}" for i in range(64)]
    out = tmp_path / "o.jsonl"
    source = write(tmp_path / "in.jsonl", [{"text": ""}, *({"text": text} for text in texts)])
    with pytest.raises(kind, match=r"in\.jsonl: .* none of the first \d\d rows, e\.g\. .*in\.jsonl:17: ") as error:
        predict(source, out)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"], "a mended setting begins anew"
    for good in (0, 10):  # negative control: a single answer shows that the rows are at fault
        mixed = [*texts[:good], "good", *texts[good:]]
        write(source, [{"text": text} for text in mixed])
        assert predict(source, out, overwrite=True).counts.written == 1


def test_few_rows_that_are_all_refused_are_listed(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": REFUSED}] * 3)
    with pytest.raises(DataError, match=r"none of its 3 rows can be used:\n.*in\.jsonl:1: leaves no room"):
        predict(source, tmp_path / "o.jsonl")
    assert len(lines(tmp_path / "o.jsonl.rejected.jsonl")) == 3


class Small(FakeClassifier):
    """Has room for a few rows at once."""

    def __init__(self, room, words="CUDA out of memory. Tried to allocate 2 GiB"):
        super().__init__()
        self.room, self.words, self.forgotten = room, words, 0

    def forget_failed(self):
        self.forgotten += 1

    def score(self, texts, *, progress=None):
        if progress:
            progress(1)  # a first pass went well
        if len(texts) > self.room:
            raise RuntimeError(self.words)
        return super().score(texts, progress=lambda rows: progress(rows - 1))


def test_with_too_little_memory_fewer_rows_are_scored_at_once(tmp_path, source):
    classifier, heard = Small(3), Heard()
    out = tmp_path / "o.jsonl"
    counts = predict(source, out, classifier=classifier, progress=heard).counts
    assert (counts.written, counts.rejected, heard.done) == (35, 5, 40)
    assert max(len(call) for call in classifier.calls) <= 3
    assert classifier.forgotten > 4
    said = [note.split(" (")[0] for note in heard.notes if note.startswith("out")]
    assert said == ["out of memory with 7 rows at once: going on with fewer where needed"]


def test_a_row_that_takes_all_memory_by_itself_is_named_and_never_put_aside(tmp_path, source):
    out = tmp_path / "o.jsonl"
    with pytest.raises(StopNow):
        predict(source, out, classifier=DiesOf("第8条"))
    with pytest.raises(ModelError, match=r"in\.jsonl:9: not enough memory to score this row, even by itself \(CUDA"):
        predict(source, out, resume=True, classifier=Small(0))
    predict(source, out, resume=True)
    predict(source, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_fault_of_the_program_is_no_bad_row(tmp_path, source):
    with pytest.raises(RuntimeError, match="device-side assert"):
        predict(source, tmp_path / "o.jsonl", classifier=Small(3, "CUDA error: device-side assert"))


class TestRealModel:
    """A tiny model that gives no number where a text holds a certain token; a label set that leaves no room."""

    NAMES = tuple(f"标签第{i}号" for i in range(30))

    @pytest.fixture
    def classifier(self, tiny_model, tokenizer):
        import torch

        (poison,) = tokenizer("Z", add_special_tokens=False)["input_ids"]

        def spoil(module, args, output):
            return output.masked_fill((args[0] == poison)[..., None], torch.nan)

        tiny_model.get_input_embeddings().register_forward_hook(spoil)
        encoder = PromptEncoder(tokenizer, PromptConfig(max_length=256), LabelSet(self.NAMES), "row")
        predictor = Predictor(tiny_model, encoder, pad_id=0, inference=InferenceConfig(batch_tokens=512))
        return SimpleNamespace(config=FakeClassifier().config, labels=encoder.labels, predictor=predictor)

    def test_such_rows_are_put_aside_and_their_neighbours_get_their_own_answers(self, classifier, tmp_path):
        own = list(self.NAMES[:3])
        rows = [{"text": f"国足迎战{i}", "candidates": own} for i in range(20)]
        rows[7]["text"] += "Z"
        rows[11]["candidates"] = None  # so all of them, for which there is no room
        out = tmp_path / "o.jsonl"
        counts = predict(write(tmp_path / "in.jsonl", rows), out, classifier=classifier, chunk_rows=16).counts
        assert (counts.read, counts.written, counts.rejected) == (20, 18, 2)
        refused, poisoned = sorted(lines(tmp_path / "o.jsonl.rejected.jsonl"), key=lambda row: row["reason"])
        assert "leaves no room for the text" in refused["reason"]
        assert refused["row"] == rows[11]
        assert "not finite" in poisoned["reason"]
        assert poisoned["row"] == rows[7]
        for row in lines(out):
            (alone,) = classifier.predictor.predict([Example(row["text"], candidates=tuple(own))])
            expected = [alone.probabilities[name] for name in own]
            assert np.abs(np.subtract(list(row["probabilities"].values()), expected)).max() < 1e-5

    def test_all_at_once_they_end_the_call(self, classifier):
        """Negative control: without looking for the row at fault, it takes all others with it."""
        own = self.NAMES[:3]
        with pytest.raises(ModelError, match="not finite"):
            classifier.predictor.predict([Example("a", candidates=own), Example("Z", candidates=own)])
        with pytest.raises(ConfigError, match="no room"):
            classifier.predictor.predict([Example("a", candidates=own), Example("b")])
