"""The variants that are compared, and what is found out before: TRL's best settings, this package's own choices."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from train_speed_job import Job, ModelSource, write_rows
from train_speed_report import BASELINE
from train_speed_rows import Workload
from train_speed_run import REFERENCE, Course, Setting, make_groups, run_groups

TRL = "TRL SFTTrainer"
TRL_MISSING = "not installed: `python -m pip install trl`, or name an interpreter that has it by --trl-python"
# Completion-only loss, LoRA of the same rank, bfloat16, no checkpointing in all. Packing is the padding-free path with
# the rows of a step chosen by length, which would break the pairing of steps.
TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "batch 1": {"micro_batch": 1},
    "batch 1, no autocast": {"micro_batch": 1, "autocast": False},
    "batch 2": {"micro_batch": 2},
    "batch 4": {"micro_batch": 4},
    "batch 4, padding-free": {"micro_batch": 4, "padding_free": True},
    "batch 16": {"micro_batch": 16},
    "batch 16, padding-free": {"micro_batch": 16, "padding_free": True},
}
_CUDA_ONLY = ("batch 16", "batch 16, padding-free")
# speed settings that matter on a GPU only, and the value that switches the part off
_CUDA_SETTINGS = {"attention": "sdpa", "kernels": "torch"}
_CUDA_VARIANTS: dict[str, dict[str, Any]] = {
    "with 4-bit weights": {"model": {"quantization": "nf4"}},
    "with checkpointing": {"train": {"gradient_checkpointing": True}},
}
# What a user could set instead of leaving threads to torch and the system
_CPU_ENVIRONMENTS = {
    "with bound threads": {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"},
    "with one thread": {"OMP_NUM_THREADS": "1"},
}
_TRL_REPEATS = 2


@dataclass(frozen=True)
class Jobs:
    """Makes the jobs of one workload.

    Attributes:
        model: the model.
        workload: the rows.
        folder: for rows and what trainers write.
        steps: optimizer steps, the warm-up included.
        batch_size: rows a step.
        device: `cpu` or `cuda`.
        dtype: number format of the weights.
        seed: of the adapter's start.
    """

    model: ModelSource
    workload: Workload
    folder: Path
    steps: int
    batch_size: int
    device: str
    dtype: str
    seed: int

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.input_ids) for row in self.workload.rows)

    def make(self, name: str, method: str, settings: dict[str, Any], *, seed: int | None = None) -> Job:
        """A job on the first rows of the workload."""
        file = self.folder / f"{self.workload.name}-{self.steps}.json"
        if not file.exists():
            count = self.steps * self.batch_size
            rows = self.workload.rows * -(-count // len(self.workload.rows))
            write_rows(rows[:count], file)
        return Job(
            name=name,
            method=method,
            model=self.model,
            rows_file=str(file),
            steps=self.steps,
            folder=str(self.folder / "trainer"),
            batch_size=self.batch_size,
            device=self.device,
            dtype=self.dtype,
            pad_id=self.workload.pad_id,
            seed=self.seed if seed is None else seed,
            settings=settings,
        )

    def of_steps(self, steps: int) -> Jobs:
        """The same with another number of steps."""
        return replace(self, steps=steps)


def variants(device: str = "cpu") -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (method, settings); of the package itself, with each of its speed settings changed.

    Args:
        device: on `cuda`, those that matter only there too.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {
        REFERENCE: ("fenlei", {}),
        BASELINE: ("tutorial", {"checkpointing": True}),
        f"{BASELINE}, no checkpointing": ("tutorial", {"checkpointing": False}),
        TRL: ("trl", {}),
    }
    for field, value in speed_changes():
        word = {True: f"with {field}", False: f"without {field}"}.get(value, f"with {field}={value}")  # type: ignore[call-overload]
        if field not in _CUDA_SETTINGS or (device == "cuda" and value == _CUDA_SETTINGS[field]):
            found[f"{REFERENCE} {word}"] = ("fenlei", {"config": {"speed": {field: value}}})
    for word, config in _CUDA_VARIANTS.items() if device == "cuda" else ():
        found[f"{REFERENCE} {word}"] = ("fenlei", {"config": config})
    for word, env in _CPU_ENVIRONMENTS.items() if device == "cpu" else ():
        found[f"{REFERENCE} {word}"] = ("fenlei", {"env": env})
    return found


def speed_changes() -> list[tuple[str, Any]]:
    """Every other value of every speed setting, read off the configuration itself."""
    from fenlei.config import RunConfig

    group = RunConfig.model_fields.get("speed")
    changes: list[tuple[str, Any]] = []
    for name, info in getattr(group and group.annotation, "model_fields", {}).items():
        if info.annotation is bool:
            changes.append((name, not info.default))
        elif get_origin(info.annotation) is Literal:
            changes += [(name, value) for value in get_args(info.annotation) if value != info.default]
    return changes


def settle(jobs: Jobs, setting: Setting) -> tuple[dict[str, Any], float]:
    """Lets this package choose once what it otherwise measures at every start, so that all its variants share it.

    Returns:
        Settings to pin, and the bytes that its trainer took.

    Raises:
        SystemExit: its trainer does not run.
    """
    (course,) = run_groups(
        [[jobs.of_steps(1).make(f"{REFERENCE}, choosing", "fenlei", {})]],
        setting,
        warmup=0,
        repeats=1,
        after=lambda _: None,
    )
    if course.failed:
        raise SystemExit(f"{REFERENCE} does not run: {course.failed}")
    engine = course.ready["engine"]
    pinned = {
        "speed": {"adapter_dtype": engine["adapter_dtype"]},
        "train": {"micro_batch_tokens": engine["micro_batch_tokens"]},
    }
    return pinned, float(course.gpu_peak or course.peak)


def pin(settings: dict[str, Any], pinned: dict[str, Any]) -> dict[str, Any]:
    """A variant's settings over those that were chosen once."""
    own = settings.get("config", {})
    merged = {group: {**pinned.get(group, {}), **own.get(group, {})} for group in {**pinned, **own}}
    return {**settings, "config": merged}


