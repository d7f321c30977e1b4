"""``fenlei train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

_SETTINGS = typer.Argument(None, metavar="[KEY=VALUE]...", help="Any setting, e.g. train.learning_rate=1e-4")


def train(
    overrides: list[str] | None = _SETTINGS,
    config: Path | None = typer.Option(None, help="Settings as a YAML file (a run's config.yaml, for one)."),
    train: str | None = typer.Option(None, help="Training data: file, folder or data set id."),
    dev: str | None = typer.Option(None, help="Development data; split from train when not given."),
    test: str | None = typer.Option(None, help="Test data, evaluated once at the end."),
    model: str | None = typer.Option(None, help="Model spec; see `fenlei models list`."),
    out: Path | None = typer.Option(None, help="Run folder; by default runs/<name>-<time>."),
    preset: str | None = typer.Option(None, help="default, or tutorial (the Qwen1.5 tutorial's values)."),
    resume: bool = typer.Option(False, "--resume", help="Go on from the newest checkpoint in --out."),
    offline: bool = typer.Option(False, "--offline", help="Never touch the network."),
    show_settings: bool = typer.Option(False, "--show-settings", help="List every setting with its default, and end."),
) -> None:
    """Tune a model on labelled texts; write a run folder with the classifier in it."""
    from fenlei.config import RunConfig
    from fenlei.errors import ConfigError

    if show_settings:
        typer.echo(describe_settings())
        return
    values, where = _values(config, out, resume)
    from fenlei.cli.common import settings

    given = settings(
        preset=preset,
        out=str(out) if out else None,
        data__train=train,
        data__dev=dev,
        data__test=test,
        model__spec=model,
        model__offline=True if offline else None,
    )
    stored = values.get("preset", "default")
    if preset is not None and values and preset != stored:
        raise ConfigError(
            f"--preset {preset}: the settings that are read already come from preset {stored!r} and would win over it; "
            "leave one of the two out"
        )
    merged = {k: ({**(values.get(k) or {}), **v} if isinstance(v, dict) else v) for k, v in given.items()}
    _run(RunConfig.build({**values, **merged}, overrides=overrides or ()), where, resume)


def _values(config: Path | None, out: Path | None, resume: bool) -> tuple[dict[str, Any], Path | None]:
    """Settings to start from: the file given, or, on resume, those of the run itself."""
    from fenlei.config import read_yaml
    from fenlei.errors import ConfigError

    if not resume:
        return (read_yaml(config) if config else {}), out
    if out is None:
        raise ConfigError("--resume needs the run folder: fenlei train --out RUN --resume")
    stored = out / "config.yaml"
    if not stored.is_file():
        raise ConfigError(f"{out}: nothing to resume: it holds no config.yaml")
    return read_yaml(config or stored), out


def _run(config: Any, out: Path | None, resume: bool) -> None:
    from fenlei.classifier import TextClassifier, default_run_dir
    from fenlei.cli.common import activation, error_console, headline, metrics_table, output_console, quiet_libraries
    from fenlei.cli.figures import calibration_line
    from fenlei.cli.ladder import show_ladder
    from fenlei.cli.report import price_of

    console = error_console()
    run_dir = Path(out or config.out or default_run_dir(config))
    quiet_libraries()
    classifier = TextClassifier(config=config).fit(out=run_dir, resume=resume, console=console)
    result = classifier.result
    assert result is not None
    stdout = output_console()
    for name, metrics in (("dev", result.dev), ("test", result.test)):
        if metrics:
            stdout.print(metrics_table(metrics, f"{name} set"))
            stdout.print(headline(metrics))
            stdout.print(calibration_line(metrics), soft_wrap=True)
    price = price_of(result.test or result.dev or {}, config.report)
    if price is not None and price.price_note:
        stdout.print(price.price_note, soft_wrap=True)
    if result.ladder:
        show_ladder(stdout, result.ladder)
    minutes = result.seconds / 60
    stdout.print(f"\ntrained {result.steps} steps in {minutes:.1f} min; kept the weights of step {result.best_step}")
    stdout.print(f"classifier  {result.classifier_dir}\nmetrics     {result.run_dir / 'metrics.jsonl'}", soft_wrap=True)
    page = result.run_dir / "report" / "index.html"
    if page.is_file():
        stdout.print(f"report      {page}", soft_wrap=True)
    for line in result.trackers:
        stdout.print(f"tracking    {line}", soft_wrap=True)
    if first := activation():
        stdout.print(f"next        {first}")
    stdout.print(
        f"next        fenlei predict {result.run_dir} TEXTS.jsonl --out PREDICTIONS.jsonl",
        soft_wrap=True,
    )


def describe_settings() -> str:
    """Every setting, its default and its help, from the docstrings of the configuration."""
    from pydantic import BaseModel

    from fenlei.config import RunConfig

    lines: list[str] = []

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                walk(kind, f"{prefix}{name}.")
                continue
            default = field.get_default(call_default_factory=True)
            help_text = " ".join((field.description or "").split())  # a docstring may run over lines
            lines.append(f"{prefix}{name}={default}\n    {help_text}")

    walk(RunConfig, "")
    return "\n".join(lines)
