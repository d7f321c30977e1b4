"""Codes: one token a label, the same ones for as long as a classifier lives."""

from __future__ import annotations

import json

import pytest

from fenlei import TextClassifier
from fenlei.artifact import write_json
from fenlei.config import PromptConfig, RunConfig
from fenlei.data import Example, LabelSet
from fenlei.errors import ArtifactError, ConfigError, DataError
from fenlei.modeling.calibration import Calibration
from fenlei.prompting import PromptEncoder
from fenlei.prompting.codes import assign_codes, code_texts
from tests.conftest import SENTENCES

LABELS = LabelSet(["Sports", "Space", "体育"], descriptions={"Space": "rockets and stars"})


def encoder(tokenizer, labels=LABELS, codes=None, **prompt) -> PromptEncoder:
    config = PromptConfig(**{"max_length": 384, "answer": "code", **prompt})
    return PromptEncoder(tokenizer, config, labels, "row", codes=codes)


@pytest.mark.parametrize(
    ("preset", "listed", "asked"),
    [("zh", "A. Sports\nB. Space：rockets and stars\nC. 体育\n文本：x", "只输出类别的代码"),
     ("en", "A. Sports\nB. Space: rockets and stars\nC. 体育\nText: x", "answer with the code of the class only")],
)  # fmt: skip
def test_the_prompt_lists_codes_and_the_answer_is_one(tokenizer, preset, listed, asked):
    made = encoder(tokenizer, preset=preset)
    prompt, answer = made.encode_training(Example("x", "体育"))
    text = tokenizer.decode(prompt.input_ids)
    assert listed in text
    assert asked in text
    assert tokenizer.decode(answer) == "C<|im_end|>"
    assert len(answer) == 1 + len(made.chat.turn_end)


def test_a_label_keeps_its_code_whatever_the_candidates(tokenizer):
    made = encoder(tokenizer)
    text = tokenizer.decode(made.encode("x", ["体育", "Space"]).input_ids)
    assert "C. 体育\nB. Space" in text
    assert "A. " not in text


def test_names_are_the_default_and_their_own_codes(tokenizer):
    made = encoder(tokenizer, answer="name", preset="custom", user="{% for o in options %}{{ o.code }}={{ o.label }};"
                   "{% endfor %}{{ text }}")  # fmt: skip
    assert PromptConfig().answer == "name"
    assert made.codes == {}
    assert "Sports=Sports;Space=Space;体育=体育;x" in tokenizer.decode(made.encode("x").input_ids)


def test_a_custom_template_must_show_the_codes(tokenizer):
    with pytest.raises(ConfigError, match="never shows the codes"):
        encoder(tokenizer, preset="custom", user="{{ candidates }} {{ text }}")
    user = "{% for o in options %}{{ o.code }}={{ o.label }};{% endfor %}{{ text }}"
    assert "B=Space;" in tokenizer.decode(encoder(tokenizer, preset="custom", user=user).encode("x").input_ids)
    with pytest.raises(ConfigError, match=r"prompt\.user"):
        encoder(tokenizer, preset="custom", user="{% for %}")


def test_the_tutorials_wording_has_no_codes():
    with pytest.raises(ConfigError, match=r"tutorial-zh has no place for codes; take prompt\.preset=zh"):
        RunConfig.build({"prompt": {"preset": "tutorial-zh", "answer": "code"}})


def test_codes_are_letters_first_and_never_twice():
    texts = list(code_texts())
    assert texts[:2] + texts[26:28] + texts[52:54] == ["A", "B", "a", "b", "AA", "AB"]
    assert len(texts) == len(set(texts)) == 52 + 52 * 52


def test_only_single_tokens_of_their_own_become_codes():
    # a tokenizer that lowers case, and for which B is two tokens
    def token_of(text):
        return None if "B" in text.upper() else sum(ord(c) * 256**i for i, c in enumerate(text.lower()))

    codes = assign_codes([f"label {i}" for i in range(30)], token_of)
    assert list(codes.values())[:3] == ["A", "C", "D"]
    assert len({token_of(code) for code in codes.values()}) == 30
    with pytest.raises(ConfigError, match=r"700 labels.*only 650 letters and pairs.*prompt\.answer=name"):
        assign_codes([f"label {i}" for i in range(700)], token_of)


