"""A program that trains over and over in forked processes and compares the runs that died with one that did not.

``python -m tests.training.crash_runs``, with the jobs as JSON on its standard input and the findings as JSON on its
standard output. Importing torch takes seconds and forking nothing, so one such process runs hundreds of faults.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import importlib
import itertools
import json
import mmap
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import fenlei.training.trainer
from fenlei import TextClassifier
from fenlei.artifact import read_artifact
from fenlei.errors import FenleiError
from fenlei.training import checkpoints, resume, run, state
from fenlei.training.checkpoints import CheckpointStore
from fenlei.training.engine import TrainingEngine
from fenlei.training.trainer import ClassifierTrainer
from tests.training.crash_faults import NEEDS_SPACE, Operations

# a child that hangs; on a busy machine one that does not may take long
_CHILD_S = 900
# what a run that did not die did and left, by its settings
_references: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}


class Place:
    """Where a forked run is: its optimizer steps and its last operation, in memory that outlives it."""

    _SIZE = 512

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, self._SIZE)
        self.steps = 0

    def note(self, operation: str) -> None:
        """The run begins an operation."""
        text = f"{self.steps} {operation}".encode()[: self._SIZE]
        self._shared[:] = text.ljust(self._SIZE, b"\0")

    def clear(self) -> None:
        """Before a run."""
        self._shared[:] = bytes(self._SIZE)

    def read(self) -> str:
        """Steps and operation of the run that died; empty where it had not begun one."""
        return self._shared[:].rstrip(b"\0").decode("utf-8", "replace")


class Runs:
    """Runs of one job.

    Args:
        job: ``work`` (folder), ``train`` (file), ``settings``.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.work = job, Path(job["work"])
        self.keep = job["settings"]["train"]["keep_checkpoints"]
        self.withhold: str | None = None
        self.place = Place()
        self.naive = bool(job.get("naive"))

    def fork(self, work: Callable[[], Any]) -> tuple[int, Any]:
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

    def train(self, name: str, at: int = -1, what: str = "kill", error: int = errno.ENOSPC) -> dict[str, Any]:
        """One attempt at a run, fresh or resumed, whichever the folder needs."""
        folder = self.work / name
        operations = Operations(folder, at, what, error)
        self._watch(folder, operations)
        if self.withhold:
            _WITHHOLD[self.withhold]()
        if self.naive:
            _write_in_place()
        operations.watch = self.place.note
        going_on = CheckpointStore(folder / "checkpoints", self.keep).latest() is not None
        operations.install()
        sys.stderr = open(os.devnull, "w")
        try:
            classifier = TextClassifier(config=self.job["settings"])
            classifier.fit(self.job["train"], out=folder, resume=going_on)
        except FenleiError as expected:
            return {"refused": str(expected), "exit": expected.exit_code, "operations": operations.log}
        return {"operations": operations.log}

    def _watch(self, folder: Path, operations: Operations) -> None:
        """Notes, beside the run folder, every step's data and loss, and every checkpoint that was published.

        The forward passes of a step count as operations too.
        """
        notes = folder.with_suffix(".notes")
        step, publish = ClassifierTrainer.training_step, CheckpointStore.publish
        forward, passes = TrainingEngine._forward_backward, [0]

        def forward_backward(engine: Any, *args: Any) -> float:
            passes[0] += 1
            operations.reach("pass", str(folder / str(passes[0])))
            return forward(engine, *args)

        def note(entry: dict[str, Any]) -> None:
            with notes.open("a") as file:
                file.write(json.dumps(entry) + "\n")

        def training_step(trainer: Any, model: Any, inputs: Any, *rest: Any) -> Any:
            passes[0], self.place.steps = 0, trainer.state.global_step
            rows = hashlib.sha256(repr([row.input_ids for row in inputs["rows"]]).encode()).hexdigest()[:12]
            loss = step(trainer, model, inputs, *rest)
            self.place.steps = trainer.state.global_step + 1
            note({"step": trainer.state.global_step + 1, "rows": rows, "loss": float(loss)})
            return loss

        def published(store: Any, *args: Any, **kwargs: Any) -> Any:
            checkpoint = publish(store, *args, **kwargs)
            note({"published": checkpoint.step})
            return checkpoint

        ClassifierTrainer.training_step, CheckpointStore.publish = training_step, published
        TrainingEngine._forward_backward = forward_backward

    def outcome(self, name: str) -> dict[str, Any]:
        """What must be equal whatever happened on the way."""
        folder = self.work / name
        steps: dict[int, list[Any]] = {}
        for entry in _lines(folder.with_suffix(".notes")):
            if "step" in entry:
                steps.setdefault(entry["step"], []).append([entry["rows"], entry["loss"]])
        lines = _lines(folder / "metrics.jsonl")
        manifest = read_artifact(folder).manifest
        kept = CheckpointStore(folder / "checkpoints", self.keep).list()
        return {
            "weights": manifest["files"]["adapter/adapter_model.safetensors"],
            # a step that was taken more than once was taken in the same way
            "steps": {step: _one(seen) for step, seen in sorted(steps.items())},
            "record": [_timeless(line) for line in lines if line["event"] != "note"],
            "files": sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()),
            "checkpoints": [[c.step, _timeless(c.dev or {})] for c in kept],
        }

    def after_death(self, name: str) -> str | None:
        """What is wrong with a run folder right after the process died."""
        folder = self.work / name
        store = CheckpointStore(folder / "checkpoints", self.keep)
        found, damaged = store.list(), store.damaged()
        published = [e["published"] for e in _lines(folder.with_suffix(".notes")) if "published" in e]
        if damaged:
            return f"damaged: {damaged}"
        if published and (not found or found[-1].step < max(published)):
            return f"step {max(published)} had been published, found {[c.step for c in found]}"
        for checkpoint in found:
            state.read_state(checkpoint.path)
            state.read_tensors(checkpoint.path / state.ADAPTER_WEIGHTS)
        if (folder / "classifier").exists():
            read_artifact(folder)
        return None

    def clear(self, name: str) -> None:
        shutil.rmtree(self.work / name, ignore_errors=True)
        (self.work / name).with_suffix(".notes").unlink(missing_ok=True)


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    clocks = ("time", "seconds", "rows_per_second", "texts_per_second")
    return {k: v for k, v in entry.items() if k not in clocks}


