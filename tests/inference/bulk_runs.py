"""A program that predicts over and over in forked processes and compares the runs that died with one that did not.

``python -m tests.inference.bulk_runs``, with the jobs as JSON on its standard input and the findings as JSON on its
standard output. The classifier is a fake one, so that a run takes a moment.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet

from fenlei.errors import DataError
from fenlei.inference import bulk, output, store
from fenlei.inference.journal import Journal
from tests.inference.fake import FakeClassifier, predict
from tests.training.crash_faults import NEEDS_SPACE, Operations

_CHILD_S = 300
pyarrow.array([1])  # brings in numpy and pandas: once here instead of in every fork


class FileOperations(Operations):
    """The same operations, truncating included, without those of the libraries for training."""

    def install(self) -> None:
        sys.addaudithook(self._audit)
        os.write = self._halved(os.write)
        os.fsync = self._whole("fsync", os.fsync)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "os.truncate":
            self.reach("truncate", self._path(args[0]))
        else:
            super()._audit(event, args)


class Runs:
    """Runs of one job: ``work`` (folder), ``source``, ``suffix``, ``chunk_rows``, ``seconds`` (a chunk)."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.work = job, Path(job["work"])
        self.reference: dict[str, bytes] = {}

    def out(self, name: str) -> Path:
        return self.work / name / f"out{self.job['suffix']}"

    def attempt(self, name: str, at: int = -1, what: str = "kill", error: int = errno.ENOSPC) -> dict[str, Any]:
        """One attempt, fresh or resumed, whichever the folder needs."""
        out = self.out(name)
        operations = FileOperations(out.parent, at, what, error)
        _WITHHOLD[self.job.get("withhold", "")]()
        resume = out.with_name(out.name + ".journal").exists()
        operations.install()
        classifier = FakeClassifier(seconds=self.job.get("seconds", 0.0) / self.job.get("chunk_rows", 8))
        try:
            predict(
                self.job["source"], out, resume=resume, classifier=classifier, chunk_rows=self.job.get("chunk_rows", 8)
            )
        except DataError as refused:
            return {"refused": str(refused), "operations": operations.log}
        return {"operations": operations.log, "chunks": len(classifier.calls)}

    def files(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.out(name).parent.iterdir())}

    def complete(self, name: str) -> bool:
        out = self.out(name)
        return out.exists() and not out.with_name(out.name + ".journal").exists()

    def after_death(self, name: str) -> str | None:
        """What is wrong right after the process died: a file in a final place is whole or is not there."""
        for file, content in self.files(name).items():
            if file in self.reference and content != self.reference[file]:
                return f"{file} is not whole"
        return None

    def finish(self, name: str) -> str | None:
        """Goes on to the end; says what is different from the run that did not die."""
        if not self.complete(name):
            status, result = fork(lambda: self.attempt(name))
            if status or result is None or "operations" not in result or "refused" in result:
                return f"going on failed: {status} {result}"[:1500]
        found = self.files(name)
        found = {file: content for file, content in found.items() if not file.endswith(".lock")}
        if found.keys() != self.reference.keys():
            return f"files: {sorted(found)}"
        different = [file for file in found if found[file] != self.reference[file]]
        return f"different: {different}" if different else None


