"""``fenlei evaluate``."""

from __future__ import annotations

from pathlib import Path

import typer


def evaluate(
    run: Path = typer.Argument(..., metavar="RUN", help="Run folder or classifier folder."),
    file: str = typer.Argument(..., metavar="FILE", help="Labelled data."),
    overrides: list[str] | None = typer.Argument(None, metavar="[KEY=VALUE]...", help="e.g. model.device=cpu"),
    json_out: Path | None = typer.Option(None, "--json", metavar="OUT", help="Write all figures here."),
    ladder: bool = typer.Option(
        False, "--ladder", help="Compare with baselines too: most frequent class, TF-IDF, the model before tuning."
    ),
    report: Path | None = typer.Option(None, "--report", metavar="DIR", help="Write the report page here."),
    offline: bool = typer.Option(False, "--offline", help="Never touch the network."),
) -> None:
    """Score a classifier on labelled data."""
    from fenlei.artifact import find_classifier, write_json
    from fenlei.cli.figures import calibration_line, check_json_out, check_out, more_lines
    from fenlei.cli.report import check_report_out, evaluate_with_report, price_of

    find_classifier(run)
    check_json_out(json_out, [file])
    rejected = (json_out or Path("evaluate")).with_suffix(".rejected.jsonl")
    check_out("bad rows would go to", rejected, [file])
    check_report_out(report)
    from fenlei.classifier import TextClassifier
    from fenlei.cli.common import headline, metrics_table, output_console, quiet_libraries
    from fenlei.cli.ladder import evaluate_with_ladder, show_ladder

    quiet_libraries()
    more = ["model.offline=true"] if offline else []
    classifier = TextClassifier.load(run, overrides=[*(overrides or ()), *more])
    if ladder:
        metrics = evaluate_with_ladder(classifier, run, file, rejected, report)
    elif report is not None:
        metrics = evaluate_with_report(classifier, run, file, rejected, report)
    else:
        metrics = classifier.evaluate(file, rejected_path=rejected)
    if json_out is not None:
        write_json(json_out, metrics)
    stdout = output_console()
    stdout.print(metrics_table(metrics, str(file)))
    stdout.print(headline(metrics))
    for line in more_lines(metrics):
        stdout.print(line, soft_wrap=True)
    stdout.print(calibration_line(metrics), soft_wrap=True)
    price = price_of(metrics, classifier.config.report)
    if price is not None and price.price_note:
        stdout.print(price.price_note, soft_wrap=True)
    if ladder:
        show_ladder(stdout, metrics["ladder"])
    if metrics["rejected"]:
        stdout.print(f"{metrics['rejected']} bad rows left out: {rejected}")
    if report is not None:
        stdout.print(f"report      {report / 'index.html'}", soft_wrap=True)
