"""The sentence that tells whether the model is worth its cost, and what stands around it."""

from __future__ import annotations

import io
import json
import random

import pytest

from fenlei.errors import DataError
from fenlei.evaluation.ladder import Rung, build_ladder, ladder_lines
from fenlei.evaluation.notes import ENGLISH, Note, because, reason
from fenlei.inference.ladder import sample_rows
from fenlei.modeling.prediction import Prediction

NAMES = ["a", "b", "c"]
GOLD = [NAMES[i % 3] for i in range(300)]


def answers(accuracy, seed, rows=range(300)):
    generator = random.Random(seed)
    labels = [GOLD[i] if generator.random() < accuracy else generator.choice(NAMES) for i in rows]
    return [Prediction(x, 1.0, {x: 1.0}, {}, False, False, 1.0) for x in labels]


def ladder_of(simple, tuned, **more):
    rungs = [Rung("majority", answers(0, 1)), Rung("tfidf", answers(simple, 2)), Rung("tuned", answers(tuned, 3))]
    return build_ladder(GOLD, rungs, part="test", samples=300, **more)


def test_as_good():
    ladder = ladder_of(0.8, 0.8)
    assert ladder["verdict"].startswith("TF-IDF with a linear model is as good as the tuned model")
    assert "may not be worth its cost" in ladder["verdict"]


def test_better():
    """Negative control: where the model is better, nothing says that TF-IDF is as good."""
    ladder = ladder_of(0.6, 0.95)
    assert ladder["verdict"].startswith("The tuned model is better than TF-IDF")
    assert "as good" not in ladder["verdict"]


def test_worse():
    assert ladder_of(0.95, 0.6)["verdict"].startswith("TF-IDF with a linear model is better than the tuned model")


def said(labels):
    return [Prediction(x, 1.0, {x: 1.0}, {}, False, False, 1.0) for x in labels]


def pair_ladder(gold, simple, tuned):
    return build_ladder(gold, [Rung("tfidf", said(simple)), Rung("tuned", said(tuned))], part="test", samples=300)


@pytest.mark.parametrize(("rows", "discordant", "better"), [(99, 4, False), (999, 5, False), (300, 12, True)])
def test_few_rows_that_differ_prove_nothing(rows, discordant, better):
    """All go one way, so no bootstrap interval holds 0; the exact test knows how easily a few coins fall alike."""
    gold = [NAMES[i % 3] for i in range(rows)]
    simple = [NAMES[(i + 1) % 3] if i < discordant else x for i, x in enumerate(gold)]
    ladder = pair_ladder(gold, simple, gold)
    accuracy, f1 = ladder["comparisons"]
    assert accuracy["interval"][0] > 0
    assert (accuracy["p_value"] < 0.05) is better
    assert (f1["p_value"] is not None) is better
    assert ladder["verdict"].startswith("The tuned model is better") is better
    assert ("as good as" in ladder["verdict"]) is not better


def test_figures_that_disagree_are_called_so():
    """Accuracy up by the large class, macro-F1 down by the small ones: neither is the better one."""
    gold = ["a"] * 400 + ["b"] * 30 + ["c"] * 30
    simple = ["b"] * 100 + ["a"] * 300 + ["b"] * 30 + ["c"] * 30
    ladder = pair_ladder(gold, simple, ["a"] * 460)
    differences = {c["metric"]: c["difference"] for c in ladder["comparisons"]}
    assert differences["accuracy"] > 0 > differences["macro_f1"]
    assert "each better in one figure" in ladder["verdict"]
    assert "as good" not in ladder["verdict"]


def test_a_terminal_of_80_columns_cuts_no_figure():
    from rich.console import Console

    from fenlei.cli.ladder import show_ladder

    ladder = ladder_of(0.6, 0.95)
    console = Console(width=80, record=True, markup=False, file=io.StringIO())
    show_ladder(console, ladder)
    shown = console.export_text()
    for rung in ladder["rungs"]:
        for key in ("accuracy", "macro_f1"):
            low, high = rung[f"{key}_interval"]
            assert f"{rung[key]:.3f} ({low:.3f}-{high:.3f})" in shown
    assert "…" not in shown


def test_no_interval_where_the_bootstrap_has_none(tmp_path):
    """Whoever always says the same has the same macro-F1 in every stratified sample; that is not certainty."""
    from fenlei.evaluation.pictures import ladder_png

    ladder = pair_ladder(GOLD, ["a"] * 300, GOLD)
    constant, perfect = ladder["rungs"]
    assert constant["macro_f1_interval"] is None
    assert perfect["macro_f1_interval"] is None
    assert perfect["accuracy_interval"][0] < 1
    assert ladder_lines(ladder)[0].endswith("macro-F1 0.167, 300 rows")
    assert ladder_png(ladder, tmp_path / "l.png").is_file()


