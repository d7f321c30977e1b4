"""The speed benchmark measures what it says: same work in every method, right ratios, failures shown and not hidden."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this copy", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import chart  # noqa: E402
import train_speed  # noqa: E402
import train_speed_child as child  # noqa: E402
import train_speed_curves as curves  # noqa: E402
import train_speed_recipes as recipes  # noqa: E402
from train_speed_job import Job, ModelSource, Row, write_rows  # noqa: E402
from train_speed_report import markdown, ratio, summarize  # noqa: E402
from train_speed_rows import common_prefix, synthetic  # noqa: E402
from train_speed_run import MATRIX, Course, Setting, make_groups, run_groups  # noqa: E402
from train_speed_variants import pin, speed_changes, variants  # noqa: E402

TINY = ModelSource.of_shape("tiny")


def make_job(name, method, tmp_path, rows=None, steps=2, dtype="bfloat16", **settings):
    rows = rows or synthetic(40, steps * 4, TINY.numbers["vocab_size"]).rows
    file = tmp_path / f"{name}.json"
    write_rows(rows, file)
    return Job(
        name, method, TINY, str(file), steps, str(tmp_path / "out"), batch_size=4, dtype=dtype, settings=settings
    )


class Script:
    """Plays the parent: wants so many steps, keeps the answers."""

    def __init__(self, steps):
        self.words = ["step"] * steps + ["end"]
        self.said = []

    def send(self, **message):
        json.dumps(message)  # everything that is said must fit into a line of JSON
        self.said.append(message)

    def receive(self):
        return self.words.pop(0)


def run(job, steps=2):
    talk = Script(steps)
    child.run_trainer(job, talk)
    ready, *done, end = talk.said
    assert [m["event"] for m in talk.said] == ["ready", *["step"] * len(done), "end"]
    return ready, done, end["losses"]


# in this process the allocator must stay as it is for the tests that follow
OURS = {"config": {"speed": {"allocator": False}, "lora": {"alpha": 32}, "train": {"learning_rate": 1e-3}}}
LINEAR = {"scheduler": "linear", "warmup_fraction": 0.0, "weight_decay": 0.0, "learning_rate": 1e-3}
THEIRS = {"checkpointing": True, "dropout": 0.0, "learning_rate": 1e-3}


class TestSameWork:
    def test_every_method_starts_at_the_same_adapter_and_loss(self, tmp_path):
        ready, steps, losses = run(make_job("tutorial", "tutorial", tmp_path, **THEIRS))
        ours_ready, ours_steps, ours_losses = run(make_job("fenlei", "fenlei", tmp_path, **OURS))
        assert ready["adapter"] == ours_ready["adapter"]
        assert ours_ready["engine"]["adapter_dtype"] in ("float32", "bfloat16")
        assert len(losses) == len(ours_losses) == len(steps) == len(ours_steps) == 2
        assert ours_losses == pytest.approx(losses, rel=0.01)
        assert all(0 < m["seconds"] < 60 and 1e8 < m["peak"] < 64e9 for m in [*steps, *ours_steps])

    def test_in_float32_the_losses_are_the_same_but_for_rounding(self, tmp_path):
        same = {"config": {**OURS["config"], "train": LINEAR}}
        _, _, losses = run(make_job("tutorial", "tutorial", tmp_path, dtype="float32", **THEIRS))
        _, _, ours = run(make_job("fenlei", "fenlei", tmp_path, dtype="float32", **same))
        _, _, rounded = run(make_job("rounded", "fenlei", tmp_path, **same))
        assert ours == pytest.approx(losses, rel=1e-5)
        assert rounded != pytest.approx(losses, rel=1e-5), "the number format reaches the trainer"

    def test_other_rows_would_be_noticed(self, tmp_path):
        rows = synthetic(40, 8, TINY.numbers["vocab_size"]).rows
        lost = [Row(r.input_ids, r.answer_start - 8) for r in rows]  # the loss on more than the answer
        right, _, first = run(make_job("fenlei", "fenlei", tmp_path, rows, **OURS), steps=1)
        _, _, second = run(make_job("tutorial", "tutorial", tmp_path, lost, **THEIRS), steps=1)
        assert right["adapter"]
        assert abs(first[0] - second[0]) > 1e-3

    def test_ends_before_the_first_step_and_between_steps(self, tmp_path):
        assert run(make_job("a", "tutorial", tmp_path), steps=0)[1:] == ([], [])
        assert len(run(make_job("b", "tutorial", tmp_path, steps=4), steps=1)[2]) == 1

    def test_too_few_rows_are_refused(self, tmp_path):
        job = make_job("short", "tutorial", tmp_path, synthetic(40, 7, 320).rows)
        with pytest.raises(ValueError, match="expected 2 x 4 rows, found 7"):
            job.rows()

    def test_matrix_products(self, tmp_path):
        talk = Script(1)
        child.run_matrix(make_job(MATRIX, "matrix", tmp_path, tokens=16), talk)
        ready, step, _ = talk.said
        assert ready["transformers"]
        assert set(step["rates"]) >= {"16x64 @ 64x128", "16x128 @ 128x64"}
        assert all(1e6 < rate < 1e15 for rate in step["rates"].values())


def course(name, seconds, group=0, method="fenlei", losses=(2.0,), peak=10**9, rates=()):
    job = Job(name, method, TINY, "rows.json", 1, "out", batch_size=16)
    return Course(job, group, list(seconds), list(losses), peak=peak, rates=list(rates))


class TestFourBits:
    @pytest.fixture
    def pair(self, tmp_path):
        """What is measured, and what users get who load the same weights from a folder."""
        pytest.importorskip("bitsandbytes")
        from transformers import TrainerCallback

        from fenlei.config import LoraConfig, ModelConfig
        from fenlei.modeling.adapter import add_adapter
        from fenlei.modeling.loading import load_model

        untied = replace(TINY, numbers={**TINY.numbers, "tie_word_embeddings": False})  # as in 7B models
        recipes.load_base(untied, "cpu", "bfloat16").save_pretrained(tmp_path / "model")
        config = ModelConfig(device="cpu", dtype="bfloat16", quantization="nf4")
        loaded = add_adapter(load_model(tmp_path / "model", config), LoraConfig(), seed=42)
        quantized = {"config": {**OURS["config"], "model": {"quantization": "nf4"}}}
        job = replace(make_job("nf4", "fenlei", tmp_path, **quantized), model=untied)
        return recipes.build(job, TrainerCallback()), loaded

    def test_the_layers_are_those_of_a_loaded_model(self, pair):
        from peft.tuners.lora.bnb import Linear4bit

        trainer, loaded = pair
        found, expected = (
            {name: type(m) for name, m in model.named_modules() if hasattr(m, "lora_A")}
            for model in (trainer.model, loaded)
        )
        assert found == expected
        assert set(found.values()) == {Linear4bit}
        assert (trainer.engine.fused["projections"], trainer.engine.fused["mlp"]) == (0, 0), "left to PEFT"

    def test_weights_and_marks_are_those_of_a_loaded_model(self, pair):
        import torch

        trainer, loaded = pair
        model, expected = dict(trainer.model.named_parameters()), dict(loaded.named_parameters())
        assert model.keys() == expected.keys()
        for name, weight in model.items():
            assert type(weight) is type(expected[name]), name
            assert torch.equal(weight, expected[name]), name
        marks = ("is_quantized", "quantization_method", "is_loaded_in_4bit")
        ours, theirs = trainer.model.get_base_model(), loaded.get_base_model()
        assert [getattr(ours, m) for m in marks] == [getattr(theirs, m) for m in marks]
        assert ours.config.quantization_config.to_dict() == theirs.config.quantization_config.to_dict()
        state = ("compute_dtype", "quant_storage", "support_avx512bf16_for_cpu")
        layers = [m.model.layers[0].mlp.up_proj.base_layer for m in (ours, theirs)]
        assert [vars(layers[0])[s] for s in state] == [vars(layers[1])[s] for s in state]

    def test_it_trains(self, tmp_path):
        pytest.importorskip("bitsandbytes")
        quantized = {"config": {**OURS["config"], "model": {"quantization": "nf4"}}}
        _, steps, losses = run(make_job("nf4", "fenlei", tmp_path, **quantized))
        assert len(steps) == 2
        assert losses[0] == pytest.approx(math.log(320), rel=0.2)


class TestFigures:
    def test_ratio_is_the_median_of_the_rounds(self):
        # the machine was twice as slow in the second round: the ratio does not notice
        courses = [course("tutorial", [4.0, 8.0, 4.4]), course("fenlei", [1.0, 2.0, 1.0])]
        assert ratio(courses, "tutorial", "fenlei") == pytest.approx(4.0)

    def test_groups_are_joined_through_the_reference(self):
        courses = [
            course("fenlei", [1.0, 1.0]), course("tutorial", [4.0, 4.0]),
            course("fenlei", [3.0, 3.0], group=1), course("fenlei without packed", [6.0, 6.0], group=1),
        ]  # fmt: skip
        # by the clock alone the variant would be 4 / 6 as fast as the tutorial
        assert ratio(courses, "tutorial", "fenlei without packed") == pytest.approx(2.0)

    def test_without_a_common_group_medians_are_compared(self):
        courses = [course("fenlei", [1.0]), course("tutorial", [4.0], group=1)]
        assert ratio(courses, "tutorial", "fenlei") == pytest.approx(4.0)
        assert ratio(courses, "tutorial", "absent") is None

    def test_summary(self):
        rates = [{"a": 1e9, "b": 2e9}, {"a": 1e9, "b": 4e9}]
        found = summarize(
            [course("fenlei", [2.0, 2.0]), course("tutorial", [8.0, 8.0], peak=3 * 10**9, losses=[2.02]),
             course(MATRIX, [0.1, 0.1], method="matrix", rates=rates)],
            tokens=[100, 100],
        )  # fmt: skip
        ours, tutorial = found["variants"]
        assert ours["rows_per_second"] == pytest.approx(8.0)
        assert ours["tokens_per_second"] == pytest.approx(50.0)
        assert ours["model_flops"] == pytest.approx(4 * TINY.body_parameters * 50)
        assert ours["share_of_matrix_rate"] == pytest.approx(ours["model_flops"] / 3e9)
        assert (ours["speed_ratio"], ours["memory_ratio"]) == pytest.approx((4.0, 3.0))
        assert tutorial["first_loss_agrees"] is True

    def test_a_method_with_another_loss_is_marked(self):
        found = summarize([course("fenlei", [1.0]), course("tutorial", [1.0], losses=[2.3])], [100])
        assert [v["first_loss_agrees"] for v in found["variants"]] == [True, False]
        text = markdown("x", {**found, **SHARED})
        assert "| tutorial (LOSS DIFFERS) |" in text
        assert "fenlei (LOSS" not in text

    def test_notes_say_what_took_turns(self):
        rates = [{"a": 1e9}]
        found = summarize([course("fenlei", [1.0]), course(MATRIX, [0.1], method="matrix", rates=rates)], [100])
        turns = markdown("x", {**found, **SHARED})
        assert "Matrix rate measured between the steps: 1 GFLOP/s" in turns
        assert "all variants in turn; medians" in turns
        alone = markdown("x", {**found, **SHARED, "alone": True})
        assert "Matrix rate measured before the variants, alone: 1 GFLOP/s" in alone
        assert "each variant alone; medians" in alone
        assert not re.search("in turn|between the|within a round", alone)
        apart = summarize([course("fenlei", [1.0]), course("fenlei", [1.0], group=1)], [100])
        assert "variants in turn, in 2 groups" in markdown("x", {**apart, **SHARED})

    def test_notes_say_how_many_steps_were_measured(self):
        full, part = course("fenlei", [1.0] * 3), course("tutorial", [1.0])
        for courses, steps in (([full], "3"), ([full, part], "1 to 3"), ([course("fenlei", [])], "0")):
            text = markdown("x", {**summarize(courses, [100] * 3), **SHARED, "repeats": 5})
            assert f", {steps} steps measured" in text

    def test_body_parameters_are_those_of_the_model(self):
        body = recipes.load_base(TINY, "cpu", "float32").model.layers
        assert TINY.body_parameters == sum(p.numel() for p in body.parameters() if p.dim() == 2 and p.shape[0] > 1)


SHARED = {"about": "rows", "shared": 0, "rows_per_step": 4, "repeats": 1, "alone": False, "trl_tried": []}


class TestVariants:
    def test_every_speed_switch_has_a_variant(self):
        from fenlei.config import RunConfig, SpeedConfig

        assert not any("attention" in name or "kernels" in name for name in variants())
        on_gpu = set(variants("cuda")) - set(variants())
        assert {name.removeprefix("fenlei ") for name in on_gpu} == {
            "with attention=sdpa", "with kernels=torch", "with 4-bit weights", "with checkpointing",
        }  # fmt: skip
        switches = [n for n, info in SpeedConfig.model_fields.items() if info.annotation is bool]
        assert switches
        changed = dict(speed_changes())
        for name in switches:
            assert changed[name] is not SpeedConfig.model_fields[name].default
        wanted = [s["config"] for method, s in variants("cuda").values() if method == "fenlei" and "config" in s]
        assert len(wanted) > len(switches)
        for values in wanted:
            config = RunConfig().with_values(values)
            for group, fields in values.items():
                assert fields
                assert {name: getattr(getattr(config, group), name) for name in fields} == fields

    def test_a_variant_keeps_its_own_value_over_the_pinned_one(self):
        pinned = {"speed": {"adapter_dtype": "float32"}, "train": {"micro_batch_tokens": 768}}
        assert pin({}, pinned) == {"config": pinned}
        own = pin({"config": {"speed": {"adapter_dtype": "bfloat16"}}}, pinned)["config"]
        assert own == {"speed": {"adapter_dtype": "bfloat16"}, "train": {"micro_batch_tokens": 768}}

    def test_synthetic_rows(self):
        work = synthetic(80, 32, 1000)  # as news titles with the `zh` prompt: docs/benchmarks.md
        assert {len(r.input_ids) for r in work.rows} == {80}
        assert work.shared == 59 == common_prefix([r.input_ids for r in work.rows])
        assert {tuple(r.input_ids[r.answer_start :]) for r in work.rows} > {tuple(work.rows[0].input_ids[-2:])}

    def test_groups_fit_into_memory_and_share_the_reference(self):
        model = ModelSource.of_shape("0.5b")
        settings = {"tutorial": {"checkpointing": False}}
        names = [("fenlei", "fenlei"), ("tutorial", "tutorial"), *((f"fenlei {i}", "fenlei") for i in range(6))]
        jobs = [Job(n, m, model, "", 1, "", settings=settings.get(m, {})) for n, m in names]
        jobs.append(Job(MATRIX, "matrix", model, "", 1, ""))
        groups = make_groups(jobs, 384, 20e9, ours=3e9)
        assert len(groups) > 1
        assert all(g[0].name == "fenlei" and g[1].method == "matrix" for g in groups)
        assert sorted(j.name for g in groups for j in g[2:]) == sorted(n for n, _ in names[1:])
        assert len(make_groups(jobs, 384, 1e12)) == 1


class TestProcesses:
    def test_a_process_that_dies_is_named_and_the_others_go_on(self, tmp_path):
        said = []
        setting = Setting(tmp_path, {"default": "false", "trl": "false"}, 1e9, say=said.append)
        (found,) = run_groups(
            [[make_job("x", "tutorial", tmp_path)]], setting, warmup=0, repeats=1, after=lambda _: None
        )
        assert found.failed == "ended with code 1"
        assert found.seconds == []
        row = summarize([found], [1])["variants"][0]
        assert "ended with code 1" in markdown("x", {"variants": [row], "matrix": {}, **SHARED})

    def test_the_whole_benchmark(self, tmp_path):
        options = ["--model-shape", "tiny", "--workloads", "synthetic-48", "--variants", "fenlei", "tutorial", "TRL*"]
        options += ["--repeats", "2", "--batch-size", "4", "--threads", "1", "--trl-python", "no-such-python"]
        options += ["--json", str(tmp_path / "a.json"), "--svg", str(tmp_path / "charts")]
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / "train_speed.py"), *options], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        work = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["workloads"]["synthetic-48"]
        found = {v["variant"]: v for v in work["variants"]}
        for name in ("fenlei", "tutorial"):
            row = found[name]
            assert not row["failed"]
            assert len(row["seconds"][0]) == 2
            assert row["first_loss"] == pytest.approx(math.log(320), rel=0.2)  # random weights: near log(vocabulary)
            assert row["first_loss_agrees"]
            assert row["tokens_per_second"] == pytest.approx(sum(4 * 48 / s for s in row["seconds"][0]) / 2)
            assert 0 < row["share_of_matrix_rate"] < 10
        assert found["tutorial"]["speed_ratio"] == pytest.approx(1.0)
        assert found["TRL SFTTrainer"]["failed"].startswith("not installed")
        assert "| tutorial |" in done.stdout
        assert ">tutorial<" in (tmp_path / "charts" / "train-speed-synthetic-48.svg").read_text(encoding="utf-8")


def test_what_was_measured_is_written_after_every_round(tmp_path, monkeypatch):
    def stopped(groups, setting, *, warmup, repeats, after):
        after([course("fenlei", [2.0]), course("tutorial", [4.0])])
        raise SystemExit("stopped by SIGTERM")

    monkeypatch.setattr(train_speed, "run_groups", stopped)
    files = {"--json": tmp_path / "a.json", "--markdown": tmp_path / "a.md"}
    options = ["--model-shape", "tiny", "--workloads", "synthetic-48", "--alone", "--variants", "fenlei", "tutorial"]
    with pytest.raises(SystemExit, match="SIGTERM"):
        train_speed.main([*options, *(str(word) for pair in files.items() for word in pair)])
    assert '"seconds_a_step": 2.0' in files["--json"].read_text(encoding="utf-8")
    assert "| fenlei | 2.00 |" in files["--markdown"].read_text(encoding="utf-8")


def test_workloads_without_a_tokenizer_are_refused():
    with pytest.raises(SystemExit, match="titles needs --model"):
        train_speed.main(["--model-shape", "tiny", "--workloads", "titles"])


def test_a_wrong_variant_is_named_with_all_right_ones():
    options = ["--model-shape", "tiny", "--workloads", "synthetic-48", "--variants", "fenlei", "fenlei without pack"]
    with pytest.raises(SystemExit, match="--variants 'fenlei without pack': names none of fenlei, tutorial, .*packed"):
        train_speed.main(options)


def test_curves_tell_how_far_they_are_apart():
    assert curves.difference([1.0, 2.0, 3.0], [1.0, 2.5, 2.75]) == pytest.approx(
        {"largest": 0.5, "mean": 0.25, "of_means": 0.25 / 3}
    )
    assert curves.difference([1.0], []) == {}


def test_charts_are_text_without_a_background(tmp_path):
    bar = chart.bars(tmp_path / "b.svg", {"tutorial": 1.0, "fenlei": 4.25}, title="Speed", unit="rows/s")
    line = chart.lines(tmp_path / "l.svg", {"one": [3.0, 2.0], "two": [3.0, 2.1]}, title="Loss", x="step", y="loss")
    for path, texts in ((bar, ("tutorial", "4.25", "Speed", "rows/s")), (line, ("one", "two", "Loss", "step"))):
        svg = path.read_text(encoding="utf-8")
        assert all(f">{text}<" in svg for text in texts)
        assert "#ffffff" not in svg.lower()  # a white page under it would glare on a dark one
        assert "#000000" not in svg
    assert (
        bar.read_bytes()
        == chart.bars(tmp_path / "c.svg", {"tutorial": 1.0, "fenlei": 4.25}, title="Speed", unit="rows/s").read_bytes()
    )
