"""``fenlei demo``: the main job on a small sample of Chinese news that ships in the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fenlei.config import RunConfig
    from fenlei.modeling.prediction import Prediction
    from fenlei.training.run import TrainResult

DEFAULT_MODEL = "qwen2.5-coder-0.5b"
_BAR = 24


def demo(
    model: str = typer.Option(DEFAULT_MODEL, help="Model spec; see `fenlei models list`."),
    out: Path | None = typer.Option(None, help="Run folder; by default the first free fenlei-demo, fenlei-demo-2 ..."),
    overrides: list[str] | None = typer.Argument(None, metavar="[KEY=VALUE]...", help="Any setting of `fenlei train`."),
) -> None:
    """Tune a small model on 180 Chinese news items and show what it learned (minutes on two CPU cores)."""
    from fenlei.cli.common import output_console, quiet_libraries
    from fenlei.errors import ConfigError

    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: is there already; choose another folder")
    console = output_console()
    run_dir = out or _free_folder(Path("fenlei-demo"))
    config = demo_config(model, run_dir, overrides or [])
    console.print(
        "fenlei demo: 9 classes of Chinese news, written for this demo; topics of test and training differ\n",
        soft_wrap=True,
    )
    quiet_libraries()
    zero_shot: dict[str, Any] = {}
    result = _train(config, run_dir, console, zero_shot)
    _show(console, result, zero_shot)


def demo_config(model: str, run_dir: Path, overrides: list[str]) -> RunConfig:
    """The demo's settings: the default preset on the sample, all nine labels as candidates."""
    from fenlei.config import RunConfig

    sample = files("fenlei") / "demo_data"
    return RunConfig.build(
        {
            "out": str(run_dir),
            "data": {
                "train": str(sample / "train.jsonl"),
                "test": str(sample / "test.jsonl"),
                "candidates": "all",
            },
            "model": {"spec": model},
            "tracking": {"project": "fenlei-demo"},
            # zero-shot is measured on all rows before training
            "evaluation": {"ladder": ["majority", "tfidf"]},
        },
        overrides=overrides,
    )


def _train(config: RunConfig, run_dir: Path, console: Console, zero_shot: dict[str, Any]) -> TrainResult:
    import time

    from fenlei.evaluation import evaluate_predictions
    from fenlei.inference import Predictor
    from fenlei.training.data import read_training_data
    from fenlei.training.folder import open_run
    from fenlei.training.run import train_classifier

    open_run(config, run_dir, resume=False)
    data = read_training_data(config, run_dir)

    def measure(untrained: Predictor) -> None:
        console.print(f"asking the model as it is (zero-shot), {len(data.test)} test rows ...")
        start = time.monotonic()
        found = untrained.predict(data.test)
        gold = [str(e.label) for e in data.test]
        zero_shot.update(evaluate_predictions(gold, found, data.labels.names, seconds=time.monotonic() - start))
        console.print(f"zero-shot accuracy {zero_shot['accuracy']:.3f}; now training ...")

    return train_classifier(config, data, run_dir, console=console, before_training=measure)


def _show(console: Console, result: TrainResult, zero_shot: dict[str, Any]) -> None:
    from rich.table import Table

    assert result.test is not None
    table = Table(title=f"\n{result.test['n']} test rows", title_justify="left")
    table.add_column("")
    for name in ("accuracy", "macro-F1", "log loss"):
        table.add_column(name, justify="right")
    for name, metrics in (("zero-shot", zero_shot), ("tuned", result.test)):
        table.add_row(name, *(f"{metrics[k]:.3f}" for k in ("accuracy", "macro_f1", "log_loss")))
    console.print(table)

    texts = _unseen()
    console.print("\nThree texts it has never seen:")
    from fenlei.data import Example

    for text, prediction in zip(texts, result.predictor.predict([Example(t) for t in texts]), strict=True):
        _show_prediction(console, text, prediction)

    run = result.run_dir
    page = run / "report" / "index.html"
    console.print(f"\nDone in {result.seconds / 60:.1f} min. What there is now:")
    for name, where in (
        ("classifier", result.classifier_dir),
        ("metrics", run / "metrics.jsonl"),
        ("settings", run / "config.yaml"),
        *([("report", page)] if page.is_file() else []),
        ("confusion", run / "report" / "confusion-test.png"),
    ):
        console.print(f"  {name:<11} {where}", soft_wrap=True)
    for line in result.trackers:
        console.print(f"  {'tracking':<11} {line}", soft_wrap=True)
    from fenlei.cli.common import activation

    console.print("\nWhat to type next:")
    first = activation()
    for command in (
        *([first] if first else []),
        f"fenlei predict {run} YOUR_TEXTS.jsonl --out predictions.jsonl",
        f"fenlei evaluate {run} YOUR_LABELLED.jsonl",
        "fenlei train --train YOUR_TRAIN.jsonl --model Qwen/Qwen2.5-1.5B-Instruct --out runs/mine",
    ):
        console.print(f"  {command}", soft_wrap=True)


def _show_prediction(console: Console, text: str, prediction: Prediction) -> None:
    console.print(f"\n  {text}", soft_wrap=True)
    top = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:3]
    for label, p in top:
        bar = "█" * round(p * _BAR)
        console.print(f"    {label:<12} {p:6.3f} {bar}")


def _unseen() -> list[str]:
    text = (files("fenlei") / "demo_data" / "unseen.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip()]


def _free_folder(base: Path) -> Path:
    found, number = base, 1
    while found.exists():
        number += 1
        found = base.with_name(f"{base.name}-{number}")
    return found
