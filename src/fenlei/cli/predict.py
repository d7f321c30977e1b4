"""``fenlei predict``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fenlei.classifier import TextClassifier
    from fenlei.data.probe import RowCount
    from fenlei.inference.bulk import BulkResult, Selection
    from fenlei.inference.output import Output, OutputPaths
    from fenlei.inference.predictor import Predictor

_LOG_SECONDS = 30.0
# bad rows are put aside, unless the user says otherwise
_PUT_ASIDE = "data.on_bad_row=skip"


def predict(
    run: Path = typer.Argument(..., metavar="RUN", help="Run folder or classifier folder."),
    source: str = typer.Argument(..., metavar="INPUT", help="Texts: .jsonl, .json, .csv, .tsv, .parquet or a folder."),
    overrides: list[str] | None = typer.Argument(None, metavar="[KEY=VALUE]...", help="e.g. data.text_column=body"),
    out: Path | None = typer.Option(None, "--out", help="Where predictions go: .jsonl, .csv or .parquet."),
    resume: bool = typer.Option(False, "--resume", help="Go on with the interrupted run that writes --out."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an older --out; drop an interrupted run."),
    limit: int | None = typer.Option(None, "--limit", metavar="N", min=1, help="Only the first N rows."),
    columns: str | None = typer.Option(
        None, "--columns", metavar="A,B", help="Columns of the input to carry over; '' for none. Default: all."
    ),
    explain: bool = typer.Option(
        False, "--explain", help="Show what each sentence of a few texts does to their labels; --out is not needed."
    ),
    add_label: list[str] | None = typer.Option(
        None, "--add-label", metavar="NAME", help="A label that the classifier was not trained on; repeatable."
    ),
    offline: bool = typer.Option(False, "--offline", help="Never touch the network."),
) -> None:
    """Label every text of a file, with the probability of each candidate. Bad rows go to OUT.rejected.jsonl."""
    from fenlei.artifact import find_classifier
    from fenlei.cli.common import error_console, signals_stop
    from fenlei.cli.explain import explain_file
    from fenlei.errors import ConfigError, Interrupted, StopNow
    from fenlei.inference.bulk import Selection
    from fenlei.inference.output import OutputPaths, open_output

    find_classifier(run)
    names = None if columns is None else tuple(name for part in columns.split(",") if (name := part.strip()))
    more = [*(overrides or ()), *(["model.offline=true"] if offline else [])]
    console = error_console()
    added = tuple(add_label or ())
    if explain:
        if resume or columns is not None:
            raise ConfigError("--explain goes with --limit, --out and --overwrite; leave --resume and --columns out")
        explain_file(_Unloaded(run, more, added), source, out, limit=limit, overwrite=overwrite)
        return
    if out is None:
        raise ConfigError("--out is missing: say where predictions go, e.g. --out predictions.jsonl")
    try:
        with signals_stop(), open_output(source, out, resume=resume, overwrite=overwrite) as output:
            result = _predict(run, source, output, Selection(limit, names), more, added, console)
    except StopNow as stop:
        options = ["--limit", str(limit)] if limit else []
        options += ["--columns", columns] if columns is not None else []
        options += [word for name in added for word in ("--add-label", name)]
        words = ["fenlei", "predict", str(run), source, *more, "--out", str(out), *options]
        message = _advice(OutputPaths.of(out), words, overwrite)
        raise Interrupted(f"interrupted; {message}", stop.signal_number) from None
    _summary(console, result)


def _predict(
    run: Path,
    source: str,
    output: Output,
    selection: Selection,
    overrides: list[str],
    added: tuple[str, ...],
    console: Console,
) -> BulkResult:
    from fenlei.cli.common import quiet_libraries
    from fenlei.inference.bulk import predict_file
    from fenlei.modeling.machine import machine_of

    quiet_libraries()
    classifier = _Unloaded(run, overrides, added)
    with _Bar(console) as bar:
        return predict_file(
            classifier,
            source,
            output,
            classifier_sha256=classifier.fingerprint(),
            machine=machine_of(classifier.config.model),
            selection=selection,
            progress=bar,
        )


class _Unloaded:
    """A classifier whose model is loaded when it is asked for: what is wrong with INPUT is said at once."""

    def __init__(self, run: Path, overrides: list[str], added: tuple[str, ...]) -> None:
        from fenlei.artifact import read_artifact
        from fenlei.config import RunConfig
        from fenlei.data import LabelSet
        from fenlei.inference.loading import stored_settings

        self._run, self._overrides, self._added = run, overrides, added
        artifact = read_artifact(run)
        self._folder = artifact.path
        self.config = RunConfig.build(stored_settings(artifact, run), overrides=[_PUT_ASIDE, *overrides])
        labels = LabelSet.from_dict(artifact.labels)
        self.labels = LabelSet((*labels.names, *added), descriptions=labels.descriptions, aliases=labels.aliases)

    @cached_property
    def classifier(self) -> TextClassifier:
        """With its model."""
        return _load(self._run, self._overrides, self._added)

    @property
    def predictor(self) -> Predictor:
        """The model."""
        return self.classifier.predictor

    def fingerprint(self) -> str:
        """Hash of all that makes it: its folder, labels that were added, what was set of its calibration."""
        import hashlib
        import json

        from fenlei.artifact import MANIFEST, sha256_of

        calibration = self.config.calibration.model_dump(mode="json", exclude_unset=True)
        parts = [sha256_of(self._folder / MANIFEST), self.labels.to_dict(), calibration]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load(run: Path, overrides: list[str], added: tuple[str, ...]) -> TextClassifier:
    from fenlei.classifier import TextClassifier
    from fenlei.cli.common import quiet_libraries

    quiet_libraries()
    classifier = TextClassifier.load(run, overrides=[_PUT_ASIDE, *overrides])
    return classifier.add_labels(added) if added else classifier


def _advice(paths: OutputPaths, command: Sequence[str], overwrite: bool) -> str:
    import shlex

    if paths.journal.exists():
        return f"what is done is kept. Go on with: {shlex.join([*command, '--resume'])}"
    return f"{paths.shown} is complete" if paths.out.exists() and not overwrite else "nothing was written yet"


def _summary(console: Console, result: BulkResult) -> None:
    counts = result.counts
    notes = [f"{counts.shortened} long texts were shortened"] if counts.shortened else []
    notes += [f"{counts.abstained} without an answer (abstained)"] if counts.abstained else []
    console.print("; ".join([f"{counts.written} predictions in {result.out}", *notes]), soft_wrap=True)
    console.print(f"{counts.read} rows read = {counts.written} written + {counts.rejected} rejected", soft_wrap=True)
    if result.rejected is not None:
        console.print(
            f"{counts.rejected} bad rows left out, with reasons: {result.rejected}", style="yellow", soft_wrap=True
        )


class _Bar:
    """Rows, rows a second and the time left: a bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console
        self._bar = Progress(
            TextColumn("predicting"), BarColumn(), TextColumn("{task.fields[state]}"), console=console, transient=True
        )
        self._task = self._bar.add_task("", total=None, state="")
        self._total: RowCount | None = None
        self._done = self._before = 0
        self._begin = self._said = time.monotonic()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, done: int, total: RowCount | None) -> None:
        """Prediction begins; so many rows are done already."""
        self._total, self._done, self._before = total, done, done
        self._begin = self._said = time.monotonic()
        if self._console.is_terminal:
            self._bar.start()
        self.advance(0)

    def advance(self, rows: int) -> None:
        """So many more rows are done."""
        self._done += rows
        if self._total is not None and not self._total.exact and self._done > self._total.rows:
            self._total = None  # it was an estimate, and too low
        state, now = self._state(), time.monotonic()
        if self._console.is_terminal:
            total = self._total.rows if self._total else None
            self._bar.update(self._task, completed=self._done, total=total, state=state)
        elif now - self._said >= _LOG_SECONDS:
            self._said = now
            self._console.print(state)

    def note(self, text: str) -> None:
        """What is being done that is no prediction."""
        self._console.print(text)

    def _state(self) -> str:
        seconds = time.monotonic() - self._begin
        speed = (self._done - self._before) / seconds if seconds > 0 else 0.0
        parts = [f"{self._done:,} rows"]
        if self._total is not None:
            about = "" if self._total.exact else "about "
            parts = [f"{self._done:,} of {about}{self._total.rows:,} rows"]
        if speed > 0:
            parts.append(f"{speed:,.1f} rows/s")
            if self._total is not None:
                left = (self._total.rows - self._done) / speed
                hours, rest = divmod(int(left) + 1, 3600)
                parts.append(f"{hours}:{rest // 60:02}:{rest % 60:02} left")
        return ", ".join(parts)