def _one(seen: list[Any]) -> Any:
    return seen[0] if all(s == seen[0] for s in seen) else {"differing": seen}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line] if path.exists() else []


def finish(runs: Runs, name: str, reference: dict[str, Any], attempts: int = 1) -> str | None:
    """Resumes what died, to the end; says what is different from the run that did not die."""
    for _ in range(attempts):
        status, result = runs.fork(lambda: runs.train(name))
        if status or result is None or "error" in result or "refused" in result:
            return f"resume failed: {status} {result}"
    status, found = runs.fork(lambda: runs.outcome(name))
    if status or "error" in found:
        return f"no outcome: {found}"
    found = json.loads(json.dumps(found))
    different = [key for key in reference if found[key] != reference[key]]
    return f"different: { {k: [reference[k], found[k]] for k in different} }"[:2000] if different else None


def kill(runs: Runs, at: int, reference: dict[str, Any], again_at: int = -1) -> str | None:
    """One run that dies at an operation, and its resume (which may die too)."""
    name = f"kill-{at}-{again_at}"
    status, result = runs.fork(lambda: runs.train(name, at))
    if status != signal.SIGKILL:
        return f"was not killed: {status} {result}"
    if wrong := runs.after_death(name):
        return wrong
    if again_at >= 0:
        status, result = runs.fork(lambda: runs.train(name, again_at))
        if status not in (0, signal.SIGKILL) or (wrong := runs.after_death(name)):
            return f"second death: {status} {result} {wrong}"
    return finish(runs, name, reference)


def kill_at_random(runs: Runs, index: int, seconds: float, reference: dict[str, Any]) -> tuple[str | None, list[str]]:
    """SIGKILL from outside at a random moment, up to three times; also says in what the run was interrupted."""
    name, draw = f"random-{index}", random.Random(index)
    places = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        runs.place.clear()
        pid = os.fork()
        if pid == 0:
            signal.alarm(_CHILD_S)
            try:
                runs.train(name)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            break  # it had come to its end
        places.append(runs.place.read())
        if wrong := runs.after_death(name):
            return wrong, places
    return finish(runs, name, reference), places


def fill(runs: Runs, at: int, reference: dict[str, Any], error: int) -> str | None:
    """A disk that is full from an operation on, then room again, then a resume."""
    name = f"full-{at}"
    status, result = runs.fork(lambda: runs.train(name, at, "full", error))
    text = (result or {}).get("refused", "")
    if status or not result or "error" in result:
        return f"no clear error: {status} {result}"
    if text:
        folder = str(runs.work / name)
        words = (os.strerror(error), folder, "takes about", "are free there", "Make room")
        if result["exit"] != 2 or any(word not in text for word in words):
            return f"message: {text}"
        # what the user is told to do is what can be done, see :meth:`Runs.train`
        if ("--resume" in text) != (CheckpointStore(runs.work / name / "checkpoints", runs.keep).latest() is not None):
            return f"wrong advice: {text}"
        left = {p.name for p in (runs.work / name).rglob(".*")}
        if left == {".classifier.old"} and _undo_was_refused(result["operations"][at:]):
            read_artifact(runs.work / name / ".classifier.old")  # nothing of it is lost
        elif left:
            return f"left behind: {sorted(left)}"
    elif result["operations"][at:] != ["write metrics.jsonl"]:  # the very last line says that the run is completed
        return f"went on as if nothing had happened: {result['operations'][at:]}"
    if wrong := runs.after_death(name):
        return wrong
    return finish(runs, name, reference)


def _undo_was_refused(after: list[str]) -> bool:
    """Whether the disk refused to force a new classifier's name, and then to put the old one back.

    Then both stay, the old one aside, until the run goes on. Renaming takes room on few disks, so this is rare.
    """
    return after[0] == "fsync ." and re.match(r"os\.rename \.classifier-\w+$", after[1]) is not None


