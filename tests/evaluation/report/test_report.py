"""Figures, rows and model card of a report, without a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fenlei.evaluation import evaluate_predictions
from fenlei.evaluation.notes import ENGLISH
from fenlei.evaluation.report import (
    Comparison,
    Cost,
    LabelIssue,
    ReportData,
    Row,
    Rung,
    model_card,
    report_json,
    write_report,
)
from fenlei.evaluation.report import write as writing
from fenlei.evaluation.report.card import escape, languages
from fenlei.evaluation.report.figures import curve, length_bins, truncation_effect, verdict
from fenlei.evaluation.report.rows import MOST_ROWS, bytes_in_page, compact_curves, compact_rows
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import make_predictions
from tests.evaluation.report.made import LABELS, made_report

EVIL = '</script><img src=x onerror="alert(1)"><!--'


@pytest.fixture(scope="module")
def data():
    return made_report(300)


def row(i: int, right: bool = True, text: str = "文") -> Row:
    return Row(str(i), text, "a", "a" if right else "b", {"a": 0.9, "b": 0.1} if right else {"a": 0.2, "b": 0.8})


def test_the_same_figures_on_page_and_in_json(data, tmp_path):
    page = write_report(data, tmp_path / "new" / "report")
    found = json.loads((page.parent / "report.json").read_text("utf-8"))
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert block is not None
    shown = json.loads(block[1])
    for key in ("headline", "ladder", "curve", "length", "truncation", "cost", "config", "versions", "labels"):
        assert shown[key] == found[key]
    assert found == json.loads(json.dumps(report_json(data)))
    assert "text" not in found["label_issues"][0], "texts are on the page only"
    assert data.rows[0].text not in (page.parent / "report.json").read_text("utf-8")


def test_no_markup_of_the_data_is_in_the_page(tmp_path, monkeypatch):
    evil = made_report(30, evil=EVIL)
    page = write_report(evil, tmp_path).read_text("utf-8")
    assert "<img" not in page
    assert page.count("</script>") == 3
    assert "&lt;/script&gt;" in page, "the title"
    # negative control: without the escaping the data ends its own block
    monkeypatch.setattr(writing, "data_block", json.dumps)
    assert "<img" in writing.render_page(evil).decode()


def test_odd_characters_survive(tmp_path):
    odd = "\ud800 \u2028 \u2029 \x00 {{data}} {{script}}"
    page = write_report(ReportData(odd, "test", [odd], rows=[Row("1", odd, odd, odd, {odd: 1.0})]), tmp_path)
    block = re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert block is not None
    assert json.loads(block[1])["browser"]["text"] == [odd]
    json.loads((tmp_path / "report.json").read_text("utf-8"))


def test_a_damaged_write_leaves_the_old_report(data, tmp_path, monkeypatch):
    page = write_report(data, tmp_path)
    before = page.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="No space"):
        write_report(replace(data, title="other"), tmp_path)
    monkeypatch.undo()
    assert page.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "report.json"]


def test_texts_are_cut_to_the_budget_right_ones_first():
    rows = [row(i, right=i % 10 > 0, text="汉" * 1000) for i in range(100)]
    found = compact_rows(rows, ["a", "b"], budget=100_000)
    assert found["limit"] is not None
    assert sum(len(t.encode()) for t in found["text"]) <= 100_000
    assert len(found["text"][0]) > 3 * len(found["text"][1]), "wrong ones keep more"
    assert set(found["length"]) == {1000}
    assert compact_rows(rows, ["a", "b"])["limit"] is None


def test_markup_counts_as_it_stands_in_the_page(tmp_path):
    """A ``<`` takes six bytes there."""
    html = "<p class=a>&nbsp;</p>" * 30
    rows = [row(i, right=i % 10 > 0, text=f"{i}{html}") for i in range(10_000)]
    issues = [LabelIssue(str(i), "<" * 2000, "a", "b", 0.1) for i in range(500)]
    page = write_report(ReportData("r", "test", ["a", "b"], rows=rows, label_issues=issues), tmp_path)
    assert 4_000_000 < page.stat().st_size < 8_000_000
    for text in ("plain", "汉字", 'quote " \\ \n\x00', "<a&b>", "\ud800", "\u2028"):
        block = writing.data_block({"": text}).encode("utf-8", "backslashreplace")
        assert bytes_in_page(text) == pytest.approx(len(block) - len('{"":}'), abs=3)


def test_a_page_of_many_labels_is_small(tmp_path):
    names = [f"l{i}" for i in range(1500)]
    gold = [names[i % 1500] for i in range(3000)]
    made = make_predictions([tuple(names[:2])] * 3000, [[-0.1, -2.4]] * 3000, [False] * 3000, Calibration())
    metrics = evaluate_predictions(gold, made, names, full=False)
    page = write_report(ReportData("r", "test", names, metrics=metrics), tmp_path)
    assert page.stat().st_size < 1_000_000
    block = re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert block is not None
    assert json.loads(block[1])["metrics"]["confusion"] == [[i, 0, 2] for i in range(1500)]
    assert len(json.loads((tmp_path / "report.json").read_text("utf-8"))["metrics"]["confusion"]) == 1500


def test_of_too_many_rows_all_wrong_ones_stay():
    rows = [row(i, right=i % 100 > 0) for i in range(MOST_ROWS + 5000)]
    found = compact_rows(rows, ["a", "b"])
    assert found["total"] == len(rows)
    assert len(found["id"]) <= MOST_ROWS
    assert sum(g != s for g, s in zip(found["gold"], found["said"], strict=True)) == 250
    assert [int(i) for i in found["id"]] == sorted(int(i) for i in found["id"])


def test_the_right_label_is_always_among_the_probabilities():
    many = {f"l{i}": (20 - i) / 210 for i in range(20)}
    found = compact_rows([Row("1", "t", "l19", "l0", many)], list(many))
    assert found["top"][0][0::2] == [0, 1, 2, 3, 4, 19]


def test_curves_are_small_and_those_of_the_largest_classes(data):
    found = compact_curves(data.metrics)
    assert [c["label"] for c in found["curves"]] == [k for k in data.labels if data.metrics["per_class"][k]["support"]]
    assert found["average"] == data.metrics["average_precision"]
    for small in found["curves"]:
        whole = data.metrics["precision_recall"][small["label"]]
        assert small["ap"] == whole["average_precision"]
        for key in ("recall", "precision", "threshold"):
            assert [v / 1000 for v in small[key]] == pytest.approx(whole[key], abs=0.00051)
    some = compact_curves(data.metrics, most=3)
    assert some["classes"] == found["classes"] > 3
    support = {k: row["support"] for k, row in data.metrics["per_class"].items()}
    largest = sorted(support.values(), reverse=True)[:3]
    assert sorted((c["rows"] for c in some["curves"]), reverse=True) == largest
    assert compact_curves(None) is None
    assert compact_curves({"per_class": {}, "precision_recall": {"a": None}}) is None, "no class has rows"
    assert compact_curves({"per_class": {}}) is None, "of a version that had no curves"


def test_lengths_and_truncation():
    rows = [replace(row(i, right=i < 80, text="x" * (i + 1)), truncated=i >= 90) for i in range(100)]
    bins = length_bins(rows)
    assert len(bins) == 8
    assert sum(b["n"] for b in bins) == 100
    assert (bins[0]["accuracy"], bins[-1]["accuracy"]) == (1.0, 0.0)
    assert bins[0]["high"] < bins[1]["low"]
    assert len(length_bins([row(i) for i in range(100)])) == 1, "equal lengths stay together"
    assert length_bins([]) == []
    effect = truncation_effect(rows)
    assert effect is not None
    assert (effect["shortened"]["n"], effect["shortened"]["accuracy"], effect["whole"]["right"]) == (10, 0.0, 80)


@pytest.mark.parametrize(
    ("rungs", "comparisons", "said"),
    [
        ([("tfidf", 0.8), ("tuned", 0.9)], [(0.1, 0.01), (0.1, 0.2)], "better"),
        ([("tfidf", 0.8), ("tuned", 0.9)], [(0.1, 0.06), (0.1, None)], "same"),
        ([("tfidf", 0.9), ("tuned", 0.9)], [(0.0, 1.0)], "same"),
        ([("tfidf", 0.9), ("tuned", 0.8)], [(-0.1, 0.2), (-0.1, 0.03)], "worse"),
        ([("tfidf", 0.9), ("tuned", 0.9)], [(0.01, 0.04), (-0.3, 0.002)], "mixed"),
        ([("tfidf", 0.5), ("tuned", 0.9)], [], "better"),
        ([("tfidf", 0.88), ("tuned", 0.9)], [], "unclear"),
        ([("tfidf", 0.9), ("tuned", 0.5)], [], "worse"),
        ([("tuned", 0.9)], [], "unknown"),
    ],
)
def test_the_verdict(rungs, comparisons, said):
    given = {key: Rung(key, a, (a - 0.03, a + 0.03)) for key, a in rungs}
    pairs = [
        # the intervals are too narrow where few rows differ: they decide nothing
        Comparison("tfidf", "tuned", metric, difference, (difference - 0.001, difference + 0.001), p)
        for metric, (difference, p) in zip(("accuracy", "macro_f1"), comparisons, strict=False)
    ]
    assert verdict(given, pairs) == said


def words_of(language: str) -> dict[str, str]:
    """The remarks as the page words them."""
    name = {"en": "words.js", "zh": "words_zh.js"}[language]
    script = (Path(writing.__file__).with_name("page") / name).read_text("utf-8")
    return dict(re.findall(r'\bnote_(\w+): "([^"]*)"', script))


def test_the_page_words_every_note_and_english_is_what_the_files_say():
    english, chinese = words_of("en"), words_of("zh")
    assert english == ENGLISH
    assert chinese.keys() == ENGLISH.keys()
    for key, text in chinese.items():
        assert re.search(r"[\u4e00-\u9fff]", text), key
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", ENGLISH[key])), key


def test_every_verdict_is_worded_in_both_languages():
    for name in ("words.js", "words_zh.js"):
        script = (Path(writing.__file__).with_name("page") / name).read_text("utf-8")
        for kind in ("better", "same", "worse", "mixed", "unclear", "unknown"):
            assert f"  verdict_{kind}: " in script


def test_comparisons_keep_their_rows():
    """Zero-shot answers a sample: its difference is that on the sample, not that of the rungs."""
    from fenlei.evaluation.report.read import parse_ladder

    pair = {"first": "tfidf", "second": "zero_shot", "metric": "accuracy", "rows": 200, "difference": -0.495,
            "interval": None, "p_value": 0.001}  # fmt: skip
    rungs, comparisons = parse_ladder({"n": 1000, "rungs": [], "comparisons": [pair]})
    found = report_json(ReportData("r", "test", ["a"], rungs=rungs, comparisons=comparisons))
    assert found["ladder"]["comparisons"] == [pair]


def test_rungs_that_were_not_run_are_there():
    found = report_json(ReportData("r", "none", ["a"], rungs=[Rung("zero_shot", note="no time")]))
    rungs = found["ladder"]["rungs"]
    assert [r["key"] for r in rungs] == ["majority", "tfidf", "zero_shot", "few_shot", "tuned"]
    assert {r["accuracy"] for r in rungs} == {None}
    assert rungs[2]["note"] == "no time"


def test_long_curves_are_thinned_to_their_end():
    lines = [{"event": "train", "step": s, "loss": 1.0} for s in range(10_001)]
    points = curve([*lines, {"event": "dev", "step": 5, "macro_f1": 0.5, "final": True}, {"event": "note", "step": 0}])
    assert 1000 < len(points["train"]) <= 1501
    assert points["train"][-1]["step"] == 10_000
    assert points["dev"] == []


def test_the_price():
    assert Cost(texts_per_second=100.0, hourly_price=3.6).price_per_million == pytest.approx(10.0)
    assert Cost(hourly_price=3.6).price_per_million is None
    assert Cost(hourly_price=3.6).price_note is None
    found = report_json(
        ReportData(
            "r", "test", ["a"], cost=Cost(hourly_price=3.6, currency="CNY").at_speed_of({"texts_per_second": 50.0})
        )
    )["cost"]
    assert found["price_per_million"] == pytest.approx(20.0)
    assert found["price_note"] == (
        "a million texts cost about 20.00 CNY: an estimate for a machine at 3.6 CNY an hour that does nothing else, at "
        "the 50.00 texts a second that were measured"
    )
    assert Cost(hourly_price=3.6, texts_per_second=1.0).at_speed_of({"texts_per_second": 50.0}).texts_per_second == 1.0
    without = report_json(ReportData("r", "test", ["a"], cost=Cost(texts_per_second=50.0)))["cost"]
    assert without["price_per_million"] is without["price_note"] is None


def test_the_card_shows_figures_and_no_markup(data):
    labels = {"names": [f"{EVIL}|{name}" for name in LABELS], "descriptions": {}}
    base = {"spec": "ms:Qwen/Qwen1.5-7B-Chat@v1", "source": "modelscope"}
    texts = [row.text for row in data.rows]
    card = model_card(f"{EVIL}\nname", labels, base, metrics=data.metrics, config=dict(data.config or {}), texts=texts)
    head, body = card.split("---\n", 2)[1:]
    values = yaml.safe_load(head)
    assert values["base_model"] == "Qwen/Qwen1.5-7B-Chat"
    assert values["language"] == ["zh"], "of the texts, not of the label names"
    assert (values["base_model_relation"], "lora" in values["tags"]) == ("adapter", True)
    low, high = data.metrics["intervals"]["accuracy"]
    assert f"| Accuracy | {data.metrics['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}) |" in body
    results = values["model-index"][0]["results"][0]
    assert results["metrics"][0]["value"] == pytest.approx(data.metrics["accuracy"], abs=1e-6)
    assert not re.search(r"(?<!\\)<(img|/script|!--)", body)
    table = body[body.index("## Labels") : body.index("## Figures")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in table.split("\n") if line.startswith("|"))


def test_the_card_of_a_model_that_was_tuned_as_a_whole():
    base = {"spec": "Qwen/Qwen1.5-7B-Chat", "source": "modelscope"}
    card = model_card("c", {"names": ["Agriculture", "Art"]}, base, config={"lora": {"method": "full"}})
    values = yaml.safe_load(card.split("---\n", 2)[1])
    assert values["base_model_relation"] == "finetune"
    assert "lora" not in values["tags"]
    assert "language" not in values, "English names may stand over texts of any language"


def test_languages_are_those_of_the_texts():
    assert languages(["国足今晚迎战韩国队 OK"]) == ["zh"]
    assert languages(["今日は良い天気ですね"]) == ["ja"]
    assert languages(["오늘 날씨가 좋네요", "国足今晚迎战韩国队"]) == ["zh", "ko"]
    assert languages(["Guten Morgen, 你好 to everybody who reads this line"]) == languages([]) == []


@pytest.mark.parametrize("label", ["see https://evil.example/x", "HTTP://e.example", "WWW.evil.example", "a@b.example"])
def test_no_label_becomes_a_link_on_a_hub(label):
    """GitHub and Hugging Face link bare addresses, some of them after backslash escapes are gone."""
    address = re.compile(r"(?i)https?://|www\.|[\w.+-]+@\w")
    assert address.search(label), "the control is one"
    shown = re.sub(r"\\(.)", r"\1", escape(label))
    assert not address.search(shown)
    assert shown.replace("\u2060", "") == label


def test_the_card_names_no_path():
    base = {"spec": "/home/somebody/models/secret", "source": "folder", "path": "/home/somebody/models/secret"}
    card = model_card("c", {"names": ["a", "b"]}, base)
    assert "/home" not in card
    assert "secret" in card
    assert "was not evaluated" in card