def test_without_tfidf_there_is_no_verdict():
    ladder = build_ladder(GOLD, [Rung("tuned", answers(0.9, 1))], part="test", samples=100)
    assert ladder["verdict"] is None
    assert ladder["comparisons"] == []


def test_form():
    short = Note("too_short", {"rows": 30})
    ladder = ladder_of(0.7, 0.9, left_out={"zero_shot": short})
    assert json.loads(json.dumps(ladder)) == ladder
    assert [r["key"] for r in ladder["rungs"]] == ["majority", "tfidf", "tuned", "zero_shot"]
    assert ladder["rungs"][-1] == {
        "key": "zero_shot", "title": "model, zero-shot", "accuracy": None, "note": str(short),
        "notes": [{"key": "too_short", "values": {"rows": 30}}],
    }  # fmt: skip
    for rung in ladder["rungs"][:3]:
        assert rung["accuracy_interval"][0] < rung["accuracy"] < rung["accuracy_interval"][1]
        assert rung["macro_f1_interval"][0] < rung["macro_f1"] < rung["macro_f1_interval"][1]
    pairs = [(c["first"], c["second"], c["metric"]) for c in ladder["comparisons"]]
    steps = [("majority", "tfidf"), ("tfidf", "tuned")]
    assert pairs == [(*step, metric) for step in steps for metric in ("accuracy", "macro_f1")]
    assert ladder == ladder_of(0.7, 0.9, left_out={"zero_shot": short}), "the seed is fixed"


def test_notes_are_english_sentences_and_keys_for_other_languages():
    notes = (Note("learned_from", {"rows": 300}), Note("chosen_on_dev", {"setting": "C=0.2, min_df=2"}))
    ladder = build_ladder(GOLD, [Rung("tfidf", answers(0.9, 1), notes=notes)], part="test", samples=100)
    (rung,) = ladder["rungs"]
    assert rung["note"] == "learned from 300 training rows; C=0.2, min_df=2, chosen on dev rows"
    assert [n["key"] for n in rung["notes"]] == ["learned_from", "chosen_on_dev"]
    assert rung["notes"][0]["values"] == {"rows": 300}


def test_a_ladder_in_words():
    ladder = ladder_of(0.6, 0.95, left_out={"zero_shot": Note("too_short", {"rows": 30})})
    lines = ladder_lines(ladder)
    tuned = ladder["rungs"][2]
    low, high = tuned["accuracy_interval"]
    assert lines[2].startswith(f"model, tuned: accuracy {tuned['accuracy']:.3f} ({low:.3f} to {high:.3f}), macro-F1 0.")
    assert lines[3] == f"model, zero-shot: not measured: {ladder['rungs'][3]['note']}"
    assert lines[4:] == [ladder["verdict"]]


def test_the_reason_of_an_error():
    known = because(DataError, Note("not_fitted", {"error": "no {words} at all"}))
    assert str(known) == "TF-IDF cannot be fitted on these texts: no {words} at all"
    assert reason(known) == Note("not_fitted", {"error": "no {words} at all"})
    assert str(reason(RuntimeError("it broke\nin line 2"))) == "it broke"
    assert str(reason(MemoryError())) == "MemoryError"
    assert reason(DataError("plain")).key == "failed"
    assert "failed" in ENGLISH


def test_rungs_that_answered_a_sample_are_compared_on_it():
    rows = tuple(range(0, 300, 3))
    rungs = [
        Rung("tfidf", answers(0.7, 2)),
        Rung("zero_shot", answers(0.5, 4, rows), rows=rows),
        Rung("tuned", answers(0.9, 3)),
    ]
    ladder = build_ladder(GOLD, rungs, part="test", samples=100)
    found = {(c["first"], c["second"]): c["rows"] for c in ladder["comparisons"]}
    assert found == {("tfidf", "zero_shot"): 100, ("zero_shot", "tuned"): 100, ("tfidf", "tuned"): 300}
    zero, tuned = ladder["rungs"][1], ladder["rungs"][2]
    step = next(c for c in ladder["comparisons"] if c["first"] == "zero_shot" and c["metric"] == "accuracy")
    own = sum(rungs[2].predictions[i].label == GOLD[i] for i in rows) / 100
    assert step["difference"] == pytest.approx(own - zero["accuracy"])
    assert (zero["rows"], tuned["rows"]) == (100, 300)


def test_sample_keeps_shares_and_order():
    labels = ["a"] * 80 + ["b"] * 20
    rows = sample_rows(labels, 50, seed=3)
    assert len(set(rows)) == 50
    assert rows == sorted(rows)
    assert sum(labels[i] == "b" for i in rows) == 10
    assert rows == sample_rows(labels, 50, seed=3)
    assert rows != sample_rows(labels, 50, seed=4)
    assert sample_rows(labels, 100, seed=3) == sample_rows(labels, None, seed=3) == list(range(100))
