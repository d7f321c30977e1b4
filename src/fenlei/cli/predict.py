"""``fenlei predict``."""

from __future__ import annotations

from pathlib import Path

import typer


def predict(
    run: Path = typer.Argument(..., metavar="RUN", help="Run folder or classifier folder."),
    source: str = typer.Argument(..., metavar="INPUT", help="Texts: .jsonl, .json, .csv, .tsv, .parquet or a folder."),
    overrides: list[str] | None = typer.Argument(None, metavar="[KEY=VALUE]...", help="e.g. data.text_column=body"),
    out: Path = typer.Option(..., "--out", help="Where predictions go: .jsonl, .csv or .parquet."),
    offline: bool = typer.Option(False, "--offline", help="Never touch the network."),
) -> None:
    """Label every text of a file, with the probability of each candidate."""
    from fenlei.artifact import find_classifier
    from fenlei.inference.files import check_output, read_input, write_predictions

    find_classifier(run)
    check_output(source, out)
    from fenlei.classifier import TextClassifier
    from fenlei.cli.common import error_console, quiet_libraries

    quiet_libraries()
    console = error_console()
    more = ["model.offline=true"] if offline else []
    classifier = TextClassifier.load(run, overrides=[*(overrides or ()), *more])
    config = classifier.config
    rows = read_input(source, config.data, classifier.labels, rejected_to=out, offline=config.model.offline)
    with _bar(console, len(rows.examples)) as advance:
        predictions = classifier.classify(rows.examples, progress=advance)
    write_predictions(out, rows, predictions)
    shortened = sum(p.truncated for p in predictions)
    note = f"; {shortened} long texts were shortened" if shortened else ""
    console.print(f"{len(predictions)} predictions in {out}{note}", soft_wrap=True)
    if rows.rejected:
        console.print(f"{len(rows.rejected)} bad rows left out: {out}.rejected.jsonl", style="yellow")


def _bar(console: object, total: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from contextlib import contextmanager

    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown():  # type: ignore[no-untyped-def]  # noqa: ANN202
        columns = (
            *Progress.get_default_columns()[:2],
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:  # type: ignore[arg-type]
            task = bar.add_task("predicting", total=total)
            yield lambda done: bar.advance(task, done)

    return shown()