def try_trl(jobs: Jobs, setting: Setting, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """A few steps of each TRL setting, in turn; empty when TRL is not there.

    Args:
        jobs: the workload.
        setting: how processes are run.
        names: keys of ``TRL_SETTINGS``; by default all that suit the device and the batch.
    """
    version = trl_version(setting.python["trl"])
    if version is None:
        return []
    if not names:
        names = [n for n in TRL_SETTINGS if jobs.device == "cuda" or n not in _CUDA_ONLY]
        names = [n for n in names if TRL_SETTINGS[n]["micro_batch"] <= jobs.batch_size]
    few = jobs.of_steps(1 + _TRL_REPEATS)
    setting.say(f"trying TRL {version}: {'; '.join(names)}")
    made = [few.make(n, "trl", TRL_SETTINGS[n]) for n in names]
    groups = make_groups(made, jobs.longest, setting.memory) if not setting.alone else [[job] for job in made]
    courses = run_groups(groups, setting, warmup=1, repeats=_TRL_REPEATS, after=lambda _: None)
    return [_tried(name, version, [c for c in courses if c.job.name == name]) for name in names]


def _tried(name: str, version: str, own: Sequence[Course]) -> dict[str, Any]:
    seconds = [s for c in own for s in c.seconds]
    return {
        "setting": name,
        "seconds": statistics.median(seconds) if seconds else None,
        "peak_bytes": max(c.gpu_peak or c.peak for c in own),
        "failed": next((c.failed for c in own if c.failed), ""),
        "trl": version,
    }


def trl_version(python: str) -> str | None:
    """The version of TRL that an interpreter can import; None without."""
    check = "import importlib.metadata as m; from trl import SFTTrainer; print(m.version('trl'))"
    try:
        done = subprocess.run([python, "-c", check], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip().split("\n")[-1] if done.returncode == 0 else None
