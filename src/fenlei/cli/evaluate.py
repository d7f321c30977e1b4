"""``fenlei evaluate``."""

from __future__ import annotations

from pathlib import Path

import typer


def evaluate(
    run: Path = typer.Argument(..., metavar="RUN", help="Run folder or classifier folder."),
    file: str = typer.Argument(..., metavar="FILE", help="Labelled data."),
    overrides: list[str] | None = typer.Argument(None, metavar="[KEY=VALUE]...", help="e.g. model.device=cpu"),
    json_out: Path | None = typer.Option(None, "--json", metavar="OUT", help="Write all figures here."),
    offline: bool = typer.Option(False, "--offline", help="Never touch the network."),
) -> None:
    """Score a classifier on labelled data."""
    from fenlei.artifact import find_classifier, write_json
    from fenlei.errors import DataError

    find_classifier(run)
    if json_out is not None and not json_out.parent.is_dir():
        raise DataError(f"--json {json_out}: the folder {json_out.parent} does not exist")
    from rich.console import Console

    from fenlei.classifier import TextClassifier
    from fenlei.cli.common import headline, metrics_table, quiet_libraries

    quiet_libraries()
    more = ["model.offline=true"] if offline else []
    classifier = TextClassifier.load(run, overrides=[*(overrides or ()), *more])
    metrics = classifier.evaluate(file)
    if json_out is not None:
        write_json(json_out, metrics)
    stdout = Console(highlight=False)
    stdout.print(metrics_table(metrics, str(file)))
    stdout.print(headline(metrics))
