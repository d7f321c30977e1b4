"""Runs measured processes side by side: one step of one of them at a time, in turn.

A step is an optimizer step in the training benchmark and a portion of the rows in the prediction benchmark.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train_speed_job import TUTORIAL_BATCH, Job

_CHILD = Path(__file__).with_name("train_speed_child.py")
_FRAMEWORK = {"cpu": 0.8e9, "cuda": 1.5e9}  # bytes: a process with the libraries in it, or a CUDA context
REFERENCE = "fenlei"
MATRIX = "matrix products"


@dataclass
class Course:
    """What one variant did in one group.

    Attributes:
        job: the variant.
        group: number of the group it ran in.
        seconds: of each measured step; empty when the variant failed before the first.
        losses: of each step, the warm-up included.
        ready: what the process said when it was ready.
        peak: most resident memory, bytes.
        rest: resident memory after the last step, bytes: what the process holds while another works.
        gpu_peak: most memory allocated on the GPU, bytes; 0 without one.
        rates: matrix products only: operations a second by shape, one entry a round.
        answers: what the process said after each measured step, in full.
        failed: why it did not finish; empty when it did.
    """

    job: Job
    group: int = 0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    ready: dict[str, Any] = field(default_factory=dict)
    peak: int = 0
    rest: int = 0
    gpu_peak: int = 0
    rates: list[dict[str, float]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""


class Failed(Exception):
    """A measured process ended or said nothing for too long."""


class Child:
    """One measured process and the line to it.

    Args:
        job: what it does.
        python: its interpreter.
        script: what it runs.
        folder: gets the job and what the process prints.
        env: environment variables beside the inherited ones.
        patience: seconds that one answer may take.
    """

    def __init__(self, job: Job, python: str, script: Path, folder: Path, env: dict[str, str], patience: float) -> None:
        self.job, self._patience = job, patience
        folder.mkdir(parents=True, exist_ok=True)
        job.write(folder / "job.json")
        self._errors = folder / "stderr.txt"
        self._waiting = b""
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [python, str(script), str(folder / "job.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **env},
            )

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{word}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self.reason()) from None

    def hear(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            Failed: the process ended, or took longer than it may.
        """
        assert self.process.stdout is not None
        handle = self.process.stdout.fileno()
        while b"\n" not in self._waiting:
            if not select.select([handle], [], [], self._patience)[0]:
                raise Failed(f"no answer for {self._patience:.0f} s")
            chunk = os.read(handle, 65536)
            if not chunk:
                raise Failed(self.reason())
            self._waiting += chunk
        line, _, self._waiting = self._waiting.partition(b"\n")
        return json.loads(line)

    def reason(self) -> str:
        """Why the process ended: its last line, or the signal that ended it."""
        try:
            code = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            return "closed its line"
        if code == -signal.SIGKILL:
            return "killed by the system: out of memory?"
        lines = [
            line for line in self._errors.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()
        ]
        return (lines[-1].strip() if lines else f"ended with code {code}")[:300]

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


@dataclass(frozen=True)
class Setting:
    """How processes are run.

    Attributes:
        folder: for job files, what processes print, and what trainers write.
        python: interpreter by method; `default` for the others.
        memory: bytes that the processes of one group may take together.
        patience: seconds that an answer may take.
        threads: threads of a process; None: torch's own choice.
        alone: whether each process has the machine to itself.
        scripts: what a process runs by method, where it is not the training benchmark's.
        say: where progress goes.
    """

    folder: Path
    python: dict[str, str]
    memory: float
    patience: float = 1800.0
    threads: int | None = None
    alone: bool = False
    scripts: Mapping[str, Path] = field(default_factory=dict)
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def start(self, job: Job, number: int) -> Child:
        python = self.python.get(job.method, self.python["default"])
        env = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        env |= job.settings.get("env", {})
        if job.device == "cuda":
            env.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
        script = self.scripts.get(job.method, _CHILD)
        return Child(job, python, script, self.folder / f"{number:02d}-{_plain(job.name)}", env, self.patience)


def memory_need(job: Job, longest: int, ours: float = 0.0) -> tuple[float, float]:
    """A rough upper estimate of what a process takes between its steps and at their peak, in bytes.

    Args:
        job: the variant.
        longest: tokens of the longest row.
        ours: what this package's trainer was seen to take; its switches move that by less than the margin here.
    """
    n = job.model.numbers
    weights = job.model.bytes * (2 if job.dtype == "float32" else 1)
    rest = _FRAMEWORK[job.device] + (0 if job.method == "matrix" else 1.15 * weights)
    if job.method == "matrix":
        return rest, rest + 1e9
    if job.method == "fenlei" and ours:
        return 1.4 * ours, 1.6 * ours  # it keeps what it once had
    # kept for the backward pass, per token: about 12 vectors of the hidden and 6 of the inner width a layer, most of
    # them in float32 (seen with 0.5 B parameters and 4 x 384 tokens: 11.3 GB, this formula 11.7)
    per_token = 3.6 * n["num_hidden_layers"] * (12 * n["hidden_size"] + 6 * n["intermediate_size"])
    rows = job.settings.get("micro_batch", TUTORIAL_BATCH)
    peak = rows * longest * per_token
    if job.method == "tutorial":
        peak = peak / n["num_hidden_layers"] * 2 if job.settings.get("checkpointing", True) else peak
        peak += rows * longest * n["vocab_size"] * 17  # logits: once in bfloat16, up to four times in float32
    peak += rest + 0.5e9
    # the C library keeps most of what is freed (seen: 8.3 of 11.1 GB)
    return (0.8 * peak if job.device == "cpu" else rest), peak


