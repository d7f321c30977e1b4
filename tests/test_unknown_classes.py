"""The benchmark of unknown classes: what it counts, trains on and takes for done, and both kinds of answers."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from fenlei.modeling.calibration import SIGNALS, Calibration
from fenlei.modeling.prediction import make_predictions

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this copy", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import unknown_classes  # noqa: E402

CLASSES = {"a": 12, "b": 11, "c": 3, "d": 2}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "fudan-news"
    folder.mkdir(parents=True)
    for part, share in (("train", 1), ("test", 2)):
        rows = [
            {"text": f"{part} {name} {i}", "output": name} for name, n in CLASSES.items() for i in range(1 + n // share)
        ]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def options(data, out, *more):
    return ["--out", str(out), "--data", str(data.parent), "--known", "2", "--rows", "2", "--dev-rows", "10", *more]


def say(*rows):
    """Predictions of a and b, of the probability of any of the two and the share of a in it."""
    scores = [np.log((mass * share, mass * (1 - share))) for mass, share in rows]
    return make_predictions([("a", "b")] * len(scores), scores, [False] * len(scores), Calibration())


# the surest 90 % have a mass of 0.81 or more, and a share of 0.77 or more; thresholds lie just below
DEV = say(*((0.80 + i / 200, 0.75 + i / 100) for i in range(20)))


class TestFigures:
    def test_a_signal_that_tells_them_apart_and_two_that_do_not(self):
        """Unknown rows prefer one label as clearly as known ones, but the answer seldom begins like any of them."""
        test = say((0.95, 0.95), (0.85, 0.752), (0.09, 0.90), (0.08, 0.755))
        found = unknown_classes.measure(["a"] * 20, DEV, test, ["a"] * 4, [True, True, False, False])
        assert set(found) == {f"{signal}, {kind}" for signal in SIGNALS for kind in ("model", "calibrated")}
        for kind in ("model", "calibrated"):
            for signal, expected in (
                ("answer_likelihood", (1.0, 0.0, 1.0, 0.0)),
                ("label_likelihood", (1.0, 0.0, 1.0, 0.0)),
                ("max_probability", (0.5, 0.5, 0.5, 0.0)),
                ("entropy", (0.5, 0.5, 0.5, 0.0)),
            ):
                figures = found[f"{signal}, {kind}"]
                assert tuple(figures[name] for name in unknown_classes.FIGURES) == expected, (signal, kind)

    def test_the_other_way_round(self):
        """Negative control: both labels are likely for unknown rows, so only the likelihood sees nothing."""
        test = say((0.90, 0.95), (0.85, 0.90), (0.88, 0.50), (0.87, 0.55))
        found = unknown_classes.measure(["a"] * 20, DEV, test, ["a"] * 4, [True, True, False, False])
        assert found["answer_likelihood, model"]["auroc"] == 0.5
        for signal in ("max_probability", "entropy"):
            assert found[f"{signal}, model"]["auroc"] == 1.0
            assert found[f"{signal}, model"]["unknown_abstained"] == 1.0

    def test_the_threshold_is_chosen_on_dev(self):
        """Surer dev rows: the same test rows, and all of them are declined."""
        test = say((0.90, 0.85), (0.88, 0.83))
        sure = say(*((0.90, 0.97 + i / 1000) for i in range(20)))
        loose, strict = (
            unknown_classes.measure(["a"] * 20, dev, test, ["a"] * 2, [True, False]) for dev in (DEV, sure)
        )
        for signal in ("max_probability", "entropy"):
            assert loose[f"{signal}, model"]["known_abstained"] == 0.0
            assert strict[f"{signal}, model"]["known_abstained"] == 1.0

    def test_the_best_one_is_bold(self):
        def run(seed, auroc):
            signals = {
                f"{signal}, model, {answers}": {
                    "auroc": value,
                    "known_abstained": 0.1,
                    "unknown_abstained": 0.5,
                    "known_aurc": 0.01,
                }
                for (signal, answers), value in auroc.items()
            }
            common = {"model": "m", "rows": 2, "known": ["a", "b"], "known_rows": 3, "unknown_rows": 4}
            measured = {"known_accuracy": dict.fromkeys(unknown_classes.ANSWERS, 0.75), "scoring_seconds":
                        {"decisive": 1.0, "complete": 2.0}}  # fmt: skip
            return {**common, **measured, "seed": seed, "signals": signals}

        first = run(1, {("entropy", "decisive"): 0.9, ("entropy", "complete"): 0.7})
        text = unknown_classes.table([first, run(2, {("entropy", "decisive"): 0.5, ("entropy", "complete"): 0.8})])
        assert "| **entropy** | model | complete | 0.750 (0.700-0.800) |" in text
        assert "| entropy | model | decisive | 0.700 (0.500-0.900) |" in text
        assert "- complete answers: accuracy on known rows 0.750 (0.750-0.750); scoring took 2 s" in text


class TestRows:
    def test_the_largest_classes_are_known_and_dev_is_apart(self, data, tmp_path):
        args = unknown_classes.parser().parse_args(options(data, tmp_path, "--rows", "1"))
        known, test = unknown_classes.split(args, 1, tmp_path)
        assert known == {"a", "b"}
        train, dev = (unknown_classes.read_rows(tmp_path / f"{part}.jsonl") for part in ("train", "dev"))
        assert (len(train), len(dev)) == (2, 20)
        assert {row["output"] for row in [*train, *dev]} == known
        assert not {row["text"] for row in train} & {row["text"] for row in dev}
        assert {row["output"] for row in test} == set(CLASSES)

    def test_another_seed_draws_others(self, data, tmp_path):
        args = unknown_classes.parser().parse_args(options(data, tmp_path))
        drawn = []
        for seed in (1, 1, 2):
            unknown_classes.split(args, seed, tmp_path)
            drawn.append((tmp_path / "train.jsonl").read_text(encoding="utf-8"))
        assert drawn[0] == drawn[1] != drawn[2]


class TestRefused:
    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--dev-rows", "9"], "fewer than 20 dev rows; raise --dev-rows"),
            (["--set", "calibration.threshold=0.5"], "leave it out"),
            (["--set", "inference.answers=complete"], "leave it out"),
            (["--known", "4"], "no class is left to be unknown"),
            (["--data", "nowhere"], "missing; say where the data is"),
        ],
    )
    def test_before_anything_is_trained(self, data, tmp_path, more, words):
        with pytest.raises(SystemExit, match=words):
            unknown_classes.main(options(data, tmp_path / "out", *more))


class TestGoingOn:
    @pytest.fixture
    def trained(self, monkeypatch):
        """The seeds that were trained; each gives figures of its own."""
        seeds = []

        def one_seed(args, seed):
            seeds.append(seed)
            figures = {"auroc": len(seeds) / 100, "known_abstained": 0.0, "unknown_abstained": 0.0, "known_aurc": 0.0}
            per_kind = dict.fromkeys(unknown_classes.ANSWERS, 1.0)
            return {"known": ["a"], "known_rows": 1, "unknown_rows": 1, "known_accuracy": per_kind,
                    "scoring_seconds": per_kind, "signals": {"entropy, model, decisive": figures}}  # fmt: skip

        monkeypatch.setattr(unknown_classes, "one_seed", one_seed)
        return seeds

    def test_seeds_that_are_there_are_skipped(self, data, tmp_path, trained):
        unknown_classes.main(options(data, tmp_path / "out", "--seeds", "1", "2"))
        unknown_classes.main(options(data, tmp_path / "out", "--seeds", "1", "2", "3"))
        assert trained == [1, 2, 3]
        assert "| 0.020 (0.010-0.030) |" in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        "more",
        [["--known", "3"], ["--dev-rows", "11"], ["--test-rows", "5"], ["--rows", "3"], ["--epochs", "2"],
         ["--model", "other"], ["--set", "train.batch_size=2"]],
    )  # fmt: skip
    def test_other_options_are_measured_anew_and_shown_alone(self, data, tmp_path, trained, capsys, more):
        unknown_classes.main(options(data, tmp_path / "out", "--seeds", "1"))
        unknown_classes.main(options(data, tmp_path / "out", "--seeds", "1", *more))
        assert trained == [1, 1]
        assert "| 0.020 |" in capsys.readouterr().out.rpartition("test rows")[2]
        assert len(json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))) == 2

    def test_so_is_other_data_in_the_same_place(self, data, tmp_path, trained):
        unknown_classes.main(options(data, tmp_path / "out"))
        with (data / "test.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"text": "new", "output": "c"}\n')
        unknown_classes.main(options(data, tmp_path / "out"))
        assert trained == [42, 42]


def test_the_whole_benchmark(data, tmp_path, tiny_folder, monkeypatch):
    said = {}
    measure = unknown_classes.measure

    def measured(gold, dev, test, *rest):
        said[len(said)] = test
        return measure(gold, dev, test, *rest)

    monkeypatch.setattr(unknown_classes, "measure", measured)
    more = ["model.dtype=float32", "model.device=cpu", "train.max_steps=1"]
    unknown_classes.main(options(data, tmp_path / "out", "--model", str(tiny_folder), "--set", *more))
    (run,) = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert (run["known"], run["known_rows"], run["unknown_rows"]) == (["a", "b"], 13, 4)
    kinds = [f"{s}, {p}, {a}" for a in unknown_classes.ANSWERS for s in SIGNALS for p in ("model", "calibrated")]
    assert list(run["signals"]) == kinds
    assert all(math.isfinite(figure) for figures in run["signals"].values() for figure in figures.values())
    decisive, complete = ([sum(map(math.exp, p.scores.values())) for p in said[i]] for i in (0, 1))
    assert len(decisive) == 17
    assert all(0 < whole < begun for begun, whole in zip(decisive, complete, strict=True)), "they end, too"
    assert not (tmp_path / "out" / "seed-42").exists()
