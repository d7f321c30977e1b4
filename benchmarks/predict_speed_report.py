"""From measured seconds to the figures of the prediction benchmark, and the report as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from predict_speed_job import Row
from train_speed_report import matrix_rates, ratio
from train_speed_run import Course

BASELINE = "generate, one by one"


def summarize(
    courses: Sequence[Course], portions: Mapping[str, Sequence[Sequence[Row]]], known: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """The figures of one workload.

    Args:
        courses: what was measured; the reference once in every group.
        portions: by classifier folder, the rows of each measured step.
        known: by classifier folder, every answer that stands for a label.

    Returns:
        `variants`: one dict a variant, in the order of ``courses``; `matrix`: rates of plain matrix products.
    """
    matrix = matrix_rates([c for c in courses if c.job.method == "matrix"])
    names = dict.fromkeys(c.job.name for c in courses if c.job.method != "matrix")
    variants = []
    for name in names:
        own = [c for c in courses if c.job.name == name]
        folder = str(own[0].job.classifier)  # type: ignore[attr-defined]
        variants.append(_variant(own, courses, portions.get(folder, ()), known.get(folder, ()), matrix))
    return {"variants": variants, "matrix": matrix}


def _variant(
    own: Sequence[Course],
    courses: Sequence[Course],
    portions: Sequence[Sequence[Row]],
    known: Collection[str],
    matrix: dict[str, Any],
) -> dict[str, Any]:
    job = own[0].job
    found: dict[str, Any] = {
        "variant": job.name,
        "method": job.method,
        "settings": job.settings,
        "ready": {k: v for k, v in own[0].ready.items() if k not in ("event", "now", "peak")},
        "groups": [c.group for c in own],
        "seconds": [c.seconds for c in own],
        "failed": "; ".join(c.failed for c in own if c.failed),
        "peak_bytes": max(c.peak for c in own) or None,
        "gpu_peak_bytes": max(c.gpu_peak for c in own) or None,
    }
    steps = [
        (rows, seconds, said) for c in own for rows, seconds, said in zip(portions, c.seconds, c.answers, strict=False)
    ]
    if not steps:
        return found
    seconds = [s for _, s, _ in steps]
    answered = [sum(len(row.prompt) for row in rows) for rows, _, _ in steps]
    computed = [said.get("computed") for _, _, said in steps]
    return found | {
        "texts_per_second": statistics.median(len(rows) / s for rows, s, _ in steps),
        "answered": _work(answered, seconds, job.model.body_parameters, matrix),
        "computed": None if None in computed else _work(computed, seconds, job.model.body_parameters, matrix),
        "speed_ratio": ratio(courses, BASELINE, job.name),
        **_right(steps, known),
    }


def _work(tokens: Sequence[Any], seconds: Sequence[float], parameters: int, matrix: dict[str, Any]) -> dict[str, Any]:
    """What the tokens of each step are in operations a second, and as a share of what the machine can do."""
    rate = statistics.median(count / s for count, s in zip(tokens, seconds, strict=True))
    operations = 2 * parameters * rate
    return {
        "tokens": list(tokens),
        "tokens_per_second": rate,
        "flops": operations,
        "share_of_matrix_rate": operations / matrix["best"] if matrix else None,
        "share_of_data_sheet": operations / matrix["data_sheet"] if matrix.get("data_sheet") else None,
    }


def _right(steps: Sequence[tuple[Sequence[Row], float, dict[str, Any]]], known: Collection[str]) -> dict[str, Any]:
    """How many answers are right, and how many are no label at all; a text that is measured twice counts once."""
    pairs = (pair for rows, _, said in steps for pair in zip(rows, said["answers"], strict=True))
    answers = {row.text: (row, answer.strip()) for row, answer in pairs}
    return {
        "rows": len(answers),
        "accuracy": sum(row.answer == answer for row, answer in answers.values()) / len(answers),
        "off_label": sum(answer not in known for _, answer in answers.values()),
    }


def markdown(name: str, workload: dict[str, Any]) -> str:
    """One workload as a Markdown section."""
    gpu = any(v.get("gpu_peak_bytes") for v in workload["variants"])
    sheet = bool(workload["matrix"].get("data_sheet"))
    trained = not workload["fresh"]
    head = ["variant", "texts/s", "answered tokens/s", "answered, of matrix rate", "computed tokens/s"]
    head += ["computed TFLOP/s" if gpu else "computed GFLOP/s", "computed, of matrix rate"]
    head += [*(["of data sheet"] if sheet else []), "peak GB", *(["GPU peak GB"] if gpu else []), "speed"]
    head += ["accuracy", "no label"] if trained else []
    lines = [f"### {name}", "", f"{workload['about']}.", "", f"| {' | '.join(head)} |"]
    lines.append("|---" + "|---:" * (len(head) - 1) + "|")
    lines += [_row(v, len(head), gpu, sheet, trained) for v in workload["variants"]]
    return "\n".join([*lines, "", *_notes(workload)]) + "\n"


def _row(v: dict[str, Any], columns: int, gpu: bool, sheet: bool, trained: bool) -> str:
    if "texts_per_second" not in v:
        return f"| {v['variant']} | {v['failed'] or 'not measured'} " + "| " * (columns - 2) + "|"
    answered, computed = v["answered"], v["computed"]
    cells = [v["variant"], f"{v['texts_per_second']:.3g}", f"{answered['tokens_per_second']:.0f}"]
    cells.append(_percent(answered["share_of_matrix_rate"]))
    if computed is None:
        cells += ["", "", "", *([""] if sheet else [])]
    else:
        cells += [f"{computed['tokens_per_second']:.0f}", f"{computed['flops'] / (1e12 if gpu else 1e9):.3g}"]
        cells.append(_percent(computed["share_of_matrix_rate"]))
        cells += [_percent(computed["share_of_data_sheet"])] if sheet else []
    cells += [_gigabytes(v["peak_bytes"]), *([_gigabytes(v["gpu_peak_bytes"])] if gpu else [])]
    cells += ["" if v["speed_ratio"] is None else f"{v['speed_ratio']:.2f} x"]
    cells += [f"{v['accuracy']:.3f}", f"{v['off_label']} of {v['rows']}"] if trained else []
    return f"| {' | '.join(cells)} |"


def _notes(workload: dict[str, Any]) -> list[str]:
    matrix, notes = workload["matrix"], []
    groups = len({group for v in workload["variants"] for group in v["groups"]})
    turns = "all variants in turn" if groups <= 1 else f"variants in turn, in {groups} groups that fit into memory"
    if matrix:
        best = max(matrix["shapes"], key=lambda name: matrix["shapes"][name])
        when = "before the variants, alone" if workload["alone"] else "between the steps"
        notes.append(f"- Matrix rate measured {when}: {matrix['best'] / 1e9:,.0f} GFLOP/s ({best}, bfloat16).")
    notes.append(
        f"- {workload['rows_per_step']} texts a step, {workload['repeats']} steps measured, "
        + ("each variant alone" if workload["alone"] else turns)
        + "; medians. Speed: times faster than `generate` one by one, as the median of the ratios within a round. "
        "FLOP/s are 2 x the layers' weights x tokens."
    )
    notes.append(
        "- Answered tokens are those of the prompts, whatever a method does about them: sharing work between texts can "
        "pass 100 %. Computed tokens are those that went through the layers, counted as they did: what texts share "
        "counts once where it is computed once, and padding and written tokens count too. How near a method comes to "
        "what the machine can do is the share of the computed ones."
    )
    notes.append(f"- {workload['length']}")
    if tried := workload["tried"]:
        listed = ", ".join(f"{t['setting']} {t['seconds']:.2f} s" if t["seconds"] else f"{t['setting']} failed"
                           for t in tried)  # fmt: skip
        notes.append(f"- Batched `generate`, settings tried (seconds a step): {listed}. The fastest is in the table.")
    return notes


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"