def test_codes_that_were_stored_are_kept(tokenizer):
    made = encoder(tokenizer, codes={"Sports": "Z", "体育": "A"})
    assert made.codes == {"Sports": "Z", "Space": "B", "体育": "A"}
    for wrong in ({"Sports": "Z", "体育": "Z"}, {"Sports": "no single token"}):
        with pytest.raises(ConfigError, match="is not one token of its own"):
            encoder(tokenizer, codes=wrong)


def test_too_many_labels_for_the_tokenizer(tokenizer):
    names = [f"label {i}" for i in range(200)]
    with pytest.raises(ConfigError, match="200 labels, but this tokenizer has only"):
        encoder(tokenizer, LabelSet(names))


class TestMoreLabels:
    def test_new_labels_come_last_and_get_fresh_codes(self, tokenizer):
        made = encoder(tokenizer)
        more = made.with_labels(["News", "Art"], {"Art": "paintings"})
        assert more.labels.names == ("Sports", "Space", "体育", "News", "Art")
        assert more.codes == {**made.codes, "News": "D", "Art": "E"}
        assert "E. Art：paintings" in tokenizer.decode(more.encode("x").input_ids)
        assert [more.answer_ids(name) for name in LABELS] == [made.answer_ids(name) for name in LABELS]

    def test_the_encoder_itself_stays_as_it_is(self, tokenizer):
        made = encoder(tokenizer, answer="name")
        before = made.encode("x").input_ids
        more = made.with_labels(["News"])
        assert made.labels == LABELS
        assert made.encode("x").input_ids == before
        assert "、News" in tokenizer.decode(more.encode("x").input_ids)

    def test_rows_with_candidates_of_their_own_keep_them(self, tokenizer):
        more = encoder(tokenizer).with_labels(["News"])
        assert more.encode_example(Example("x", candidates=("Sports", "Space"))).candidates == ("Sports", "Space")
        assert more.encode_example(Example("x")).candidates == (*LABELS.names, "News")

    @pytest.mark.parametrize(
        ("names", "descriptions", "error", "says"),
        [(["Sports"], None, DataError, "'Sports' stands twice"),
         (["sports "], None, DataError, "only in white space, width or case"),
         (["A", "A"], None, DataError, "stands twice"),
         ("News", None, DataError, "put it into a list"),
         ([" "], None, DataError, "not blank"),
         (["News"], {"Sports": "x"}, DataError, "not among the new labels")],
    )  # fmt: skip
    def test_what_is_refused(self, tokenizer, names, descriptions, error, says):
        for answer in ("name", "code"):
            with pytest.raises(error, match=says):
                encoder(tokenizer, answer=answer).with_labels(names, descriptions)

    def test_labels_that_become_the_same_tokens(self, tokenizer):
        # both lone surrogates count as U+FFFD
        made = encoder(tokenizer, LabelSet(["a\ud800", "b"]), answer="name")
        with pytest.raises(ConfigError, match="become the same tokens"):
            made.with_labels(["a\ud801"])

    def test_an_alias_is_no_new_label(self, tokenizer):
        made = encoder(tokenizer, LabelSet(["Sports", "b"], aliases={"运动": "Sports"}))
        with pytest.raises(DataError, match="'运动' is itself a label"):
            made.with_labels(["运动"])


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    lines = [json.dumps({"text": t, "output": k}, ensure_ascii=False) for k, texts in SENTENCES.items() for t in texts]
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "data": {"dev_fraction": 0.0, "candidates": "all"},
        "prompt": {"max_length": 256, "answer": "code"},
        "train": {"epochs": 25, "batch_size": 4, "learning_rate": 1e-2, "oversample": 0.0},
        "tracking": {"trackers": []},
    }
    made = TextClassifier(config=settings).fit(folder / "train.jsonl", out=folder / "run")
    return made, folder


