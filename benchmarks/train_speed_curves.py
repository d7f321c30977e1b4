"""Loss curves: the tutorial's trainer and this package's, from the same start, on the same rows in the same order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from train_speed_run import Setting, run_groups
from train_speed_variants import Jobs

TUTORIAL, OURS = "tutorial, label kept", "fenlei"
SEED, ROUNDING = "tutorial, another seed", "tutorial, rows one by one"
TUTORIAL_EXACT, EXACT = "tutorial, label kept, in float32", "fenlei in float32"
PLAIN = "fenlei in float32, nothing packed or fused"
_PLAIN_SPEED = {"packed": False, "fused_lora": False, "fused_norm": False, "last_layer": False}
_LEARNING_RATE = 1e-4
_PRINTED = 20
# what is compared: key -> first, second, in words
_PAIRS = {
    "difference": (TUTORIAL, OURS, f"{OURS} against the {TUTORIAL}"),
    "seeds": (TUTORIAL, SEED, "two seeds of the tutorial"),
    "rounding": (TUTORIAL, ROUNDING, "the tutorial's rows by four against one by one"),
    "exact": (TUTORIAL_EXACT, EXACT, f"{EXACT} against the {TUTORIAL_EXACT}"),
    "float32": (EXACT, PLAIN, "float32, all that makes it fast against none of it"),
    "tutorial_to_float32": (EXACT, TUTORIAL, f"the {TUTORIAL} against float32"),
    "fenlei_to_float32": (EXACT, OURS, f"{OURS} against float32"),
}


def compare(jobs: Jobs, setting: Setting) -> dict[str, Any]:
    """Trains both from the same adapter with the same settings and no dropout, in bfloat16 and in float32.

    Two more runs of the tutorial say how large a difference means nothing: one from another adapter, and one with its
    rows one by one instead of by four, which is the same mathematics with other rounding in bfloat16. One more of this
    package, in float32, has none of what makes it fast. Of ``jobs`` in float32, only the two in float32 are run.
    """
    ours: dict[str, Any] = {
        "lora": {"r": 8, "alpha": 32, "dropout": 0.0},
        "train": {
            "learning_rate": _LEARNING_RATE,
            "scheduler": "linear",
            "warmup_fraction": 0.0,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
        },
    }
    theirs = {"dropout": 0.0, "learning_rate": _LEARNING_RATE}
    exact = replace(jobs, dtype="float32")
    made = [
        exact.make(TUTORIAL_EXACT, "tutorial", theirs),
        exact.make(EXACT, "fenlei", {"config": ours}),
    ]
    if jobs.dtype != "float32":
        made = [
            jobs.make(TUTORIAL, "tutorial", theirs),
            jobs.make(OURS, "fenlei", {"config": ours}),
            jobs.make(SEED, "tutorial", theirs, seed=jobs.seed + 1),
            jobs.make(ROUNDING, "tutorial", {**theirs, "micro_batch": 1}),
            *made,
            exact.make(PLAIN, "fenlei", {"config": {**ours, "speed": _PLAIN_SPEED}}),
        ]
    courses = run_groups([[job] for job in made], setting, warmup=0, repeats=jobs.steps, after=lambda _: None)
    losses = {c.job.name: c.losses for c in courses}
    return {
        "workload": jobs.workload.name,
        "steps": jobs.steps,
        "rows_per_step": jobs.batch_size,
        "learning_rate": _LEARNING_RATE,
        "failed": {c.job.name: c.failed for c in courses if c.failed},
        "same_adapter_at_start": courses[0].ready.get("adapter") == courses[1].ready.get("adapter"),
        "losses": losses,
        **{
            key: difference(losses[first], losses[second])
            for key, (first, second, _) in _PAIRS.items()
            if first in losses and second in losses
        },
    }


def difference(first: list[float], second: list[float]) -> dict[str, float]:
    """How far two curves are apart: the largest and the mean difference of a step, and that of the curves' means."""
    apart = [abs(a - b) for a, b in zip(first, second, strict=False)]
    if not apart:
        return {}
    n = len(apart)
    return {
        "largest": max(apart),
        "mean": sum(apart) / n,
        "of_means": abs(sum(first[:n]) - sum(second[:n])) / n,
    }


def markdown(curves: dict[str, Any]) -> str:
    """The curves as a Markdown section."""
    names = list(curves["losses"])
    steps = curves["steps"]
    shown = (
        range(steps)
        if steps <= _PRINTED
        else sorted({round(i * (steps - 1) / (_PRINTED - 1)) for i in range(_PRINTED)})
    )
    lines = [
        f"### Loss, {curves['workload']}: {steps} steps of {curves['rows_per_step']} rows",
        "",
        f"Learning rate {curves['learning_rate']:g}, linear to zero, no dropout, same rows in the same order; both "
        + ("start at the same adapter." if curves["same_adapter_at_start"] else "START AT DIFFERENT ADAPTERS."),
        "",
        f"| step | {' | '.join(names)} |",
        "|---:" * (len(names) + 1) + "|",
    ]
    for i in shown:
        values = (curves["losses"][name] for name in names)
        lines.append(f"| {i + 1} | {' | '.join(f'{v[i]:.4f}' if i < len(v) else '' for v in values)} |")
    lines.append("")
    for key, (_, _, what) in _PAIRS.items():
        if found := curves.get(key):
            lines.append(
                f"- {what}: a step's losses differ by {found['largest']:.2g} at most, {found['mean']:.2g} on average; "
                f"the curves' means by {found['of_means']:.2g}."
            )
    lines += [f"- {name} FAILED: {why}" for name, why in curves["failed"].items()]
    return "\n".join(lines) + "\n"


def draw(curves: dict[str, Any], path: Path) -> Path:
    """The curves as an SVG file."""
    from chart import lines

    title = f"Training loss, {curves['workload']}, {curves['rows_per_step']} rows a step"
    shown = {name: values for name, values in curves["losses"].items() if name != PLAIN}  # it covers the other one
    return lines(path, shown, title=title, x="optimizer step", y="loss")
