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
