"""The prediction benchmark: same rows for all, right figures, answers that are no label counted, failures shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this copy", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import predict_speed  # noqa: E402
import predict_speed_child as child  # noqa: E402
from predict_speed_job import BATCHED, FENLEI, ONE_BY_ONE, PredictJob, Row, write_portions  # noqa: E402
from predict_speed_report import BASELINE, markdown, summarize  # noqa: E402
from predict_speed_rows import portions_of  # noqa: E402
from train_speed_job import ModelSource  # noqa: E402
from train_speed_run import MATRIX, REFERENCE, Course  # noqa: E402

TINY = ModelSource.of_shape("tiny")
ROWS = [Row(f"text {i}", "ab"[i % 2], "ab"[i % 2], list(range(10 + i)), 2 + i % 3) for i in range(6)]
PORTIONS = [ROWS[:3], ROWS[3:]]


def job(name, method=FENLEI, **more):
    return PredictJob(name, method, TINY, "folder", "rows.json", **more)


def course(name, method, seconds, answers, computed=(None, None)):
    said = [{"answers": a, "computed": tokens} for a, tokens in zip(answers, computed, strict=True)]
    return Course(job(name, method), 0, list(seconds), answers=said, peak=10**9)  # type: ignore[arg-type]


def found(*courses):
    return summarize(list(courses), {"folder": PORTIONS}, {"folder": {"a", "b"}})


class TestFigures:
    RIGHT = (["a", "b", "a"], ["b", "a", "b"])

    def test_rates_and_ratios(self):
        matrix = Course(job(MATRIX, "matrix"), rates=[{"x": 1e9}, {"x": 3e9}])  # type: ignore[arg-type]
        # the machine was twice as slow in the second round: the ratio does not notice
        slow = course(BASELINE, ONE_BY_ONE, [6.0, 12.0], self.RIGHT)
        base, ours = found(slow, course(REFERENCE, FENLEI, [1.0, 2.0], self.RIGHT), matrix)["variants"]
        assert ours["texts_per_second"] == pytest.approx((3 / 1 + 3 / 2) / 2)
        assert ours["answered"]["tokens_per_second"] == pytest.approx((33 / 1 + 42 / 2) / 2)
        assert ours["answered"]["flops"] == pytest.approx(2 * TINY.body_parameters * 27)
        assert ours["answered"]["share_of_matrix_rate"] == pytest.approx(ours["answered"]["flops"] / 2e9)
        assert (base["speed_ratio"], ours["speed_ratio"]) == pytest.approx((1.0, 6.0))

    def test_what_was_shared_is_answered_and_not_computed(self):
        matrix = Course(job(MATRIX, "matrix"), rates=[{"x": 1e9}])  # type: ignore[arg-type]
        ours = course(REFERENCE, FENLEI, [1.0, 1.0], self.RIGHT, computed=[13, 22])
        base = course(BASELINE, ONE_BY_ONE, [1.0, 1.0], self.RIGHT, computed=[None, 50])
        result = found(ours, base, matrix)
        ours, base = result["variants"]
        assert ours["answered"]["tokens_per_second"] == pytest.approx((33 + 42) / 2)
        assert ours["computed"]["tokens_per_second"] == pytest.approx((13 + 22) / 2)
        share = 2 * TINY.body_parameters * 17.5 / 1e9
        assert ours["computed"]["share_of_matrix_rate"] == pytest.approx(share)
        assert base["computed"] is None, "half of the steps say nothing"
        shared = {"about": "x", "rows_per_step": 3, "repeats": 2, "alone": False, "tried": [], "length": "y"}
        text = markdown("titles", {**result, **shared, "fresh": True})
        answered = f"{100 * share * 37.5 / 17.5:.0f} %"
        assert f"| fenlei | 3 | 38 | {answered} | 18 | {share:.3g} | {100 * share:.0f} % |" in text
        assert f"| {BASELINE} | 3 | 38 | {answered} |  |  |  |" in text

    def test_answers_that_are_no_label_are_counted(self):
        answers = [["a", "b \n", "Sports"], ["b", "b", ""]]
        (only,) = found(course(BASELINE, ONE_BY_ONE, [1.0, 1.0], answers))["variants"]
        assert (only["rows"], only["off_label"]) == (6, 2)
        assert only["accuracy"] == pytest.approx(3 / 6)

    def test_report(self):
        failed = Course(job("vLLM offline"), failed="skipped: GPU only")  # type: ignore[arg-type]
        shared = {"about": "x", "rows_per_step": 3, "repeats": 2, "alone": False, "tried": [], "length": "y"}
        variants = found(course(REFERENCE, FENLEI, [1.0, 1.0], self.RIGHT), failed)
        text = markdown("titles", {**variants, **shared, "fresh": False})
        assert "| fenlei | 3 |" in text
        assert "| 1.000 | 0 of 6 |" in text
        assert "| vLLM offline | skipped: GPU only " in text
        assert "accuracy" not in markdown("titles", {**variants, **shared, "fresh": True})


class TestSetting:
    def test_every_switch_of_prediction_has_a_variant(self):
        from fenlei.config import InferenceConfig, RunConfig

        changed = dict(predict_speed.inference_changes())
        switches = [n for n, info in InferenceConfig.model_fields.items() if info.annotation is bool]
        assert set(switches) <= set(changed)
        for name in switches:
            assert changed[name] is not InferenceConfig.model_fields[name].default
        other = predict_speed.variants()["fenlei with answers=complete"][1]["overrides"]
        assert {"calibration.method=none", "calibration.threshold=null"} < set(other), "or a calibrated run refuses"
        for method, settings in predict_speed.variants().values():
            if method == FENLEI:
                RunConfig.build({}, overrides=settings.get("overrides", []))

    def test_rows_are_different_as_long_as_there_are_enough(self):
        portions = portions_of(ROWS, rows_per_step=2, warmup_rows=1, warmup=1, repeats=2)
        assert [[r.text[-1] for r in p] for p in portions] == [["0"], ["1", "2"], ["3", "4"]]
        assert len(portions_of(ROWS, rows_per_step=20, warmup_rows=1, warmup=0, repeats=1)[0]) == 20

    def test_jobs_and_rows_survive_the_file(self, tmp_path):
        rows = [Row("\ud800 lone", "a", "A", [1], 2, ["a", "b"])]
        write_portions([rows], tmp_path / "rows.json")
        made = PredictJob("x", BATCHED, TINY, "c", str(tmp_path / "rows.json"), settings={"batch_size": 2})
        made.write(tmp_path / "job.json")
        assert PredictJob.read(tmp_path / "job.json") == made
        assert made.portions() == [rows]

    def test_answers_of_an_untrained_adapter_have_the_right_length(self):
        assert child._length(job("x", max_new_tokens=512), ROWS) == {"max_new_tokens": 512}
        assert child._length(job("x"), ROWS[:2]) == {"max_new_tokens": 3, "min_new_tokens": 3}

    def test_a_workload_without_a_classifier_is_refused(self):
        with pytest.raises(SystemExit, match="titles: no classifier"):
            predict_speed.main(["--workloads", "titles"])
        with pytest.raises(SystemExit, match="expected WORKLOAD=FOLDER"):
            predict_speed.main(["--run", "runs/x"])


def test_tokens_are_counted_as_the_layers_compute_them(tiny_model, tokenizer):
    from fenlei.config import InferenceConfig, PromptConfig
    from fenlei.data import Example, LabelSet
    from fenlei.inference.predictor import Predictor
    from fenlei.prompting import PromptEncoder

    encoder = PromptEncoder(tokenizer, PromptConfig(preset="zh", max_length=384), LabelSet(["aq", "az", "b"]), "all")
    texts = [Example("x" * 9), Example("y" * 5), Example("z" * 20)]
    prompts = encoder.encode_examples(texts)
    shared, whole = prompts[0].prefix_length, sum(len(p.input_ids) for p in prompts)
    assert shared > 16
    count = child.TokenCount(tiny_model.requires_grad_(False))

    def computed(**settings):
        inference = InferenceConfig(batch_tokens=4096, **settings)
        predictor = Predictor(tiny_model, encoder, pad_id=0, inference=inference)
        predictor.warm()
        found, more = [], [cost - len(p.input_ids) for cost, p in zip(predictor.costs(prompts), prompts, strict=True)]
        for _ in range(2):
            count.take()
            predictor.score(prompts)
            found.append(count.take())
        return found, more

    found, more = computed()
    tree = more[0] + shared
    assert tree > 0, "aq and az begin alike, so their ends are fed as well"
    assert found == [whole - 3 * shared + 3 * tree] * 2, "the beginning was computed before, once for all"
    assert computed(share_prefix=False)[0] == [whole + 3 * tree] * 2
    assert computed(packed=False)[0] == [3 * (max(len(p.input_ids) for p in prompts) + tree)] * 2, "padding is computed"


def test_what_vllm_had_cached_is_not_computed():
    from types import SimpleNamespace as Found

    def said(**more):
        return Found(prompt_token_ids=[1] * 10, outputs=[Found(token_ids=[1, 2, 3])], **more)

    assert child._computed_by_vllm([said(num_cached_tokens=0), said(num_cached_tokens=8)]) == 12 + 4
    assert child._computed_by_vllm([said(num_cached_tokens=0), said()]) is None


@pytest.mark.parametrize("words", [["step", "step", "end"], ["step", "end"], ["end"]])
def test_a_process_says_end_only_when_it_is_told_to(monkeypatch, tmp_path, words):
    class Talk:
        said, left = [], list(words)

        def send(self, **message):
            self.said.append((message["event"], len(self.left)))

        def receive(self):
            return self.left.pop(0)

    write_portions(PORTIONS, tmp_path / "rows.json")
    monkeypatch.setattr(child, "_fenlei", lambda job: (lambda rows: (["a"] * len(rows), 0), {}))
    made = PredictJob("x", FENLEI, TINY, "c", str(tmp_path / "rows.json"))
    child.run(made, Talk())
    assert Talk.said[-1] == ("end", 0), "all words were heard"
    assert [event for event, _ in Talk.said] == ["ready", *["step"] * (len(words) - 1), "end"]


def test_the_whole_benchmark(tmp_path, tiny_folder, rows):
    (tmp_path / "thucnews-titles").mkdir()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "thucnews-titles" / "test.jsonl").write_text(lines, encoding="utf-8")
    options = [
        "--fresh",
        "--model",
        str(tiny_folder),
        "--data",
        str(tmp_path),
        "--workloads",
        "titles",
        "--threads",
        "1",
    ]
    options += ["--variants", REFERENCE, BASELINE, "vLLM*", "--rows", "4", "--warmup-rows", "1", "--repeats", "2"]
    result = predict_speed.main([*options, "--json", str(tmp_path / "a.json"), "--svg", str(tmp_path / "charts")])
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["workloads"] == result["workloads"]
    work = result["workloads"]["titles"]
    variants = {v["variant"]: v for v in work["variants"]}
    for name in (REFERENCE, BASELINE):
        assert not variants[name]["failed"]
        assert len(variants[name]["seconds"][0]) == 2
        assert variants[name]["rows"] == 8
        assert 0 < variants[name]["computed"]["share_of_matrix_rate"] < 10
    whole = variants[REFERENCE]["answered"]["tokens"]
    assert variants[BASELINE]["answered"]["tokens"] == whole
    shared, written = (variants[name]["computed"]["tokens"] for name in (REFERENCE, BASELINE))
    assert all(a < b < c for a, b, c in zip(shared, whole, written, strict=True))
    assert variants[BASELINE]["speed_ratio"] == pytest.approx(1.0)
    assert variants[REFERENCE]["off_label"] == 0
    assert variants["vLLM offline"]["failed"] == "skipped: GPU only"
    assert ">fenlei<" in (tmp_path / "charts" / "predict-titles.svg").read_text(encoding="utf-8")
