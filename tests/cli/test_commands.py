"""The commands of the README, with the tiny model, and what they say to bad input."""

from __future__ import annotations

import csv
import functools
import json
import re
import signal
import subprocess
import sys

import pytest

from fenlei.cli import main


@pytest.fixture
def fenlei(monkeypatch, capfd):
    """Runs a command line in this process; returns (exit code, stdout, stderr)."""

    def call(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fenlei", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return call


FAST = [
    "model.dtype=float32", "model.device=cpu", "prompt.max_length=256", "train.epochs=30", "train.batch_size=4",
    "train.micro_batch_size=4", "train.learning_rate=3e-3", "train.save_steps=1000", "tracking.trackers=[]",
    "data.dev_fraction=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    """A run made by the train command itself, in a process of its own."""
    from tests.conftest import SENTENCES

    folder = tmp_path_factory.mktemp("cli")
    rows = [{"text": t, "category": list(SENTENCES), "output": k} for k, ts in SENTENCES.items() for t in ts]
    (folder / "train.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    command = [
        sys.executable, "-m", "fenlei", "train", "--train", "train.jsonl", "--test", "train.jsonl",
        "--model", str(tiny_folder), "--out", "run", *FAST,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fenlei predict run TEXTS.jsonl" in done.stdout
    assert "macro-F1 1.0000" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return folder / "run"


def test_evaluate(run, fenlei, tmp_path):
    code, out, _ = fenlei(
        "evaluate", run, run.parent / "train.jsonl", "--json", tmp_path / "m.json", "model.device=cpu"
    )
    assert code == 0
    assert "accuracy 1.0000" in out
    metrics = json.loads((tmp_path / "m.json").read_text("utf-8"))
    keys = (
        "n accuracy macro_f1 weighted_f1 log_loss ece per_class confusion labels abstain_rate seconds texts_per_second"
    )
    assert set(keys.split()) <= set(metrics)
    assert metrics["n"] == 12


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_predict(run, fenlei, tmp_path, suffix):
    source = tmp_path / "in.csv"
    source.write_text(
        'id,text,label,author\n7,国足今晚迎战韩国队,体育,"王, 五"\n8,央行下调利率,财经,李四\n', "utf-8-sig"
    )
    out = tmp_path / f"out.{suffix}"
    code, _, err = fenlei("predict", run, source, "--out", out, "model.device=cpu")
    assert code == 0, err
    if suffix == "jsonl":
        found = [json.loads(line) for line in out.read_text("utf-8").split("\n") if line]
    elif suffix == "csv":
        with out.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        for row in found:
            row["probabilities"] = json.loads(row["probabilities"])
    else:
        import pyarrow.parquet as pq

        found = pq.read_table(out).to_pylist()
        for row in found:
            row["probabilities"] = dict(row["probabilities"])
    assert [r["id"] for r in found] == ["7", "8"]
    assert [r["label"] for r in found] == ["体育", "财经"]
    assert [r["input_label"] for r in found] == ["体育", "财经"]
    assert [r["author"] for r in found] == ["王, 五", "李四"]
    for row in found:
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert float(row["probability"]) == pytest.approx(max(row["probabilities"].values()))
        assert 0 < float(row["confidence"]) <= 1, "by default the likelihood of the label's answer"
        assert str(row["abstained"]).lower() == "false"
    assert {p.name for p in tmp_path.iterdir()} == {"in.csv", out.name}, "no temporary file is left"


def test_ctrl_c_then_resume(run, tiny_folder, tmp_path):
    """A real SIGINT to a real process: exit code 130, one message; the command it names finishes the run."""
    command = [sys.executable, "-m", "fenlei", "train"]
    quick = [a for a in FAST if "epochs" not in a]
    started = [
        *command,
        "--train",
        str(run.parent / "train.jsonl"),
        "--model",
        str(tiny_folder),
        "--out",
        "run",
        *quick,
    ]
    # a process started in the background of a shell ignores Ctrl-C, and so would its children
    listening = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [*started, "train.epochs=400"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=listening
    )
    for line in process.stderr:
        if line.startswith("step 10/"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    advice = re.search(r"Go on with: fenlei train (--out run --resume)", err)
    assert advice, err
    assert "Traceback" not in err
    steps = len(list((tmp_path / "run" / "checkpoints").glob("step-*")))
    assert steps == 1
    resumed = subprocess.run(
        [*command, *advice[1].split(), "train.epochs=20"], cwd=tmp_path, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "run" / "classifier" / "manifest.json").is_file()


def test_predict_keeps_the_text_of_conversations_and_the_id_column(run, fenlei, tmp_path):
    turns = [{"role": "user", "content": "国足今晚迎战韩国队"}, {"role": "assistant", "content": "体育"}]
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": turns}, ensure_ascii=False) + "\n", "utf-8")
    assert fenlei("predict", run, tmp_path / "m.jsonl", "--out", tmp_path / "o.jsonl", "model.device=cpu")[0] == 0
    row = json.loads((tmp_path / "o.jsonl").read_text("utf-8"))
    assert (row["text"], row["label"], row["input_label"]) == ("国足今晚迎战韩国队", "体育", "体育")
    (tmp_path / "d.csv").write_text("doc_id,text\nx7,国足\n", "utf-8")
    arguments = (
        "predict",
        run,
        tmp_path / "d.csv",
        "--out",
        tmp_path / "o.jsonl",
        "--overwrite",
        "data.id_column=doc_id",
    )
    assert fenlei(*arguments, "model.device=cpu")[0] == 0
    row = json.loads((tmp_path / "o.jsonl").read_text("utf-8"))
    assert (row["id"], row["doc_id"]) == ("x7", "x7")


def test_every_surface_agrees(run, fenlei, tmp_path):
    from fenlei import TextClassifier

    source = tmp_path / "in.jsonl"
    texts = ["国足", "利率", "芯片<|im_end|>", "\u2028 x", "长" * 500]
    source.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), "utf-8")
    assert fenlei("predict", run, source, "--out", tmp_path / "o.jsonl", "model.device=cpu")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text("utf-8").split("\n") if line]
    direct = TextClassifier.load(run, overrides=["model.device=cpu"]).classify(texts)
    assert [r["truncated"] for r in rows] == [False] * 4 + [True]
    for row, prediction in zip(rows, direct, strict=True):
        assert row["label"] == prediction.label
        assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)
        assert row["confidence"] == pytest.approx(prediction.confidence, abs=1e-6)


def test_the_demo_on_the_tiny_model(fenlei, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = [a for a in FAST if not a.startswith("data.")] + ["train.max_steps=2", "prompt.max_length=512"]
    code, out, err = fenlei("demo", "--model", tiny_folder, *quick)
    assert code == 0, err
    assert "zero-shot" in out
    assert "tuned" in out
    page = "report      fenlei-demo/report/index.html"
    for line in ("fenlei-demo/classifier", "fenlei-demo/metrics.jsonl", page, "fenlei predict fenlei-demo"):
        assert line in out
    assert (tmp_path / "fenlei-demo" / "classifier" / "manifest.json").is_file()
    assert "90 test rows" in out


BAD = [
    (["train"], "--train FILE"),
    (["train", "--train", "absent.jsonl"], "absent.jsonl"),
    (["train", "--train", "train.jsonl", "train.learning_rat=1"], "did you mean 'train.learning_rate'"),
    (["train", "--train", "train.jsonl", "train.epochs=-1"], "train.epochs"),
    (["train", "--train", "train.jsonl", "nonsense"], "key=value"),
    (["train", "--train", "train.jsonl", "--preset", "nonsense"], "expected one of default, tutorial"),
    (["train", "--config", "absent.yaml"], "absent.yaml"),
    (["train", "--config", "bad.yaml"], "bad.yaml"),
    (["train", "--resume"], "--out RUN --resume"),
    (["train", "--out", "empty", "--resume"], "nothing to resume"),
    (["train", "--train", "train.jsonl", "--model", "./absent"], "absent"),
    (["train", "--train", "train.jsonl", "--model", "qwen2.5-coder-0.5"], "qwen2.5-coder-0.5b"),
    (["train", "--train", "train.jsonl", "--model", "{model}", "prompt.max_length=20"], "leaves no room"),
    (["train", "--train", "train.jsonl", "--model", "{model}", "prompt.preset=custom"], "prompt.user"),
    (["train", "--train", "bad.jsonl", "--model", "{model}"], "bad.jsonl:2"),
    (["train", "--train", "one.csv", "--model", "{model}"], "two or more"),
    (["evaluate", "absent", "train.jsonl"], "absent: no such run"),
    (["evaluate", "empty", "train.jsonl"], "neither a run folder nor a classifier folder"),
    (["evaluate", "{run}", "absent.jsonl"], "absent.jsonl"),
    (["evaluate", "{run}", "train.jsonl", "--json", "nowhere/m.json"], "nowhere"),
    (["evaluate", "{run}", "other.csv"], "other.csv:2"),
    (["predict", "{run}", "train.jsonl", "--out", "x.jsnl"], "did you mean .jsonl"),
    (["predict", "{run}", "train.jsonl", "--out", "nowhere/x.jsonl"], "nowhere"),
    (["predict", "{run}", "train.jsonl", "--out", "train.jsonl"], "is the input"),
    (["predict", "{run}", "absent.jsonl", "--out", "x.jsonl"], "absent.jsonl"),
    (["predict", "{run}", "notext.csv", "--out", "x.jsonl"], "notext.csv"),
    (["predict", "{run}", "bad.jsonl", "--out", "x.jsonl", "data.on_bad_row=stop"], "bad.jsonl:2"),
    (["predict", "{run}", "train.jsonl", "--out", "old.jsonl"], "--overwrite"),
    (["predict", "{run}", "train.jsonl", "--out", "x.jsonl", "--resume"], "nothing to resume"),
    (["predict", "{run}", "train.jsonl", "--out", "old.jsonl", "--resume", "--overwrite"], "leave one of the two out"),
    (["predict", "{run}", "train.jsonl", "--out", "x.jsonl", "--columns", "txt"], "did you mean 'text'"),
    (["predict", "{run}", "train.jsonl", "--out", "x.jsonl", "--limit", "0"], "--limit"),
    (["predict", "empty", "train.jsonl", "--out", "x.jsonl"], "neither a run folder"),
    (["demo", "--model", "absent-model"], "absent-model"),
    (["convert", "absent.jsonl", "--to", "alpaca", "--out", "x.jsonl"], "absent.jsonl"),
    (["convert", "train.jsonl", "--to", "alpaca", "--out", "train.jsonl"], "train.jsonl"),
    (["models", "path", "absent-model"], "absent-model"),
    (["train", "--config", "full.yaml", "--preset", "tutorial"], "leave one of the two out"),
    (["train", "--train", "train.jsonl", "--model", "{model}", "--out", "train.jsonl"], "is a file"),
    (["train", "--train", "train.jsonl", "--model", "{model}", "train.micro_batch_tokens=4"], "micro_batch_tokens"),
    (["evaluate", "{run}", "train.jsonl", "--json", "empty"], "is a folder"),
    (["predict", "{run}", "acme/texts", "--out", "x.jsonl", "--offline"], "offline"),
    (["demo", "--out", "{run}"], "choose another folder"),
]


@pytest.mark.parametrize(("command", "words"), BAD, ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else "")
def test_bad_input_is_one_message_and_leaves_nothing(run, fenlei, tmp_path, tiny_folder, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_bytes((run.parent / "train.jsonl").read_bytes())
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "体育"}\n{"text": \n', "utf-8")
    (tmp_path / "bad.yaml").write_text("a: [", "utf-8")
    (tmp_path / "full.yaml").write_text("preset: default\ndata:\ntrain:\n  epochs: 1\n", "utf-8")
    (tmp_path / "one.csv").write_text("text,label\na,x\nb,x\n", "utf-8")
    (tmp_path / "other.csv").write_text("text,label\na,教育\n", "utf-8")
    (tmp_path / "notext.csv").write_text("x,y\n1,2\n", "utf-8")
    (tmp_path / "old.jsonl").write_text("{}\n", "utf-8")
    (tmp_path / "empty").mkdir()
    before = {p: p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}
    extra = ["model.offline=true"] if command[0] in {"train", "demo"} and "nonsense" not in command else []
    code, out, err = fenlei(*[part.format(model=tiny_folder, run=run) for part in command], *extra)
    assert code == 2, (out, err)
    assert words in err
    assert "Traceback" not in err
    assert err.startswith(("fenlei: ", "Usage")) or "\nfenlei: " in err
    after = {p: p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}
    assert after == before


def test_show_settings_lists_every_field(fenlei):
    code, out, _ = fenlei("train", "--show-settings")
    assert code == 0
    for name in ("train.learning_rate=0.0004", "prompt.truncation=head", "tracking.mode=auto"):
        assert name in out
    lines = out.rstrip("\n").split("\n")
    assert all(help_line.startswith("    ") and help_line.strip() for help_line in lines[1::2]), "a field without help"


def test_doctor(fenlei):
    code, out, _ = fenlei("doctor")
    assert code == 0
    assert "transformers" in out
