"""What a finished run leaves for people: what it cost, the report page, the model card with its figures."""

from __future__ import annotations

import logging
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from fenlei.artifact import read_artifact, replace_card
from fenlei.config import RunConfig
from fenlei.durable import is_disk_full, write_json
from fenlei.evaluation.report import Cost, ReportData, model_card, read_run, write_report
from fenlei.modeling.loading import pick_device
from fenlei.tracking import TrackerGroup
from fenlei.training.dataset import TrainingSet

_log = logging.getLogger(__name__)


def measure_cost(rows: TrainingSet, config: RunConfig, steps: int, seconds: float, *, resumed: bool) -> Cost:
    """What the training took, right after it.

    Args:
        rows: the training rows.
        config: the settings.
        steps: optimizer steps done, those before a resume included.
        seconds: wall time of the training in this process.
        resumed: whether the run was resumed.
    """
    import torch

    lengths = [len(rows.rows[i].input_ids) for i in rows.order]
    epochs = steps / max(1, -(-len(rows) // config.train.batch_size))
    kind, threads = pick_device(config.model).type, torch.get_num_threads()
    names = {
        "cpu": f"{platform.machine()} CPU, {threads} thread{'s' if threads != 1 else ''}",
        "cuda": torch.cuda.get_device_name() if kind == "cuda" else "",
        "mps": f"GPU of an Apple {platform.machine()} machine",
    }
    return Cost(
        train_seconds=seconds,
        resumed=resumed,
        steps=steps,
        train_rows=round(epochs * len(rows)),
        train_tokens=round(epochs * sum(lengths)),
        peak_memory_bytes=peak_memory(),
        peak_gpu_bytes=int(torch.cuda.max_memory_allocated()) if kind == "cuda" else None,
        device=names.get(kind, kind),
        processor=platform.machine() if kind == "cpu" else None,
        threads=threads if kind == "cpu" else None,
        hourly_price=config.report.hourly_price,
        currency=config.report.currency,
        tokens_per_text=sum(row.answer_start for row in rows.rows) / max(1, len(rows.rows)),
    )


def peak_memory() -> int | None:
    """Most memory that this process has had so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def publish(run_dir: Path, cost: Cost, step: int, console: Console, trackers: TrackerGroup) -> None:
    """Writes ``report/cost.json``, ``index.html`` and ``report.json``, and the figures into the model card.

    The classifier is saved by then, so a fault in here is said and does not fail the run.

    Args:
        run_dir: the run folder; everything else that the report shows is read from its files.
        cost: what the training took.
        step: the step whose weights were used.
        console: where a fault is said.
        trackers: get the headline figures.

    Raises:
        OSError, ArtifactError: the disk is full.
    """
    try:
        report = run_dir / "report"
        report.mkdir(exist_ok=True)
        write_json(report / "cost.json", asdict(cost))
        data = read_run(run_dir)
        write_report(data, report)
        trackers.log(headline_figures(data), step)
        if data.metrics is not None:
            replace_card(run_dir, card_of(run_dir, data))
    except Exception as error:
        if is_disk_full(error):
            raise
        _log.debug("the report could not be made", exc_info=True)
        console.print(f"the report could not be made: {type(error).__name__}: {error}", style="yellow")


def card_of(run_dir: Path, data: ReportData) -> str:
    """The model card of a finished run."""
    artifact = read_artifact(run_dir)
    return model_card(
        data.title,
        artifact.labels,
        artifact.manifest["base_model"],
        config=data.config,
        metrics=data.metrics,
        part=data.part,
        calibration=artifact.calibration,
        texts=[row.text for row in data.rows],
    )


def headline_figures(data: ReportData) -> dict[str, float]:
    """What trackers show of a report beside its pictures: the ladder and the cost."""
    found: dict[str, Any] = {f"ladder/{rung.key}_accuracy": rung.accuracy for rung in data.rungs}
    found.update({f"ladder/{rung.key}_macro_f1": rung.macro_f1 for rung in data.rungs})
    if data.cost is not None:
        found["cost/train_seconds"] = data.cost.train_seconds
        found["cost/train_tokens"] = data.cost.train_tokens
        found["cost/peak_memory_bytes"] = data.cost.peak_memory_bytes
        found["cost/peak_gpu_bytes"] = data.cost.peak_gpu_bytes
        found["cost/price_per_million"] = data.cost.price_per_million
    if data.metrics is not None:
        found["cost/texts_per_second"] = data.metrics.get("texts_per_second")
    return {name: float(value) for name, value in found.items() if value is not None}
