"""``fenlei noise``: rows whose labels are probably wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fenlei.data import Example
    from fenlei.evaluation.noise import LabelIssue
    from fenlei.modeling.prediction import Prediction

_TFIDF = "tfidf"
_SHOWN = 10


def noise(
    file: str = typer.Argument(..., metavar="TRAIN", help="Labelled data: file, folder or data set id."),
    overrides: list[str] | None = typer.Argument(None, metavar="[KEY=VALUE]...", help="e.g. data.label_column=class"),
    out: Path = typer.Option(..., "--out", metavar="FILE", help="The ranking: .jsonl or .csv."),
    model: str = typer.Option(
        _TFIDF,
        "--model",
        metavar="tfidf|RUN",
        help="Who judges: TF-IDF by cross-validation (seconds), or a tuned classifier on rows it was not trained on.",
    ),
    folds: int = typer.Option(5, "--folds", min=2, help="Parts of the cross-validation with tfidf."),
    top: int | None = typer.Option(None, "--top", min=1, metavar="N", help="Write the N most doubtful rows instead."),
    offline: bool = typer.Option(False, "--offline", help="Never touch the network."),
) -> None:
    """Rank rows by how probable it is that their label is wrong, with the label that fits better."""
    from fenlei.cli.common import output_console
    from fenlei.cli.figures import check_out
    from fenlei.data.checks.report import printable
    from fenlei.errors import ConfigError
    from fenlei.evaluation.noise import rank_label_errors

    if out.suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"--out {out}: expected a name that ends in .jsonl or .csv")
    check_out("--out", out, [file])
    check_out("bad rows would go to", _rejected(out), [file])
    more = [*(overrides or ()), *(["model.offline=true"] if offline else [])]
    console = output_console()
    if model == _TFIDF:
        rows, predictions = _by_tfidf(file, more, folds, out)
    else:
        rows, predictions, seen = _by_classifier(Path(model), file, more, out)
        if seen:
            console.print(f"{seen} rows left out: the classifier was trained on them, so it believes their labels")
    issues = rank_label_errors([str(row.label) for row in rows], predictions)
    probable = [issue for issue in issues if issue.probable]
    console.print(f"{len(rows)} rows judged, {len(probable)} labels probably wrong")
    chosen = issues[:top] if top is not None else probable
    write_issues(out, rows, chosen)
    for issue in chosen[:_SHOWN]:
        row = rows[issue.row]
        line = (
            f"  {row.source or row.id}: {issue.given} ({issue.probability:.3f}), better {issue.suggested} "
            f"({issue.suggested_probability:.3f}): {' '.join(row.text[:60].split())}"
        )
        console.print(printable(line), soft_wrap=True)
    console.print(f"{len(chosen)} rows in {out}", soft_wrap=True)


def _by_tfidf(file: str, overrides: Sequence[str], folds: int, out: Path) -> tuple[list[Example], list[Prediction]]:
    """All rows, each judged by a model that was trained on other parts of them."""
    from dataclasses import replace

    from fenlei.config import RunConfig
    from fenlei.data import LabelSet, read_examples
    from fenlei.errors import DataError
    from fenlei.evaluation.noise import out_of_fold

    config = RunConfig.build({}, overrides=overrides)
    found = read_examples(
        file, config.data, role="train", rejected_path=_rejected(out), offline=config.model.offline
    ).examples
    if not found:
        raise DataError(f"{file}: no rows")
    labels = LabelSet.from_examples(found, config.data)
    rows = [replace(row, label=labels.canonical(str(row.label))) for row in found]
    own = config.data.candidates == "row"
    candidates = [
        tuple(labels.canonical(name) for name in row.candidates) if own and row.candidates else labels.names
        for row in rows
    ]
    texts, given = [row.text for row in rows], [str(row.label) for row in rows]
    return rows, out_of_fold(texts, given, candidates, folds=folds, seed=config.train.seed)


def _by_classifier(
    run: Path, file: str, overrides: Sequence[str], out: Path
) -> tuple[list[Example], list[Prediction], int]:
    """The rows whose texts the classifier was not trained on, its predictions, and how many were left out."""
    from dataclasses import replace

    from fenlei.artifact import find_classifier
    from fenlei.classifier import TextClassifier
    from fenlei.cli.common import quiet_libraries
    from fenlei.cli.ladder import training_rows
    from fenlei.errors import DataError

    find_classifier(run)
    quiet_libraries()
    trained_on = {row.text for row in training_rows(run)[1].train}
    classifier = TextClassifier.load(run, overrides=overrides)
    found = classifier.read(file, rejected_path=_rejected(out)).examples
    rows = [
        replace(row, label=classifier.labels.canonical(str(row.label))) for row in found if row.text not in trained_on
    ]
    if not rows:
        raise DataError(f"{file}: the classifier was trained on every row of it; give rows that it has not seen")
    return rows, classifier.classify(rows), len(found) - len(rows)


def write_issues(path: Path, rows: Sequence[Example], issues: Sequence[LabelIssue]) -> None:
    """The ranking as a file: rank, id, where the row is, given and suggested label, probabilities, score, text.

    In a CSV file, what a spreadsheet would take for a formula has an apostrophe before it.
    """
    import csv
    import io
    import json

    from fenlei.durable import write_text
    from fenlei.prompting.plain import clean

    table: list[dict[str, Any]] = []
    for rank, issue in enumerate(issues, 1):
        row = rows[issue.row]
        table.append(
            {
                "rank": rank,
                "id": clean(row.id),
                "source": clean(row.source),  # a file name need not be UTF-8
                "given": issue.given,
                "suggested": issue.suggested,
                "probability": issue.probability,
                "suggested_probability": issue.suggested_probability,
                "score": issue.score,
                "probable": issue.probable,
                "text": clean(row.text),
            }
        )
    if path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table))
        return
    content = io.StringIO(newline="")
    heads = ("rank", "id", "source", "given", "suggested", "probability", "suggested_probability", "score", "probable")
    writer = csv.DictWriter(content, [*heads, "text"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _inert(v) if isinstance(v, str) else v for k, v in row.items()} for row in table)
    write_text(path, "\ufeff" + content.getvalue())  # the mark lets Excel read Chinese


def _inert(cell: str) -> str:
    """A cell that no spreadsheet computes."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _rejected(out: Path) -> Path:
    return out.with_suffix(".rejected.jsonl")
