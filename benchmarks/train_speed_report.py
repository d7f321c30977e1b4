"""From measured seconds to the figures of the report, and the report as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from train_speed_run import REFERENCE, Course

BASELINE = "tutorial"
# bfloat16 without sparsity, operations a second: the makers' data sheets
DATA_SHEETS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "A800": 312e12, "H800": 989e12}
# The first loss comes before the first update, and a fresh adapter changes nothing: all methods must agree on it but
# for the rounding of bfloat16.
FIRST_LOSS_TOLERANCE = 0.05


def summarize(courses: Sequence[Course], tokens: Sequence[int]) -> dict[str, Any]:
    """The figures of one workload.

    Args:
        courses: what was measured; the reference once in every group.
        tokens: tokens of the rows of each measured step, padding not counted.

    Returns:
        `variants`: one dict a variant, in the order of ``courses``; `matrix`: rates of plain matrix products.
    """
    matrix = matrix_rates([c for c in courses if c.job.method == "matrix"])
    names = dict.fromkeys(c.job.name for c in courses if c.job.method != "matrix")
    variants = [_variant([c for c in courses if c.job.name == name], courses, tokens, matrix) for name in names]
    expected = next((v["first_loss"] for v in variants if v["variant"] == REFERENCE), None)
    for variant in variants:
        variant["first_loss_agrees"] = _agree(variant["first_loss"], expected)
    return {"variants": variants, "matrix": matrix}


def _variant(
    own: Sequence[Course], courses: Sequence[Course], tokens: Sequence[int], matrix: dict[str, Any]
) -> dict[str, Any]:
    job = own[0].job
    seconds = [s for c in own for s in c.seconds]
    found: dict[str, Any] = {
        "variant": job.name,
        "method": job.method,
        "settings": job.settings,
        "engine": own[0].ready.get("engine", {}),
        "groups": [c.group for c in own],
        "seconds": [c.seconds for c in own],
        "losses": own[0].losses,
        "first_loss": own[0].losses[0] if own[0].losses else None,
        "failed": "; ".join(c.failed for c in own if c.failed),
        "peak_bytes": max(c.peak for c in own) or None,
        "rest_bytes": max(c.rest for c in own) or None,
        "gpu_peak_bytes": max(c.gpu_peak for c in own) or None,
    }
    if not seconds:
        return found
    token_rates = [t / s for c in own for t, s in zip(tokens, c.seconds, strict=False)]
    operations = 4 * job.model.body_parameters * statistics.median(token_rates)
    found |= {
        "seconds_a_step": statistics.median(seconds),
        "rows_per_second": job.batch_size / statistics.median(seconds),
        "tokens_per_second": statistics.median(token_rates),
        "model_flops": operations,
        "share_of_matrix_rate": operations / matrix["best"] if matrix else None,
        "share_of_data_sheet": operations / matrix["data_sheet"] if matrix.get("data_sheet") else None,
        "speed_ratio": ratio(courses, BASELINE, job.name),
        "memory_ratio": _memory_ratio(courses, job.name),
    }
    return found


def ratio(courses: Sequence[Course], slow: str, fast: str) -> float | None:
    """How many times faster ``fast`` is than ``slow``: the median over rounds of the two times of the same round.

    Two variants that were never alive together are joined through the reference, which is in every group; where every
    variant ran alone, their medians are compared.
    """
    direct = _round_ratios(courses, slow, fast)
    if direct:
        return statistics.median(direct)
    first, second = _round_ratios(courses, slow, REFERENCE), _round_ratios(courses, REFERENCE, fast)
    if first and second:
        return statistics.median(first) * statistics.median(second)
    times = {name: [s for c in courses if c.job.name == name for s in c.seconds] for name in (slow, fast)}
    return statistics.median(times[slow]) / statistics.median(times[fast]) if all(times.values()) else None


def _round_ratios(courses: Sequence[Course], slow: str, fast: str) -> list[float]:
    found = []
    for a in courses:
        for b in courses:
            if a.group == b.group and (a.job.name, b.job.name) == (slow, fast):
                found += [x / y for x, y in zip(a.seconds, b.seconds, strict=False)]
    return found


def _memory_ratio(courses: Sequence[Course], name: str) -> float | None:
    """The baseline's peak memory over that of a variant: on the GPU where there is one, else the process's."""

    def peak(wanted: str) -> int:
        return max((c.gpu_peak or c.peak for c in courses if c.job.name == wanted and c.seconds), default=0)

    return peak(BASELINE) / peak(name) if peak(name) and peak(BASELINE) else None


def matrix_rates(courses: Sequence[Course]) -> dict[str, Any]:
    """Rates of plain matrix products in operations a second: each shape's median, and the best shape's."""
    rounds = [r for c in courses for r in c.rates]
    if not rounds:
        return {}
    shapes = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    device = courses[0].ready.get("device_name", "")
    sheet = next((rate for name, rate in DATA_SHEETS.items() if name in device), None)
    versions = {
        k: v for k, v in courses[0].ready.items() if k not in ("event", "now", "peak", "gpu_peak", "gpu_reserved")
    }
    return {"best": max(shapes.values()), "shapes": shapes, "data_sheet": sheet, **versions}


def _agree(loss: float | None, expected: float | None) -> bool | None:
    if loss is None or expected is None:
        return None
    return math.isfinite(loss) and abs(loss - expected) <= FIRST_LOSS_TOLERANCE * max(abs(expected), 0.1)


def markdown(name: str, workload: dict[str, Any]) -> str:
    """One workload as a Markdown section."""
    matrix = workload["matrix"]
    lines = [f"### {name}", "", f"{workload['about']}; {workload['shared']} tokens shared by all rows.", ""]
    gpu = any(v.get("gpu_peak_bytes") for v in workload["variants"])
    head = ["variant", "s/step", "rows/s", "tokens/s", "model TFLOP/s" if gpu else "model GFLOP/s", "of matrix rate"]
    head += ["of data sheet"] if matrix.get("data_sheet") else []
    head += ["peak GB", *(["GPU peak GB"] if gpu else []), "speed", "memory"]
    lines += [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for variant in workload["variants"]:
        lines.append(_row(variant, len(head), gpu, bool(matrix.get("data_sheet"))))
    lines += ["", *_notes(workload)]
    return "\n".join(lines) + "\n"


def _row(v: dict[str, Any], columns: int, gpu: bool, sheet: bool) -> str:
    if "rows_per_second" not in v:
        return f"| {v['variant']} | {v['failed'] or 'not measured'} " + "| " * (columns - 2) + "|"
    cells = [v["variant"] + ("" if v["first_loss_agrees"] is not False else " (LOSS DIFFERS)")]
    cells += [f"{v['seconds_a_step']:.2f}", f"{v['rows_per_second']:.3g}", f"{v['tokens_per_second']:.0f}"]
    cells += [f"{v['model_flops'] / (1e12 if gpu else 1e9):.0f}", _percent(v["share_of_matrix_rate"])]
    cells += [_percent(v["share_of_data_sheet"])] if sheet else []
    cells += [_gigabytes(v["peak_bytes"]), *([_gigabytes(v["gpu_peak_bytes"])] if gpu else [])]
    cells += [_times(v["speed_ratio"]), _times(v["memory_ratio"])]
    return f"| {' | '.join(cells)} |"


def _notes(workload: dict[str, Any]) -> list[str]:
    matrix, notes = workload["matrix"], []
    groups = len({group for v in workload["variants"] for group in v["groups"]})
    turns = "all variants in turn" if groups == 1 else f"variants in turn, in {groups} groups that fit into memory"
    counts = [len(seconds) for v in workload["variants"] for seconds in v["seconds"] if seconds] or [0]
    steps = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"  # fewer where it was stopped
    if matrix:
        best = max(matrix["shapes"], key=lambda name: matrix["shapes"][name])
        rate, dtype = matrix["best"] / 1e9, workload.get("dtype", "bfloat16")
        when = "before the variants, alone" if workload["alone"] else "between the steps"
        notes.append(f"- Matrix rate measured {when}: {rate:,.0f} GFLOP/s ({best}, {dtype}).")
    notes.append(
        f"- {workload['rows_per_step']} rows an optimizer step, {steps} steps measured, "
        + ("each variant alone" if workload["alone"] else turns)
        + "; medians. Speed and memory: times better than the tutorial"
        + (". " if workload["alone"] else ", speed as the median of the ratios within a round. ")
        + "Tokens are those of the rows, without padding; model FLOP/s is 4 x the layers' weights x tokens, "
        "whatever a method really computes, so sharing work between rows can pass 100 %."
    )
    tried = workload.get("trl_tried")
    if tried:
        listed = ", ".join(
            f"{t['setting']} {t['seconds']:.2f} s" if t["seconds"] else f"{t['setting']} failed" for t in tried
        )
        notes.append(f"- TRL settings tried (seconds a step): {listed}. The fastest is in the table.")
    losses = [v["first_loss"] for v in workload["variants"] if v["first_loss"] is not None]
    if losses:
        notes.append(f"- Loss of the first step, before any update: {min(losses):.4f} to {max(losses):.4f}.")
    return notes


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} x"
