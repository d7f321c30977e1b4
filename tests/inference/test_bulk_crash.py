"""A bulk prediction that is killed, or whose disk fills up, at any instant: the run that goes on ends with the same
bytes as one that nothing happened to, each row once and in order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.inference.fake import NOT_FINITE, REFUSED

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs fork and /proc (Linux)")
ROOT = Path(__file__).parent.parent.parent
SUFFIXES = (".jsonl", ".csv", ".parquet")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder in memory, where there is one; fsync costs nothing there."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else tmp_path_factory.mktemp("bulk")))
    write_rows(folder / "short.jsonl", 20)
    yield folder
    shutil.rmtree(folder)


def write_rows(path: Path, count: int) -> None:
    """Good rows, ones that cannot be read or that the classifier refuses, one with a column that no other has, and a
    column of mixed kinds."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"text": f"第{number}条 " + "新闻" * (number % 9), "n": number if number % 5 else str(number)}
            if number % 11 == 3:
                row["text"] = ""
            if number % 10 in (4, 6):
                row["text"] += REFUSED if number % 10 == 4 else NOT_FINITE
            if number == count - 2:
                row["late"] = number
            file.write(json.dumps(row, ensure_ascii=False) + "\n" if number % 13 != 7 else '{"text": \n')


def run_jobs(jobs: dict) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.inference.bulk_runs"],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def job(workshop: Path, name: str, suffix: str = ".jsonl", source: str = "short.jsonl", **how) -> dict:
    return {"work": str(workshop / name), "source": str(workshop / source), "suffix": suffix, **how}


@pytest.fixture(scope="module")
def found(workshop):
    jobs = {}
    for suffix in SUFFIXES:
        jobs[f"kill {suffix}"] = job(workshop, f"kill{suffix}", suffix, do="kill")
        jobs[f"full {suffix}"] = job(workshop, f"full{suffix}", suffix, do="full")
    for part, only in (("cut", "^write"), ("skip", "^write"), ("order", "^write"), ("stage", "^os.rename")):
        suffix = ".csv" if part == "stage" else ".jsonl"
        jobs[f"without {part}"] = job(workshop, f"no-{part}", suffix, do="kill", withhold=part, only=only)
    return run_jobs(jobs)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_at_every_operation(found, suffix):
    result = found[f"kill {suffix}"]
    assert result["failures"] == {}
    assert len(result["done"]) == len(result["operations"]) > 35
    kinds = {operation.split()[0] for operation in result["operations"]}
    assert {"open", "write", "fsync", "os.rename", "os.remove", "truncate"} <= kinds
    assert set(result["files"]) == {f"out{suffix}", f"out{suffix}.rejected.jsonl"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_at_every_write(found, suffix):
    result = found[f"full {suffix}"]
    assert result["failures"] == {}
    assert len(result["done"]) > 25


@pytest.mark.parametrize("part", ["cut", "skip", "order", "stage"])
def test_whatever_is_withheld_is_missed(found, part):
    """Negative controls: without cutting the torn tail, skipping what is done, writing in this order, or noting that
    files take their places, the test above fails."""
    assert found[f"without {part}"]["failures"]


def test_killed_at_random(workshop):
    write_rows(workshop / "medium.jsonl", 3000)
    jobs = {
        suffix: job(
            workshop, f"random{suffix}", suffix, "medium.jsonl",
            do="random", kills=3, most_seconds=0.25, chunk_rows=64, seconds=0.005,
        )
        for suffix in SUFFIXES
    }  # fmt: skip
    for result in run_jobs(jobs).values():
        assert result["failures"] == {}


@pytest.mark.soak
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_twenty_times_over_100_000_rows(workshop, suffix):
    write_rows(workshop / "long.jsonl", 100_000)
    how = {"do": "random", "kills": 20, "most_seconds": 5.0, "chunk_rows": 512, "seconds": 0.05}
    (result,) = run_jobs({"long": job(workshop, f"kills{suffix}", suffix, "long.jsonl", **how)}).values()
    assert result["failures"] == {}


@pytest.mark.soak
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_at_every_operation_and_again_while_going_on(workshop, suffix):
    (result,) = run_jobs({"twice": job(workshop, f"twice{suffix}", suffix, do="kill", twice=True)}).values()
    assert result["failures"] == {}
