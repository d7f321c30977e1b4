"""``fenlei predict`` with a real, tiny model in processes of its own: killed, interrupted, gone on with."""

from __future__ import annotations

import functools
import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.test_commands import fenlei, run  # noqa: F401  fixtures

QUICK = ["model.device=cpu", "--offline"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Rows of many chunks: each chunk ends with the megabyte that its own column carries."""
    path = tmp_path_factory.mktemp("texts") / "in.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(60):
            text = f"第{number}场 国足迎战" if number % 10 != 4 else ""
            file.write(json.dumps({"text": text, "n": number, "more": "x" * 300_000}, ensure_ascii=False) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(run, texts, tmp_path_factory):  # noqa: F811
    """What a run that nothing happens to writes."""
    out = tmp_path_factory.mktemp("whole") / "o.jsonl"
    done = subprocess.run(command(run, texts, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "60 rows read = 54 written + 6 rejected" in done.stderr
    assert f"6 bad rows left out, with reasons: {out}.rejected.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
    return {suffix: out.with_name(f"o.jsonl{suffix}").read_bytes() for suffix in ("", ".rejected.jsonl")}


def command(run, texts, out, *more):  # noqa: F811
    columns = ["--columns", "text, n"]
    return [sys.executable, "-m", "fenlei", "predict", str(run), str(texts), "--out", str(out), *columns, *QUICK, *more]


def wait_for_a_chunk(process, out):
    """Until the journal counts a chunk in."""
    journal = out.with_name(f"{out.name}.journal")
    while process.poll() is None:
        if journal.exists() and json.loads(journal.read_text("utf-8"))["counts"]["read"]:
            return
        time.sleep(0.002)
    pytest.fail(f"ended too soon: {process.communicate()}")


def test_killed_then_resumed(run, texts, whole, tmp_path):  # noqa: F811
    out = tmp_path / "o.jsonl"
    process = subprocess.Popen(command(run, texts, out), stderr=subprocess.PIPE, text=True)
    wait_for_a_chunk(process, out)
    process.kill()
    process.communicate()
    assert not out.exists()
    refused = subprocess.run(command(run, texts, out), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    done = subprocess.run(command(run, texts, out, "--resume"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "reading again the" in done.stderr
    assert "60 rows read = 54 written + 6 rejected" in done.stderr
    assert out.read_bytes() == whole[""]
    assert (tmp_path / "o.jsonl.rejected.jsonl").read_bytes() == whole[".rejected.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.jsonl", "o.jsonl.rejected.jsonl"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_the_command_that_goes_on(run, texts, whole, tmp_path, number, code):  # noqa: F811
    out = tmp_path / "o.jsonl"
    # a process started in the background of a shell ignores Ctrl-C, and so would its children
    listening = functools.partial(signal.signal, number, signal.SIG_DFL)
    process = subprocess.Popen(command(run, texts, out), stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    wait_for_a_chunk(process, out)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    advice = re.search(r"Go on with: fenlei (predict .*)", err)
    assert advice, err
    done = subprocess.run([sys.executable, "-m", "fenlei", *shlex.split(advice[1])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == whole[""]


def test_the_rows_are_those_of_the_input(whole, texts):
    found = [json.loads(line) for line in whole[""].decode("utf-8").split("\n") if line]
    assert [row["n"] for row in found] == [n for n in range(60) if n % 10 != 4]
    assert list(found[0])[-2:] == ["text", "n"]
    assert all(row["truncated"] is False for row in found)
    rejected = [json.loads(line) for line in whole[".rejected.jsonl"].decode("utf-8").split("\n") if line]
    assert [row["source"] for row in rejected] == [f"{texts}:{n + 1}" for n in range(4, 60, 10)]


def test_limit_and_columns(run, fenlei, texts, tmp_path):  # noqa: F811
    out = tmp_path / "o.jsonl"
    code, _, err = fenlei("predict", run, texts, "--out", out, "--limit", 3, "--columns", "", *QUICK)
    assert code == 0, err
    assert "3 rows read = 3 written + 0 rejected" in err
    assert [list(row)[-1] for row in rows_of(out)] == ["truncated"] * 3


@pytest.mark.parametrize("change", [["calibration.threshold=0.9"], ["--add-label", "天气"], ["inference.strict=true"]])
def test_not_gone_on_with_another_classifier(run, texts, tmp_path, change):  # noqa: F811
    """A threshold, an added label, another way to compute: the rows to come would not go with those that are done."""
    out = tmp_path / "o.jsonl"
    process = subprocess.Popen(command(run, texts, out), stderr=subprocess.PIPE, text=True)
    wait_for_a_chunk(process, out)
    process.kill()
    process.communicate()
    refused = subprocess.run(command(run, texts, out, "--resume", *change), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert not out.exists()


def test_added_label(run, fenlei, tmp_path):  # noqa: F811
    source, out = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
    source.write_text(json.dumps({"text": "国足今晚迎战韩国队"}, ensure_ascii=False) + "\n", "utf-8")
    code, _, err = fenlei("predict", run, source, "--out", out, "--add-label", "天气", *QUICK)
    assert code == 0, err
    assert list(rows_of(out)[0]["probabilities"]) == ["体育", "财经", "科技", "天气"]
    code, _, err = fenlei("predict", run, source, "--out", out, "--overwrite", "--add-label", "体育", *QUICK)
    assert code == 2
    assert "体育" in err


class TestBeforeTheModelIsLoaded:
    """A large model takes minutes to load: what is wrong with the input is said before."""

    @pytest.fixture
    def loads(self, monkeypatch):
        from fenlei import TextClassifier

        found, load = [], TextClassifier.load
        monkeypatch.setattr(TextClassifier, "load", lambda *a, **k: found.append(1) or load(*a, **k))
        return found

    def test_what_is_wrong_with_the_input_is_said(self, run, fenlei, tmp_path, loads):  # noqa: F811
        source, out = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
        for more, words in (([], "no such file"), (["--columns", "txet"], "did you mean 'text'")):
            code, _, err = fenlei("predict", run, source, "--out", out, *more, *QUICK)
            assert (code, loads) == (2, []), err
            assert words in err
            source.write_text('{"text": "a", "n": 1}\n' * 20, "utf-8")
        code, _, err = fenlei("predict", run, source, "--out", out, *QUICK)
        assert (code, loads) == (0, [1]), err

    def test_a_changed_input_is_refused(self, run, fenlei, texts, tmp_path, loads):  # noqa: F811
        source, out = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
        source.write_bytes(texts.read_bytes())
        process = subprocess.Popen(command(run, source, out), stderr=subprocess.PIPE, text=True)
        wait_for_a_chunk(process, out)
        process.kill()
        process.communicate()
        source.write_bytes(source.read_bytes() + b'{"text": "b"}\n')
        arguments = command(run, source, out, "--resume")[3:]
        code, _, err = fenlei(*arguments)
        assert (code, loads) == (2, []), err
        assert "the content of INPUT was" in err
        source.write_bytes(texts.read_bytes())
        assert fenlei(*arguments)[0] == 0
        assert loads == [1]


class TestExplain:
    TEXT = "国足今晚迎战韩国队。天气很好。"

    @pytest.fixture
    def source(self, tmp_path):
        path = tmp_path / "in.jsonl"
        path.write_text(json.dumps({"text": self.TEXT, "n": 7}, ensure_ascii=False) + "\n", "utf-8")
        return path

    def test_a_table_and_a_file(self, run, fenlei, source, tmp_path):  # noqa: F811
        out = tmp_path / "o.jsonl"
        code, shown, err = fenlei("predict", run, source, "--explain", "--out", out, *QUICK)
        assert code == 0, err
        assert "天气很好" in shown
        (record,) = rows_of(out)
        assert record["n"] == 7
        assert record["label"] == record["explanation"]["label"]
        assert [s["text"] for s in record["explanation"]["sentences"]] == ["国足今晚迎战韩国队。", "天气很好。"]

    def test_without_a_file(self, run, fenlei, source):  # noqa: F811
        code, shown, err = fenlei("predict", run, source, "--explain", *QUICK)
        assert code == 0, err
        assert "天气很好" in shown

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--out", "o.csv"], ".jsonl only"),
            (["--out", "in.jsonl"], "is the input"),
            (["--columns", "n"], "--columns"),
        ],
    )
    def test_refused(self, run, fenlei, source, monkeypatch, more, said):  # noqa: F811
        monkeypatch.chdir(source.parent)
        code, _, err = fenlei("predict", run, source, "--explain", *more, *QUICK)
        assert code == 2
        assert said in err

    def test_what_is_wrong_with_the_input_is_said_before_the_model_is_loaded(self, run, fenlei, tmp_path, monkeypatch):  # noqa: F811
        def load(*_args, **_how):
            raise AssertionError("loaded")

        monkeypatch.setattr("fenlei.classifier.TextClassifier.load", load)
        code, _, err = fenlei("predict", run, tmp_path / "missing.jsonl", "--explain", *QUICK)
        assert code == 2
        assert "missing.jsonl" in err

    def test_too_many_texts(self, run, fenlei, source):  # noqa: F811
        source.write_text(source.read_text("utf-8") * 21, "utf-8")
        code, _, err = fenlei("predict", run, source, "--explain", *QUICK)
        assert code == 2
        assert "--limit 20" in err
        code, _, err = fenlei("predict", run, source, "--explain", "--limit", 2, *QUICK)
        assert code == 0, err


def test_without_out(run, fenlei, texts):  # noqa: F811
    code, _, err = fenlei("predict", run, texts, *QUICK)
    assert code == 2
    assert "--out is missing" in err