def make_groups(jobs: Sequence[Job], longest: int, memory: float, ours: float = 0.0) -> list[list[Job]]:
    """Spreads variants over groups that fit into memory; the first job and the matrix products are in each."""
    return spread(jobs, memory, lambda job: memory_need(job, longest, ours))


def spread(jobs: Sequence[Job], memory: float, need: Callable[[Job], tuple[float, float]]) -> list[list[Job]]:
    """Groups that fit into memory; the first job and the matrix products are in each.

    Only one process works at a time, but the others keep what they once took: on a GPU all of it.

    Args:
        jobs: the variants.
        memory: bytes that the processes of one group may take together.
        need: bytes that a process takes between its steps and at their peak.
    """
    always = [jobs[0], *(job for job in jobs[1:] if job.method == "matrix")]
    others = [job for job in jobs if job not in always]
    groups = [list(always)]
    for job in others:
        room = (g for g in groups if len(g) == len(always) or _together([*g, job], need) <= memory)
        group = next(room, None)
        if group is None:
            groups.append(group := list(always))
        group.append(job)
    return groups


def _together(jobs: Sequence[Job], need: Callable[[Job], tuple[float, float]]) -> float:
    needs = [need(job) for job in jobs]
    if jobs[0].device == "cuda":
        return sum(peak for _, peak in needs)
    return sum(rest for rest, _ in needs) + max(peak - rest for rest, peak in needs)


def run_groups(
    groups: Sequence[Sequence[Job]], setting: Setting, *, warmup: int, repeats: int, after: Callable[[Any], None]
) -> list[Course]:
    """Runs each group's variants step by step in turn.

    Args:
        groups: the variants that are alive together.
        setting: how processes are run.
        warmup: steps of each that are not counted.
        repeats: steps of each that are.
        after: called with all courses after every round, e.g. to keep what has been measured.
    """
    courses: list[Course] = []
    for number, group in enumerate(groups):
        together = [Course(job, number) for job in group]
        courses += together
        setting.say(f"group {number + 1} of {len(groups)}: {', '.join(job.name for job in group)}")
        children: dict[int, Child] = {}
        try:
            for i, course in enumerate(together):
                children[i] = setting.start(course.job, len(courses) - len(group) + i)
                if course.job.device == "cpu":  # loading one after the other keeps the peak low
                    _begin(children, i, course, setting)
            for i, course in enumerate(together):
                if course.job.device != "cpu":
                    _begin(children, i, course, setting)
            for r in range(warmup + repeats):
                order = [(i + r) % len(together) for i in range(len(together))]  # none is always after the same one
                for i in order:
                    if i in children:
                        _step(children, i, together[i], r >= warmup, setting)
                after(courses)
            for i in list(children):
                _finish(children, i, together[i], setting)
        finally:
            for child in children.values():
                child.close()
    return courses


def _begin(children: dict[int, Child], i: int, course: Course, setting: Setting) -> None:
    with _Watch(children, i, course, setting):
        course.ready = children[i].hear()
        course.peak = course.ready["peak"]


def _step(children: dict[int, Child], i: int, course: Course, counts: bool, setting: Setting) -> None:
    with _Watch(children, i, course, setting):
        children[i].say("step")
        answer = children[i].hear()
        course.peak, course.rest = max(course.peak, answer["peak"]), answer["now"]
        course.gpu_peak = max(course.gpu_peak, answer.get("gpu_peak", 0))
        if counts:
            course.seconds.append(answer["seconds"])
            course.answers.append(answer)
            if "rates" in answer:
                course.rates.append(answer["rates"])
        setting.say(f"  {course.job.name}: {'' if counts else 'warm-up '}{answer['seconds']:.2f} s")


def _finish(children: dict[int, Child], i: int, course: Course, setting: Setting) -> None:
    with _Watch(children, i, course, setting):
        children[i].say("end")
        course.losses = children[i].hear()["losses"]


class _Watch:
    """Notes the failure of a process and goes on without it."""

    def __init__(self, children: dict[int, Child], i: int, course: Course, setting: Setting) -> None:
        self.children, self.i, self.course, self.setting = children, i, course, setting

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
        if kind is not Failed:
            return False
        self.course.failed = str(error)
        self.setting.say(f"  {self.course.job.name} FAILED: {error}")
        self.children.pop(self.i).close()
        return True


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)