def fork(work: Callable[[], Any]) -> tuple[int, Any]:
    """Runs ``work`` in a fork; returns the wait status and what it returned."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        signal.alarm(_CHILD_S)
        try:
            result = work()
        except BaseException:
            result = {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitpid(pid, 0)[1], json.loads(text) if text else None


def kill(runs: Runs, name: str, at: int, again_at: int | None) -> str | None:
    """A run that dies at an operation, and goes on (perhaps to die once more)."""
    status, result = fork(lambda: runs.attempt(name, at))
    if status != signal.SIGKILL:
        return f"was not killed: {status} {result}"
    if wrong := runs.after_death(name):
        return wrong
    if again_at is not None and not runs.complete(name):
        status, result = fork(lambda: runs.attempt(name, again_at))
        if status not in (0, signal.SIGKILL) or "error" in (result or {}) or (wrong := runs.after_death(name)):
            return f"second death: {status} {result} {wrong}"
    return runs.finish(name)


def kill_at_random(runs: Runs, name: str, seed: int, kills: int, seconds: float) -> str | None:
    """SIGKILL from outside at random moments, so many of them in one run."""
    draw = random.Random(seed)
    done = 0
    while done < kills:
        pid = os.fork()
        if pid == 0:
            signal.alarm(_CHILD_S)
            try:
                runs.attempt(name)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        done += os.waitpid(pid, 0)[1] == signal.SIGKILL
        if wrong := runs.after_death(name):
            return wrong
        if runs.complete(name) and done < kills:  # a fast machine: the remaining kills go to another run
            if wrong := runs.finish(name):
                return wrong
            shutil.rmtree(runs.out(name).parent)
            runs.out(name).parent.mkdir()
    return runs.finish(name)


def fill(runs: Runs, name: str, at: int, error: int) -> str | None:
    """A disk that is full from an operation on, then room again."""
    status, result = fork(lambda: runs.attempt(name, at, "full", error))
    if status or not result or "error" in result:
        return f"no clear error: {status} {result}"
    text = result.get("refused")
    if text is None:
        last = result["operations"][at:]
        if not runs.complete(name) or len(last) > 2:  # nothing but the last fsync of the folder
            return f"went on as if nothing had happened: {last}"
    elif any(word not in text for word in (os.strerror(error), "are free there", "make room")):
        return f"message: {text}"
    if wrong := runs.after_death(name):
        return wrong
    return runs.finish(name)


def _no_cut() -> None:
    output.GrowingFile._cut = lambda self: os.lseek(self._handle, 0, os.SEEK_END)


def _no_skip() -> None:
    bulk.skip_done = lambda *a: None


def _no_order() -> None:
    """The journal first, then the lines it counts."""
    add = store.Store.add

    def journal_first(self: Any, counts: Any, consumed: str, lines: bytes, rejected: bytes) -> None:
        now = self.journal
        size = output.Extent(now.staged.size + len(lines))
        bad = output.Extent(now.rejected.size + len(rejected))
        now.advanced(counts, consumed, size, bad).write(self.paths.journal)
        add(self, counts, consumed, lines, rejected)

    store.Store.add = journal_first


def _no_stage() -> None:
    """Files take their places without the journal saying so first."""
    write = Journal.write
    Journal.write = lambda self, path: write(self, path) if self.stage != "publishing" else None


_WITHHOLD = {"": lambda: None, "cut": _no_cut, "skip": _no_skip, "order": _no_order, "stage": _no_stage}


def do(job: dict[str, Any]) -> dict[str, Any]:
    """Does one job: a run that does not die, and every fault against it."""
    runs = Runs(job)
    runs.out("reference").parent.mkdir(parents=True)
    withhold = job.pop("withhold", "")
    status, whole = fork(lambda: runs.attempt("reference"))
    assert status == 0
    assert "operations" in whole, whole
    runs.reference = runs.files("reference")
    job["withhold"] = withhold
    operations = whole["operations"]
    failures: dict[str, str] = {}
    points = _points(job, operations)
    for at in points:
        name = f"fault-{at}"
        runs.out(name).parent.mkdir()
        if job["do"] == "random":
            wrong = kill_at_random(runs, name, at, job["kills"], job["most_seconds"])
        elif job["do"] == "full":
            wrong = fill(runs, name, at, errno.ENOSPC if at % 2 else errno.EDQUOT)
        else:
            again = random.Random(at).randrange(len(operations) // 2) if job.get("twice") else None
            wrong = kill(runs, name, at, again)
        if wrong:
            failures[f"{at}: {operations[at]}" if job["do"] != "random" else str(at)] = wrong
        shutil.rmtree(runs.out(name).parent)
    return {
        "operations": operations,
        "files": {name: len(content) for name, content in runs.reference.items()},
        "done": points,
        "failures": failures,
    }


def _points(job: dict[str, Any], operations: list[str]) -> list[int]:
    if job["do"] == "random":
        return list(range(job.get("count", 1)))
    able = [at for at, op in enumerate(operations) if job["do"] == "kill" or op.split()[0] in NEEDS_SPACE]
    return [at for at in able if re.search(job.get("only", ""), operations[at])]


if __name__ == "__main__":
    json.dump({name: do(job) for name, job in json.load(sys.stdin).items()}, sys.stdout)
    sys.stdout.flush()
    os._exit(0)
