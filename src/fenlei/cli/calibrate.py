"""``fenlei calibrate``."""

from __future__ import annotations

from pathlib import Path

import typer


def calibrate(
    run: Path = typer.Argument(..., metavar="RUN", help="Run folder or classifier folder."),
    file: str = typer.Argument(..., metavar="DEVFILE", help="Labelled data: neither training nor test rows."),
    overrides: list[str] | None = typer.Argument(None, metavar="[KEY=VALUE]...", help="e.g. model.device=cpu"),
    target_precision: float | None = typer.Option(
        None, "--target-precision", metavar="P", help="Abstain so that this share of the answers is right, e.g. 0.95."
    ),
    target_coverage: float | None = typer.Option(
        None, "--target-coverage", metavar="C", help="Abstain so that this share of the rows is answered, e.g. 0.9."
    ),
    threshold: float | None = typer.Option(None, "--threshold", help="Abstain below this confidence."),
    method: str = typer.Option("temperature", "--method", help="temperature, bias or none."),
    signal: str | None = typer.Option(
        None, "--signal", help="Confidence: max_probability, entropy, answer_likelihood or label_likelihood."
    ),
    json_out: Path | None = typer.Option(None, "--json", metavar="OUT", help="Write all figures here."),
    offline: bool = typer.Option(False, "--offline", help="Never touch the network."),
) -> None:
    """Fit probabilities and abstention anew on labelled rows, without training; the classifier folder keeps them.

    Without --target-precision, --target-coverage or --threshold, every row is answered.
    """
    from fenlei.artifact import find_classifier, write_json
    from fenlei.cli.common import output_console, quiet_libraries
    from fenlei.cli.figures import calibration_line, check_json_out
    from fenlei.config import RunConfig

    folder = find_classifier(run)
    check_json_out(json_out, [file])
    options = {
        "method": method,
        "signal": signal,
        "target_precision": target_precision,
        "target_coverage": target_coverage,
        "threshold": threshold,
    }
    # what does not fit is said before a model is loaded
    RunConfig.build({"calibration": {k: v for k, v in options.items() if v is not None}})
    from fenlei.classifier import TextClassifier

    quiet_libraries()
    more = ["model.offline=true"] if offline else []
    classifier = TextClassifier.load(run, overrides=[*(overrides or ()), *more])
    rejected = (json_out or Path("calibrate")).with_suffix(".rejected.jsonl")
    metrics = classifier.calibrate(file, **options, rejected_path=rejected)  # type: ignore[arg-type]
    classifier.save(folder)
    if json_out is not None:
        write_json(json_out, metrics)
    stdout = output_console()
    for line in metrics["notes"]:
        stdout.print(line, soft_wrap=True)
    stdout.print(calibration_line(metrics), soft_wrap=True)
    stdout.print(f"written to {folder / 'calibration.json'}", soft_wrap=True)
    if metrics["rejected"]:
        stdout.print(f"{metrics['rejected']} bad rows left out: {rejected}")
