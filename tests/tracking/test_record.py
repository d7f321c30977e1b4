from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from fenlei.tracking import Record
from fenlei.tracking.record import rewind


def read(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    # strict: NaN and Infinity as bare words are no JSON
    return [json.loads(line, parse_constant=_reject) for line in text[:-1].split("\n")]


def _reject(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_a_line_holds_what_was_written(tmp_path: Path) -> None:
    record = Record(tmp_path / "new" / "metrics.jsonl")
    record.write("train", 10, loss=0.5, label="体育\u2028行", learning_rate=np.float32(0.25), n=np.int64(3))
    record.write("dev", 20, tensor=torch.tensor(1.5), per_class={"体育": [1, np.nan]}, path=tmp_path)
    first, second = read(record.path)
    assert list(first)[:3] == ["time", "event", "step"]
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert (first["event"], first["step"], first["loss"]) == ("train", 10, 0.5)
    assert (first["label"], first["learning_rate"], first["n"]) == ("体育\u2028行", 0.25, 3)
    assert second["tensor"] == 1.5
    assert second["per_class"] == {"体育": [1, "NaN"]}
    assert second["path"] == str(tmp_path)


def test_non_finite_numbers_are_strings(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    record.write("train", 1, a=float("nan"), b=float("inf"), c=-float("inf"), d=np.float32("nan"))
    (entry,) = read(record.path)
    assert [entry[k] for k in "abcd"] == ["NaN", "Infinity", "-Infinity", "NaN"]


def test_values_cannot_take_the_place_of_time(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    record.write("note", 1, time=3.5)
    assert datetime.fromisoformat(read(record.path)[0]["time"])


@pytest.mark.parametrize("torn", [b'{"event": "train", "st', b"\x00" * 300, b"x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    record = Record(path)
    record.write("train", 1, loss=1.0)
    record.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    record = Record(path)
    assert path.read_bytes() == whole
    record.write("train", 2, loss=0.5)
    assert [e["step"] for e in read(path)] == [1, 2]


def test_without_the_repair_a_line_would_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fenlei.tracking.record._cut_torn_line", lambda path: None)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event": "tra')
    Record(path).write("train", 2)
    with pytest.raises(json.JSONDecodeError):
        read(path)


def test_a_file_with_nothing_but_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event"')
    Record(path)
    assert path.read_bytes() == b""


def test_a_full_disk_is_reported_once_and_loses_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    record.write("train", 1)
    real = record._file

    class Full:
        closed = False

        def fileno(self) -> int:
            return real.fileno()

        def write(self, data: bytes) -> int:
            real.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            real.close()

    record._file = Full()  # type: ignore[assignment]
    record.write("train", 2)
    record.write("train", 3)
    assert [e["step"] for e in read(record.path)] == [1]
    with pytest.raises(OSError, match=r"No space left.*metrics\.jsonl"):
        record.sync()
    record._file = real
    record.write("train", 4)
    record.sync()
    assert [e["step"] for e in read(record.path)] == [1, 2, 3, 4]
    assert len([r for r in caplog.records if "No space left" in r.message]) == 1


def test_rewinding_takes_back_what_came_after_a_checkpoint(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        record.write("train", step, loss=1.0)
    record.write("note", 0, message="run failed")
    record.write("dev", 2, final=True, accuracy=1.0)
    record.close()
    assert rewind(tmp_path / "absent.jsonl", 0) == 0
    before = record.path.stat().st_ino
    assert rewind(record.path, 2) == 2
    assert [(e["event"], e["step"]) for e in read(record.path)] == [("train", 1), ("train", 2), ("note", 0)]
    assert record.path.stat().st_ino != before, "one rename, not a truncation that a crash could catch half way"
    before = record.path.stat().st_ino
    assert rewind(record.path, 2) == 0
    assert record.path.stat().st_ino == before
    record.path.write_bytes(record.path.read_bytes() + b'{"event": "tra')
    assert rewind(record.path, 0) == 2
    assert [e["event"] for e in read(record.path)] == ["note"]


def test_threads_do_not_mix_lines(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    threads = [
        threading.Thread(target=lambda t=t: [record.write("train", i, thread=t) for i in range(100)]) for t in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(record.path)) == 400


def test_closed(tmp_path: Path) -> None:
    record = Record(tmp_path / "metrics.jsonl")
    record.close()
    record.close()
    record.write("train", 1)
    assert record.path.read_bytes() == b""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_every_line_survives_sigkill(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from fenlei.tracking import Record
from fenlei.tracking.record import rewind
record = Record(Path(sys.argv[1]))
for step in range(200):
    record.write("train", step, loss=1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert [e["step"] for e in read(path)] == list(range(200))
