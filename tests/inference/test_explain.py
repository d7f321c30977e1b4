"""Which sentence counts: where sentences end, and what leaving one out does."""

from __future__ import annotations

import io
import itertools
import json
import random
import sys
import time

import pytest

from fenlei import TextClassifier
from fenlei.data import Example
from fenlei.inference import sentences
from fenlei.inference.explain import explain, render
from fenlei.inference.sentences import split_sentences


def pieces(text):
    return [text[a:b] for a, b in split_sentences(text)]


class TestSentences:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [("国足今晚迎战韩国队。股市大涨！", ["国足今晚迎战韩国队。", "股市大涨！"]),
         ("他说：“好！”然后走了；真的？", ["他说：“好！”", "然后走了；", "真的？"]),
         ("标题\n第一段。\n\n第二段", ["标题\n", "第一段。\n\n", "第二段"]),
         ("真的？！太好了！！！", ["真的？！", "太好了！！！"]),
         ("One sentence. Another one! Third?", ["One sentence. ", "Another one! ", "Third?"]),
         ("Dr. Smith paid 3.14 dollars, e.g. in the U.S. of today. Then he left.",
          ["Dr. Smith paid 3.14 dollars, e.g. in the U.S. of today. ", "Then he left."]),
         ("J. K. Rowling wrote it. He approx. agreed.", ["J. K. Rowling wrote it. ", "He approx. agreed."]),
         ("1. first point\n2. second point", ["1. first point\n", "2. second point"]),
         ("He said \"No.\" Then left.", ["He said \"No.\" ", "Then left."]),
         ("Wait... What?", ["Wait... ", "What?"]),
         ("see www.example.com now.", ["see www.example.com now."]),
         ("no end", ["no end"]), ("  。  ", ["  。  "]), ("", []), (" \n ", []), ("\n\nStart。", ["\n\nStart。"])],
    )  # fmt: skip
    def test_where_they_end(self, text, expected):
        assert pieces(text) == expected

    def test_they_cover_the_text(self):
        draw = random.Random(0)
        marks = ["国足", "。", "！", "?", ".", " ", "\n", "a", "Dr", "”", "3", "；", "…", "\x00", "\ud800"]
        for _ in range(500):
            text = "".join(draw.choices(marks, k=draw.randint(0, 30)))
            assert "".join(pieces(text)) == (text if text.strip() else "")
            assert all(piece.strip() for piece in pieces(text))

    @pytest.mark.parametrize("text", ["!", ".", "。", "\n", "a. ", "…”", "a"])
    def test_a_megabyte_takes_a_moment(self, text):
        start = time.process_time()
        split_sentences(text * (1_000_000 // len(text)))
        assert time.process_time() - start < 10

    @pytest.mark.parametrize("text", ["\n ", "。\n \n", "a\n\t\n", "\r\n", "a. "])
    def test_twice_the_text_is_twice_the_work(self, text):
        """Lines of the splitter that are run, counted; white space between line ends is looked at once."""

        def steps(count):
            run = 0

            def trace(frame, event, _):
                nonlocal run
                run += event == "line"
                return trace if frame.f_code.co_filename == sentences.__file__ else None

            before = sys.gettrace()
            sys.settrace(trace)
            try:
                split_sentences(text * count)
            finally:
                sys.settrace(before)
            return run

        few = steps(200)
        assert few > 100, "something is counted"
        assert steps(400) < 2.2 * few


KEYWORDS = {"体育": "球球球球！", "财经": "股股股股！", "科技": "机机机机！"}
FILLERS = ["今天。", "下雨了？", "大家好。"]


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """Learns one word a class, at every place among all selections of words that say nothing."""
    folder = tmp_path_factory.mktemp("explain")
    lines = []
    for label, keyword in KEYWORDS.items():
        for count in range(len(FILLERS) + 1):
            for words in itertools.combinations(FILLERS, count):
                texts = ("".join([*words[:i], keyword, *words[i:]]) for i in range(count + 1))
                lines += [json.dumps({"text": text, "output": label}, ensure_ascii=False) for text in texts]
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "data": {"dev_fraction": 0.0, "candidates": "all"},
        "prompt": {"max_length": 320},
        "train": {"epochs": 25, "batch_size": 8, "learning_rate": 1e-2, "oversample": 0.0},
        "tracking": {"trackers": []},
    }
    return TextClassifier(config=settings).fit(folder / "train.jsonl", out=folder / "run")


@pytest.fixture
def predictor(trained):
    return trained._predictor


class TestEffects:
    @pytest.mark.parametrize("place", [0, 1, 3])
    def test_the_planted_sentence_counts_most(self, predictor, place):
        changes = []
        for label, keyword in KEYWORDS.items():
            words = [*FILLERS[:place], keyword, *FILLERS[place:]]
            found = explain(predictor, Example("".join(words)))
            assert found.prediction.label == label
            assert [s.text for s in found.sentences] == words
            assert found.sentences[place].runner_up_change != 0
            assert not found.grouped
            changes.append([s.change for s in found.sentences])
        # without its keyword the text is the same for all three labels, so at most one of them stays probable
        average = [sum(column) / 3 for column in zip(*changes, strict=True)]
        assert min(average) == average[place] < -0.3

    def test_all_texts_go_through_one_call(self, predictor, monkeypatch):
        calls = []
        predict = type(predictor).predict

        def count(self, examples, **more):
            calls.append([e.text for e in examples])
            return predict(self, examples, **more)

        monkeypatch.setattr(type(predictor), "predict", count)
        explain(predictor, Example("今天。球球球球！"))
        assert calls == [["今天。球球球球！", "球球球球！", "今天。"]]

    def test_the_probabilities_are_those_of_predict(self, predictor):
        text = "今天。球球球球！早上；"
        found = explain(predictor, Example(text))
        whole, first = predictor.predict([Example(text), Example("球球球球！早上；")])
        assert found.prediction.probability == pytest.approx(whole.probability, abs=1e-5)
        change = first.probabilities[whole.label] - whole.probability
        assert found.sentences[0].change == pytest.approx(change, abs=1e-5)
        assert found.sentences[0].label == first.label

    def test_a_row_s_own_candidates_and_given_ones(self, predictor):
        row = Example("今天。球球球球！", candidates=("体育", "财经"))
        found = explain(predictor, row, candidates=["财经", "科技"])
        assert found.prediction.label in ("财经", "科技")
        assert found.runner_up in ("财经", "科技")
        alone = explain(predictor, row, candidates=["科技"])
        assert (alone.prediction.label, alone.runner_up) == ("科技", None)
        assert [s.change for s in alone.sentences] == [0.0, 0.0]
        assert all(s.runner_up_change is None for s in alone.sentences)

    @pytest.mark.parametrize("text", ["", "   ", "\n"])
    def test_a_text_without_sentences(self, predictor, text):
        found = explain(predictor, Example(text))
        assert found.sentences == ()
        assert found.prediction.label in KEYWORDS

    def test_one_sentence_is_compared_with_an_empty_text(self, predictor):
        found = explain(predictor, Example("球球球球！"))
        empty = predictor.predict([Example("")])[0]
        (only,) = found.sentences
        assert only.change == pytest.approx(empty.probabilities["体育"] - found.prediction.probability, abs=1e-5)

    def test_many_sentences_are_grouped(self, predictor):
        text = "好。" * 90 + "球球球球！"
        found = explain(predictor, Example(text), most_parts=7)
        assert found.grouped
        assert len(found.sentences) == 7
        assert "".join(s.text for s in found.sentences) == text
        assert {s.text.count("。") for s in found.sentences} <= {12, 13}
        assert explain(predictor, Example("好。" * 40)).grouped is False
        with pytest.raises(ValueError, match="1 or more"):
            explain(predictor, Example("a"), most_parts=0)


class TestLongTexts:
    """What the model did not read has no effect, and nothing unread comes into view when a sentence goes."""

    @pytest.fixture(params=["head", "tail", "head_tail"])
    def case(self, predictor, request, monkeypatch):
        config = predictor.encoder.config.model_copy(update={"truncation": request.param})
        monkeypatch.setattr(predictor.encoder, "config", config)
        words = ["今天。"] * 3 + ["下雨了？"] * 30 + ["大家好。"] * 3
        places = {"head": 0, "tail": len(words), "head_tail": len(words)}
        words.insert(places[request.param], "球球球球！")
        # a rival where the model does not look
        words.insert({"head": 30, "tail": 4, "head_tail": 18}[request.param], "股股股股！")
        return predictor, request.param, words

    def test_unread_sentences_have_no_effect(self, case):
        predictor, kind, words = case
        text = "".join(words)
        seen = []
        predict = type(predictor).predict

        class Spy:
            encoder = predictor.encoder

            def predict(self, examples, **more):
                seen.extend(e.text for e in examples)
                return predict(predictor, examples, **more)

        found = explain(Spy(), Example(text))
        assert found.prediction.truncated
        assert "".join(s.text for s in found.sentences) == text
        unread = [s for s in found.sentences if s.read == "none"]
        assert len(unread) > 5
        assert all(s.change == 0.0 and s.runner_up_change == 0.0 and s.label == found.prediction.label for s in unread)
        assert "股股股股！" in [s.text for s in unread]
        assert seen[0] == text
        assert not any("股" in variant for variant in seen[1:]), "no unread text may take the place of a sentence"
        assert len(seen) == 1 + len(found.sentences) - len(unread)
        key = next(s for s in found.sentences if s.text == "球球球球！")
        assert key.read == "whole"
        assert sum(s.read == "part" for s in found.sentences) <= (2 if kind == "head_tail" else 1)

    def test_what_is_said_to_be_read_is_what_the_prompt_holds(self, case):
        predictor, _, words = case
        encoder, row = predictor.encoder, Example("".join(words))
        prompt = encoder.encode_example(row)
        kept = encoder._tokenizer.decode(prompt.input_ids[prompt.prefix_length :][: prompt.text_length])
        assert kept == "\n……\n".join(row.text[a:b] for a, b in encoder.read_spans(row))
        assert encoder.read_spans(Example("短。")) == [(0, 2)]


class TestShown:
    def test_json(self, predictor):
        found = explain(predictor, Example("今天。球球球球！")).to_dict()
        again = json.loads(json.dumps(found, ensure_ascii=False))
        assert again == found
        assert [s["text"] for s in found["sentences"]] == ["今天。", "球球球球！"]
        assert set(found) == {"label", "probability", "probabilities", "runner_up", "truncated", "grouped", "sentences"}
        assert [(s["start"], s["end"]) for s in found["sentences"]] == [(0, 3), (3, 8)]

    def test_table(self, predictor):
        from rich.console import Console

        text = "[bold red]今天[/]。球球球球！\x1b[31m坏\x07。"
        out = io.StringIO()
        Console(file=out, width=100, force_terminal=False).print(render(explain(predictor, Example(text))))
        shown = out.getvalue()
        assert "[bold red]今天[/]。" in shown
        assert "·[31m坏·" in shown
        assert "\x1b" not in shown
        assert "change of the probability when the sentence is left out" in " ".join(shown.split())
        assert "体育" in shown
