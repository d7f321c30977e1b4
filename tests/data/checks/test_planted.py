"""A problem planted in clean rows is found, with its line, and nothing else is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from fenlei.config import DataConfig
from fenlei.data.checks import CheckReport, CheckSettings, Finding, check_data
from fenlei.data.checks.page import render_page
from fenlei.errors import DataError
from tests.data.checks.clean import LABELS, clean_rows, sentence, write


def check(tmp_path, train, test=None, dev=None, config=None, **settings) -> CheckReport:
    files = {
        name: write(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("test", test), ("dev", dev))
        if rows is not None
    }
    config = DataConfig(**(config or {}))
    return check_data(
        write(tmp_path / "train.jsonl", train), config=config, settings=CheckSettings(**settings), **files
    )


def only(report: CheckReport) -> Finding:
    assert [f.code for f in report.findings] == [report.findings[0].code] if report.findings else False
    return report.findings[0]


def lines(finding: Finding) -> list[int]:
    return [int(place.source.rpartition(":")[2]) for place in finding.examples]


def with_text(text: str, at: int = 10, rows: list | None = None) -> list:
    rows = rows or clean_rows()
    rows[at] = {**rows[at], "text": text}
    return rows


def other(seed: int, **more) -> list:
    return clean_rows(30, seed=seed, **more)


def test_clean_data_give_nothing(tmp_path):
    report = check(tmp_path, clean_rows(candidates=True), other(1, candidates=True), other(2, candidates=True))
    assert report.findings == ()
    assert report.ok
    assert report.verdict() == "0 errors, 0 warnings, 0 notes"
    assert [(s.name, s.read, s.used) for s in report.splits] == [
        ("train", 120, 120),
        ("dev", 30, 30),
        ("test", 30, 30),
    ]
    assert report.splits[0].labels == dict.fromkeys(LABELS, 40)
    assert report.splits[0].scripts == {"Han": 120}


@pytest.mark.parametrize(
    ("code", "row"),
    [
        ("row-unreadable", "{broken"),
        ("row-unreadable", {"text": ["a list"], "label": "体育"}),
        ("text-empty", {"text": "  ", "label": "体育"}),
        ("text-empty", {"text": None, "label": "体育"}),
        ("label-missing", {"text": "国足今晚迎战韩国队", "label": None}),
        ("label-missing", {"text": "国足今晚迎战韩国队", "label": " "}),
        ("label-not-candidate", {"text": "国足今晚迎战韩国队", "label": "体育", "category": ["财经", "科技"]}),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, code, row):
    rows = clean_rows(candidates=True)
    rows[7] = row
    found = only(check(tmp_path, rows))
    assert (found.code, found.severity, found.count, found.total, lines(found)) == (code, "error", 1, 120, [8])
    skipped = only(check(tmp_path, rows, config={"on_bad_row": "skip"}))
    assert (skipped.code, skipped.severity) == (code, "warning")


def test_label_that_the_settings_do_not_list(tmp_path):
    found = only(check(tmp_path, clean_rows(), config={"labels": LABELS[:2]}))
    assert (found.code, found.count) == ("label-unknown", 40)
    assert check(tmp_path, clean_rows(), config={"labels": LABELS}).findings == ()
    found = only(check(tmp_path, clean_rows(), config={"labels": (*LABELS, "时政")}))
    assert (found.code, found.examples[0].note) == ("label-rare", "时政: 0 rows")


@pytest.mark.parametrize("twin", ["Sports ", "sports", "Ｓｐｏｒｔｓ", "Spo rts"])
def test_label_variants(tmp_path, twin):
    rows = [{**row, "label": "Sports" if row["label"] == "体育" else row["label"]} for row in clean_rows(300)]
    assert check(tmp_path, rows).findings == ()
    for row in rows[:60:3]:
        row["label"] = twin
    found = only(check(tmp_path, rows))
    assert (found.code, found.severity, found.count, found.unit) == ("label-variant", "error", 1, "labels")
    assert "20 rows" in found.examples[0].note
    assert "80 rows" in found.examples[0].note
    assert lines(found) == [1]


def test_a_variant_that_an_alias_maps_is_none(tmp_path):
    rows = clean_rows()
    rows[0]["label"] = "体 育"
    assert only(check(tmp_path, rows, min_class_rows=1, imbalance=1000)).code == "label-variant"
    assert check(tmp_path, rows, config={"aliases": {"体 育": "体育"}}).findings == ()


def labelled(slip: str, right: str, few: int, many: int) -> list:
    names = [right] * many + [slip] * few + ["另一个类别"] * many
    return [{**row, "label": name} for row, name in zip(clean_rows(len(names)), names, strict=True)]


@pytest.mark.parametrize("slip", ["Enviornment", "Environmen", "Environmentt", "Envirqnment"])
def test_misspelt_label(tmp_path, slip):
    found = only(check(tmp_path, labelled(slip, "Environment", 2, 60), min_class_rows=1, imbalance=1000))
    assert (found.code, found.severity, lines(found)) == ("label-misspelt", "warning", [61])


@pytest.mark.parametrize(
    ("slip", "right", "few"),
    [
        ("Enviornment", "Environment", 4),
        ("class 1", "class 2", 1),
        ("财经", "财政", 1),
        ("Envioromnent", "Environment", 1),
    ],
)
def test_other_labels_are_no_slips(tmp_path, slip, right, few):
    """Too many rows, a digit, two characters, two slips."""
    assert check(tmp_path, labelled(slip, right, few, 60), min_class_rows=1, imbalance=1000).findings == ()


def test_rare_classes_and_imbalance(tmp_path):
    rows = labelled("时政新闻", "体育新闻", 9, 80)
    assert only(check(tmp_path, rows)).code == "label-rare"
    assert check(tmp_path, rows, min_class_rows=9).findings == ()
    found = only(check(tmp_path, rows, min_class_rows=9, imbalance=8.8))
    assert (found.code, found.severity) == ("label-imbalance", "note")
    assert only(check(tmp_path, labelled("时政", "体育", 1, 110), min_class_rows=1)).severity == "warning"


def test_one_label_only(tmp_path):
    found = only(check(tmp_path, [{**row, "label": "体育"} for row in clean_rows()]))
    assert (found.code, found.severity) == ("label-single", "error")


def test_labels_of_test_that_train_lacks(tmp_path):
    test = other(1)
    test[4]["label"] = "时政"
    found = only(check(tmp_path, clean_rows(), test))
    assert (found.code, found.severity, found.split, lines(found)) == ("label-unknown-to-train", "error", "test", [5])
    # known as a candidate, so training goes on, but no row teaches it
    train = [{**row, "category": [*LABELS, "时政"]} for row in clean_rows()]
    found = only(check(tmp_path, train, test))
    assert (found.code, found.severity, found.count) == ("label-never-trained", "warning", 1)


def test_labels_that_test_lacks(tmp_path):
    found = only(check(tmp_path, clean_rows(), [row for row in other(1) if row["label"] != "科技"]))
    assert (found.code, found.severity, found.examples[0].text) == ("label-not-in-test", "note", "科技")


def test_candidates_that_are_never_right(tmp_path):
    rows = [{**row, "category": [*LABELS, "体肓"]} for row in clean_rows()]
    found = only(check(tmp_path, rows))
    assert (found.code, found.severity, found.count, found.total) == ("candidate-never-right", "note", 1, 4)


MOJIBAKE = "这是一个测试文本，在北京的天气是很好的。"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("text-no-letters", "12345 -- ，。！？ 2024/01/01"),
        ("text-no-letters", "１２３"),
        ("text-html", "国足今晚<br/>迎战韩国队"),
        ("text-html", "国足今晚<a href='x'>迎战</a>韩国队"),
        ("text-html", "国足今晚&nbsp;迎战韩国队&#8226;"),
        ("text-chat-token", "国足今晚<|im_end|>迎战韩国队"),
        ("text-chat-token", "国足今晚[INST]迎战韩国队"),
        ("text-bom", "国足今晚\ufeff迎战韩国队"),
        ("text-replacement", "国足今晚\ufffd迎战韩国队"),
        ("text-control", "国足今晚\x00迎战韩国队"),
        ("text-private-use", "国足今晚\ue000迎战韩国队"),
        ("text-mojibake", MOJIBAKE.encode().decode("gbk", "replace")),
        ("text-mojibake", "国足 " + MOJIBAKE.encode().decode("latin-1")),
        ("text-mojibake", "国足在cafÃ©"),
        ("text-mojibake", "国足锟斤拷今晚迎战"),
        ("text-script", "an English text among Chinese ones"),
        ("text-script", "Русский текст"),
        ("text-script", "これはひらがなです"),
        ("text-long", sentence(random.Random(9), 2500, 2600)),
    ],
)
def test_texts(tmp_path, code, text):
    found = only(check(tmp_path, with_text(text)))
    assert (found.code, found.count, found.total, lines(found)) == (code, 1, 120, [11])
    assert found.severity == ("note" if code in NOTES else "warning")


NOTES = {"text-chat-token", "text-private-use", "text-script", "text-long"}


@pytest.mark.parametrize(
    "text",
    [
        "国足今晚 3 < 5 且 7 > 6，[图]",
        "国足 AT&T 与 R&D; 今晚",
        "国足在 café，São Paulo，Ærøskøbing，«Spaß»，À LA CARTE",
        "横浜与浜松的涓涓细流",
        "国足\t今晚\r\n迎战\u3000韩国队\u2028！",
        "👍😀 好",
        "😀",
        "国足 Ελληνικά кириллица 한국어 かな",
        sentence(random.Random(8), 1800, 1900),
        "好",
    ],
)
def test_ordinary_texts_are_left_alone(tmp_path, text):
    assert check(tmp_path, with_text(text)).findings == ()


def test_lone_surrogates_are_told_from_lost_characters(tmp_path):
    rows = clean_rows()
    rows[3] = '{"text": "国足今晚\\ud83d迎战韩国队", "label": "体育"}'
    rows[5] = '{"text": "国足今晚\\ud83d\\ude00迎战", "label": "体育"}'
    found = only(check(tmp_path, rows))
    assert (found.code, found.severity, lines(found)) == ("text-surrogate", "warning", [4])


def test_a_mixed_data_set_has_no_foreign_script(tmp_path):
    rows, generator = clean_rows(), random.Random(3)
    for i in range(0, 60, 2):
        rows[i]["text"] = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz    ", k=40))
    assert check(tmp_path, rows).findings == ()


def test_beginnings(tmp_path):
    rows = clean_rows(300)
    for i in range(0, 38, 2):
        rows[i]["text"] = f"【 文献号 】1-{1000 + i} 【原文" + rows[i]["text"]
    assert check(tmp_path, rows).findings == ()  # 19 rows are none too many
    rows[40]["text"] = "【 文献号 】1-8888 【原文" + rows[40]["text"]
    found = only(check(tmp_path, rows))
    assert (found.code, found.severity, found.count) == ("text-beginning", "note", 20)
    assert found.examples[0].text.startswith("【 文献号 】1-1000 【原文")


def test_texts_that_were_cut(tmp_path):
    rows = [{**row, "text": row["text"] * 20} for row in clean_rows(200, seed=4)]
    assert check(tmp_path, rows).findings == ()
    rows = [{**row, "text": row["text"][:600]} for row in rows]
    found = only(check(tmp_path, rows))
    assert (found.code, found.severity) == ("text-cut", "note")
    assert found.count > 100


@pytest.mark.parametrize(
    "change", [lambda t: t, lambda t: f"  {t}\n", lambda t: t.replace("。", "｡"), lambda t: t[:5] + " " + t[5:]]
)
def test_copies(tmp_path, change):
    rows = clean_rows()
    rows[33]["text"] = change(rows[3]["text"])
    found = only(check(tmp_path, rows))
    assert (found.code, found.severity, found.count, lines(found)) == ("duplicate-exact", "warning", 1, [34])
    assert found.examples[0].note.endswith("train.jsonl:4")


def test_copies_with_another_label(tmp_path):
    rows = clean_rows()
    rows[34]["text"] = rows[3]["text"]
    found = only(check(tmp_path, rows))
    assert (found.code, found.severity, found.count, lines(found)) == ("label-conflict", "warning", 2, [4])
    assert "体育; but 财经" in found.examples[0].note


def test_the_contradiction_may_come_after_many_copies(tmp_path):
    """As when a source names a text by another class in each of its sections."""
    rows = clean_rows(60)
    for row in rows[30:42]:
        row.update(text=rows[0]["text"], label="体育")
    for row in rows[42:50]:
        row.update(text=rows[0]["text"], label="科技")
    found = next(f for f in check(tmp_path, rows).findings if f.code == "label-conflict")
    assert (found.count, lines(found)) == (21, [1])
    assert "体育; but 科技" in found.examples[0].note
    assert found.examples[0].note.endswith("train.jsonl:43")


def edited(text: str) -> str:
    return text[:12] + "改" + text[13:] + "（组图）"


def long_rows(**more) -> list:
    rows = clean_rows(**more)
    generator = random.Random(5)
    return [{**row, "text": row["text"] + sentence(generator, 20, 30)} for row in rows]


def test_near_copies(tmp_path):
    rows = long_rows()
    rows[33]["text"] = edited(rows[3]["text"])
    found = only(check(tmp_path, rows))
    assert (found.code, found.severity, found.count, lines(found)) == ("duplicate-near", "note", 1, [34])
    assert check(tmp_path, rows, near_similarity=0.97).findings == ()
    rows[33]["label"] = LABELS[1]
    assert sorted(f.code for f in check(tmp_path, rows).findings) == ["duplicate-near", "label-conflict-near"]


def test_half_a_text_is_no_near_copy(tmp_path):
    rows = long_rows()
    rows[33]["text"] = rows[3]["text"][: len(rows[3]["text"]) // 2] + sentence(random.Random(6), 25, 30)
    assert check(tmp_path, rows).findings == ()


def test_near_copies_in_english(tmp_path):
    generator = random.Random(7)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(2000)]
    rows = [{**row, "text": " ".join(generator.choices(words, k=25))} for row in clean_rows()]
    assert check(tmp_path, rows).findings == ()
    rows[33]["text"] = rows[3]["text"].upper().replace(" ", "  ", 3) + " indeed!"
    assert only(check(tmp_path, rows)).code == "duplicate-near"


@pytest.mark.parametrize("part", ["test", "dev"])
def test_leaks(tmp_path, part):
    train, rows = long_rows(), long_rows(count=30, seed=1)
    rows[6]["text"] = train[6]["text"].replace("。", " 。")
    found = only(check(tmp_path, train, **{part: rows}))
    assert (found.code, found.severity, found.split) == ("leak-exact-train", "error", part)
    assert (found.count, found.total, lines(found)) == (1, 30, [7])
    assert found.examples[0].note.endswith("train.jsonl:7")
    rows[6]["text"] = edited(train[6]["text"])
    found = only(check(tmp_path, train, **{part: rows}))
    assert (found.code, found.severity, found.split, lines(found)) == ("leak-near-train", "warning", part, [7])


def test_a_leak_with_another_label_says_so(tmp_path):
    train, test = clean_rows(), other(1)
    test[6] = {**train[6], "label": LABELS[1]}
    found = only(check(tmp_path, train, test))
    assert "1 of them have another label" in found.title
    assert "but 财经 here and 体育 there" in found.examples[0].note


def test_a_leak_from_dev_to_test(tmp_path):
    dev, test = other(1), other(2)
    test[0]["text"] = dev[3]["text"]
    found = only(check(tmp_path, clean_rows(), test, dev))
    assert (found.code, found.split) == ("leak-exact-dev", "test")


def test_examples_are_few_and_counts_whole(tmp_path):
    rows = clean_rows()
    for i in range(50):
        rows[i]["text"] += f"<b>{i}</b>"
    found = only(check(tmp_path, rows, examples=3))
    assert (found.count, len(found.examples)) == (50, 3)
    assert found.share == pytest.approx(50 / 120)


def test_several_problems_come_in_order_of_severity(tmp_path):
    rows = with_text("国足<br>", 1, with_text("国足<|im_end|>今晚", 2))
    rows[5] = "{"
    report = check(tmp_path, rows)
    assert [f.severity for f in report.findings] == ["error", "warning", "note"]
    assert report.verdict() == "1 error, 1 warning, 1 note"
    assert not report.ok
    values = json.loads(json.dumps(report.to_dict()))
    assert values["counts"] == {"error": 1, "warning": 1, "note": 1}
    assert values["findings"][0]["share"] == pytest.approx(1 / 120)


def test_all_rows_bad_is_a_report_not_a_crash(tmp_path):
    report = check(tmp_path, ["{", "["])
    assert [f.code for f in report.findings] == ["row-unreadable"]
    assert report.splits[0].used == 0


def test_unreadable_sources_are_errors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        check_data(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows"):
        check_data(tmp_path / "empty.jsonl")


def test_rows_from_python_and_other_files(tmp_path):
    import csv

    from fenlei.data import Example

    rows = clean_rows()
    examples = [Example(row["text"], row["label"]) for row in rows]
    examples[2] = Example("国足今晚\ud800迎战韩国队", "科技")
    found = only(check_data(examples))
    assert (found.code, found.examples[0].source) == ("text-surrogate", "")
    path = tmp_path / "train.csv"
    with path.open("w", encoding="gb18030", newline="") as handle:
        csv.writer(handle).writerows([["text", "label"], *([row["text"], row["label"]] for row in rows[:60])])
        csv.writer(handle).writerow(["国足<br>今晚", "体育"])
    assert lines(only(check_data(path))) == [62]


def test_same_data_same_report(tmp_path):
    """In processes whose sets and dictionaries of texts are ordered differently."""
    rows = long_rows()
    for i in range(0, 20):
        rows[40 + i]["text"] = edited(rows[i]["text"])
    source = write(tmp_path / "train.jsonl", rows)
    code = (
        "import json, sys; from fenlei.data.checks import check_data; found = check_data(sys.argv[1]).to_dict(); "
        "found.pop('seconds'); print(json.dumps(found, sort_keys=True), hash('text'))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(source)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True, capture_output=True, text=True,
        ).stdout.rsplit(" ", 1)
        for seed in ("1", "2")
    ]  # fmt: skip
    assert said[0][0] == said[1][0]
    assert said[0][1] != said[1][1], "the control: hashes differ"
    codes = [(f["code"], f["count"]) for f in json.loads(said[0][0])["findings"]]
    assert codes == [("label-conflict-near", 40), ("duplicate-near", 20)]


ENGLISH = (
    "The council will decide next week whether the old bridge in the city can be repaired",
    "She told the reporters that her team had trained every morning since the beginning of summer",
    "Prices of houses near the coast have fallen for the third month, says the new report",
)
FRENCH = "Le conseil municipal décidera la semaine prochaine si le vieux pont peut encore être réparé"


def english_rows() -> list:
    return [{"text": f"{ENGLISH[i % 3]}{'!' * (i % 40)} {i * 7919}", "label": LABELS[i % 3]} for i in range(120)]


def test_another_language_in_the_same_script(tmp_path):
    pytest.importorskip("py3langid")
    settings = {"near_similarity": 1.0, "beginning_share": 1.0}
    report = check(tmp_path, english_rows(), **settings)
    assert report.findings == ()
    assert report.splits[0].languages == {"en": 120}
    assert "en 100.0%" in render_page(report)
    assert "languages of longer texts" not in render_page(check(tmp_path, clean_rows()))
    found = only(check(tmp_path, with_text(FRENCH, rows=english_rows()), **settings))
    assert (found.code, found.severity, found.count, lines(found)) == ("text-language", "note", 1, [11])
    assert found.examples[0].note == "fr"


def test_without_the_package_it_is_said(tmp_path, monkeypatch):
    from fenlei.data.checks import languages

    monkeypatch.setattr(languages, "_identifier", lambda: None)
    report = check(tmp_path, english_rows(), near_similarity=1.0, beginning_share=1.0)
    assert languages.MISSING in report.remarks
    assert languages.MISSING not in check(tmp_path, clean_rows()).remarks, "nothing to tell apart"