TEXTS = [text for texts in SENTENCES.values() for text in texts]


class TestSavedClassifier:
    def test_learns_and_keeps_its_codes(self, trained):
        made, folder = trained
        right = [label for label, texts in SENTENCES.items() for _ in texts]
        assert made.predict(TEXTS) == right
        stored = json.loads((folder / "run" / "classifier" / "prompt.json").read_text("utf-8"))
        assert stored["codes"] == {"体育": "A", "财经": "B", "科技": "C"}
        again = TextClassifier.load(folder / "run")
        assert again.predict_proba(TEXTS) == pytest.approx(made.predict_proba(TEXTS), abs=1e-5)

    def test_the_stored_codes_count_not_those_that_would_be_chosen_today(self, trained, monkeypatch):
        made, folder = trained
        monkeypatch.setattr("fenlei.prompting.codes.code_texts", lambda: iter("zyxwvutsr"))
        again = TextClassifier.load(folder / "run")
        assert again.predict_proba(TEXTS) == pytest.approx(made.predict_proba(TEXTS), abs=1e-5)
        assert list(again.add_labels(["新闻"])._predictor.encoder.codes.values()) == ["A", "B", "C", "z"]

    def test_codes_that_do_not_belong_to_the_labels_are_refused(self, trained, tmp_path):
        made, _ = trained
        saved = made.save(tmp_path / "copy")
        prompt = json.loads((saved / "prompt.json").read_text("utf-8"))
        prompt["codes"].pop("体育")
        write_json(saved / "prompt.json", prompt)
        manifest = json.loads((saved / "manifest.json").read_text("utf-8"))
        from fenlei.artifact import sha256_of

        manifest["files"]["prompt.json"] = sha256_of(saved / "prompt.json")
        write_json(saved / "manifest.json", manifest)
        with pytest.raises(ArtifactError, match="does not give every label a code"):
            TextClassifier.load(saved)

    def test_labels_are_added_without_touching_the_classifier(self, trained, tmp_path):
        made, _ = trained
        before = made.predict_proba(TEXTS)
        more = made.add_labels(["娱乐", "军事"], {"军事": "军队和武器"})
        assert made.classes_ == ["体育", "财经", "科技"]
        assert more.classes_ == ["体育", "财经", "科技", "娱乐", "军事"]
        assert more.predict_proba(TEXTS).shape == (12, 5)
        assert more.predict_proba(TEXTS).sum(axis=1) == pytest.approx(1.0)
        assert made.predict_proba(TEXTS) == pytest.approx(before, abs=1e-6)
        assert more.predict(TEXTS[:2], candidates=["娱乐"]) == ["娱乐", "娱乐"]

    def test_a_threshold_is_given_anew_with_added_labels(self, trained, tmp_path):
        made, _ = trained
        plain = made.calibration
        made.predictor.calibration = Calibration(threshold=0.7)
        try:
            with pytest.raises(ConfigError, match="threshold 0.7 was chosen without the labels to be added"):
                made.add_labels(["娱乐"])
            saved = made.save(tmp_path / "saved")
        finally:
            made.predictor.calibration = plain
        loaded = TextClassifier.load(saved, overrides=["calibration.threshold=0.6"]).add_labels(["娱乐"])
        assert loaded.calibration.threshold == 0.6

    def test_added_labels_are_saved_in_another_place_only(self, trained, tmp_path):
        made, folder = trained
        more = made.add_labels(["娱乐"])
        with pytest.raises(ArtifactError, match="save to another place"):
            more.save(folder / "run" / "classifier")
        again = TextClassifier.load(more.save(tmp_path / "more"))
        assert again.classes_ == more.classes_
        assert again._predictor.encoder.codes == more._predictor.encoder.codes
        assert again.predict_proba(TEXTS) == pytest.approx(more.predict_proba(TEXTS), abs=1e-5)