def _no_random() -> None:
    state.RandomState.restore = lambda self: None


def _no_optimizer() -> None:
    resume.restore_optimizer = lambda *a, **k: None


def _no_loss() -> None:
    load = resume.ResumableTrainer._load_rng_state

    def without(self: Any, checkpoint: Any) -> None:
        kept = self._tr_loss, self._total_loss_scalar, self._globalstep_last_logged
        load(self, checkpoint)
        self._tr_loss, self._total_loss_scalar, self._globalstep_last_logged = kept

    resume.ResumableTrainer._load_rng_state = without


def _no_order() -> None:
    arguments = fenlei.training.trainer.training_arguments

    def without(*args: Any) -> Any:
        found = arguments(*args)
        found.ignore_data_skip = True
        return found

    fenlei.training.trainer.training_arguments = without


def _no_rewind() -> None:
    run.rewind = lambda path, step: 0


_WITHHOLD = {
    "random": _no_random,
    "optimizer": _no_optimizer,
    "loss": _no_loss,
    "order": _no_order,
    "record": _no_rewind,
}


def _write_in_place() -> None:
    """How a checkpoint is often written: file by file where it will be found, and nobody looks whether it is whole."""

    def copy(source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for file in sorted(source.iterdir()):
            shutil.copyfile(file, target / file.name)

    checkpoints.replace_folder = copy
    checkpoints._digest = lambda file: ""


def _draw_nothing() -> None:
    """Half of a tiny run's time goes into its pictures; here it matters only that their files are written."""
    from matplotlib.figure import Figure

    Figure.savefig = lambda figure, path, **how: Path(path).write_bytes(b"a picture")


def _import_everything() -> None:
    """What training imports only when it needs it: once here instead of in every fork."""
    for package in ("data", "evaluation", "inference", "modeling", "prompting", "tracking", "training"):
        found = importlib.import_module(f"fenlei.{package}")
        for module in pkgutil.iter_modules(found.__path__, f"{found.__name__}."):
            importlib.import_module(module.name)
    for name in ("accelerate", "matplotlib.backends.backend_agg", "matplotlib.figure", "peft", "sklearn.metrics"):
        importlib.import_module(name)


def do(job: dict[str, Any]) -> dict[str, Any]:
    """Does one job: a run that does not die, and every fault against it."""
    Path(job["work"]).mkdir()
    runs = Runs(job)
    key = json.dumps([job["settings"], runs.naive])
    if key not in _references:
        _references[key] = _whole_run(runs)
    whole, reference = _references[key]
    runs.withhold = job.get("withhold")
    failures: dict[str, str] = {}
    places: list[str] = []
    done = []
    for at in _points(job, whole["operations"]):
        if job["do"] == "random":
            if len(places) >= job["kills"]:
                break
            wrong, killed = kill_at_random(runs, at, 1.1 * whole["seconds"], reference)
            places += killed
        elif job["do"] == "full":
            wrong = fill(runs, at, reference, errno.ENOSPC if at % 2 else errno.EDQUOT)
        else:
            again = random.Random(at).randrange(len(whole["operations"])) if job.get("twice") else -1
            wrong = kill(runs, at, reference, again)
        done.append(at)
        if wrong:
            failures[f"{at}: {whole['operations'][at]}" if job["do"] != "random" else str(at)] = wrong
        for left in runs.work.glob("*-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return {
        "operations": whole["operations"],
        "reference": reference,
        "done": done,
        "places": places,
        "failures": failures,
    }


def _whole_run(runs: Runs) -> tuple[dict[str, Any], dict[str, Any]]:
    began = time.monotonic()
    status, whole = runs.fork(lambda: runs.train("reference"))
    assert status == 0
    whole["seconds"] = time.monotonic() - began
    assert "error" not in whole, whole["error"]
    reference = json.loads(json.dumps(runs.fork(lambda: runs.outcome("reference"))[1]))
    assert "error" not in reference, reference["error"]
    return whole, reference


def _points(job: dict[str, Any], operations: list[str]) -> Iterable[int]:
    """Numbers of the operations at which something is to happen: those that match ``only``, and some of the others."""
    if job["do"] == "random":
        return itertools.count()
    if job["do"] == "full":
        able = [at for at, op in enumerate(operations) if op.split()[0] in NEEDS_SPACE - {"os.rename"}]
    else:
        # a process that dies before an fsync leaves what one that dies after it leaves: the page cache survives
        able = [at for at, op in enumerate(operations) if job.get("fsync") or not op.startswith("fsync")]
    chosen = [at for at in able if re.search(job.get("only", "$^"), operations[at])]
    stride = job.get("stride", 0)
    return sorted({*chosen, *(able[::stride] if stride else ())})


def main() -> None:
    """Does the jobs, ``{name: job}``."""
    torch.set_num_threads(1)
    _import_everything()
    _draw_nothing()
    gc.freeze()  # the Trainer collects garbage, and in a fork that would touch, and copy, everything imported
    json.dump({name: do(job) for name, job in json.load(sys.stdin).items()}, sys.stdout)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
