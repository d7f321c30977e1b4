"""``fenlei check``: what is wrong with the data, before any hour of a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fenlei.config import ModelConfig, RunConfig
    from fenlei.data import Example, LabelSet
    from fenlei.data.checks import (
        CheckReport,
        CheckSettings,
        Finding,
        MakeMeasure,
        Measure,
        SplitSummary,
        TokenLengths,
    )
    from fenlei.data.checks.table import Progress

_PREFIX = "check."
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}
_LABELS_SHOWN = 20
_LANGUAGES_SHOWN = 5
_BATCH = 256
_WHOLE = 10**9  # a prompt.max_length that shortens nothing
_NO_MODEL = "token lengths: need the model's tokenizer; --model SPEC names one that is on this disk"


def check(
    train: str = typer.Argument(..., metavar="TRAIN", help="Training data: file, folder or data set id."),
    overrides: list[str] | None = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="e.g. prompt.max_length=512 data.text_column=body check.min_class_rows=50"
    ),
    test: str | None = typer.Option(None, help="Test data: is any of it in train?"),
    dev: str | None = typer.Option(None, help="Development data."),
    model: str | None = typer.Option(None, help="Model whose tokenizer counts tokens; it must be on this disk."),
    json_out: Path | None = typer.Option(None, "--json", metavar="OUT", help="Write everything here."),
    html_out: Path | None = typer.Option(None, "--html", metavar="OUT", help="Write a page for people here."),
    strict: bool = typer.Option(False, "--strict", help="Exit code 2 if there are errors."),
    offline: bool = typer.Option(False, "--offline", help="Hub data sets from local caches only."),
) -> None:
    """Look for problems in labelled data: labels, lengths, duplicates, leaks, damaged texts."""
    from fenlei.artifact import write_json
    from fenlei.cli.common import output_console, settings
    from fenlei.cli.figures import check_out
    from fenlei.config import RunConfig
    from fenlei.data.checks import check_data

    run_items, thresholds = _split_overrides(overrides or [])
    values = settings(data__train=train, data__dev=dev, data__test=test, model__spec=model)
    config = RunConfig.build(values, overrides=run_items)
    for option, path in (("--json", json_out), ("--html", html_out)):
        check_out(option, path, (train, config.data.dev, config.data.test))
    make, remark = _tokens(
        config, explicit=model is not None or any(item.startswith("model.spec=") for item in run_items)
    )
    with _bars() as progress:
        report = check_data(
            train,
            dev=config.data.dev,
            test=config.data.test,
            config=config.data,
            settings=thresholds,
            tokens=make,
            seed=config.train.seed,
            offline=offline or config.model.offline,
            progress=progress,
        )
    if remark:
        import dataclasses

        report = dataclasses.replace(report, remarks=(*report.remarks, remark))
    if json_out is not None:
        write_json(json_out, report.to_dict())
    if html_out is not None:
        from fenlei.data.checks.page import render_page
        from fenlei.durable import write_text

        write_text(html_out, render_page(report))
    _show(report, output_console())
    if strict and not report.ok:
        raise typer.Exit(2)


def _split_overrides(items: Sequence[str]) -> tuple[list[str], CheckSettings]:
    """``check.KEY=VALUE`` from the settings of a run.

    Raises:
        ConfigError: an unknown threshold, or a value that does not fit.
    """
    import difflib

    import yaml
    from pydantic import ValidationError

    from fenlei.data.checks import CheckSettings
    from fenlei.errors import ConfigError

    values: dict[str, Any] = {}
    for item in items:
        key, found, raw = item.partition("=")
        if not key.startswith(_PREFIX) or not found:
            continue
        name = key.removeprefix(_PREFIX)
        if name not in CheckSettings.model_fields:
            near = difflib.get_close_matches(name, CheckSettings.model_fields, n=1)
            hint = (
                f"; did you mean {_PREFIX}{near[0]}?" if near else f"; known: {', '.join(CheckSettings.model_fields)}"
            )
            raise ConfigError(f"unknown setting {key!r}{hint}")
        try:
            values[name] = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}: cannot read the value {raw!r}: {error}") from None
    try:
        thresholds = CheckSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{_PREFIX}{first['loc'][0]}: {first['msg']}; found {first['input']!r}") from None
    return [item for item in items if not item.startswith(_PREFIX)], thresholds


def _tokens(config: RunConfig, *, explicit: bool) -> tuple[MakeMeasure | None, str]:
    """What makes a measure of token lengths, or why there is none. Nothing is ever downloaded.

    Raises:
        ModelError: a model was asked for that is not on this disk.
    """
    from fenlei.errors import ModelError

    try:
        folder = _model_folder(config.model)
    except ModelError as error:
        if explicit:
            raise ModelError(
                f"{error}\nfenlei check downloads no model: fetch it first (fenlei models pull {config.model.spec}), "
                "or leave --model out: then no tokens are counted"
            ) from None
        return None, _NO_MODEL
    if folder is None:
        if explicit:
            raise ModelError(
                f"--model {config.model.spec}: is not on this disk yet, and fenlei check downloads no model; "
                f"fetch it (fenlei models pull {config.model.spec}), or leave --model out: then no tokens are counted"
            )
        return None, _NO_MODEL
    where = folder
    remark = "" if explicit else f"token lengths: with the tokenizer of the default model, {config.model.spec}"
    return lambda labels: token_measure(where, config, labels), remark


def _model_folder(config: ModelConfig) -> Path | None:
    """The folder of a model that is on this disk."""
    from fenlei.modeling.sources import resolve
    from fenlei.modeling.sources.cache import ModelCache
    from fenlei.modeling.sources.spec import parse_spec

    spec = parse_spec(config.spec)
    if spec.kind == "builtin":  # offline, resolve would still put it together from downloaded wheels: minutes
        entry = ModelCache(config.cache_dir).find(spec.name)
        return entry.path if entry else None
    return resolve(config.spec, cache_dir=config.cache_dir, offline=True, show_progress=False).path


def token_measure(folder: Path, config: RunConfig, labels: LabelSet) -> Measure:
    """Measures rows with the prompt that training would make of them.

    Args:
        folder: a model's folder; only its tokenizer is read.
        config: prompt, candidates.
        labels: the label set of the training data.

    Raises:
        ConfigError: the labels cannot be told apart, or there is no room for any text.
        ModelError: the folder has no tokenizer that fits.
    """
    from fenlei.cli.common import quiet_libraries
    from fenlei.data.checks import TokenLengths
    from fenlei.modeling.loading import load_tokenizer
    from fenlei.prompting import PromptEncoder

    quiet_libraries()
    tokenizer = load_tokenizer(folder, config.model)
    real = PromptEncoder(tokenizer, config.prompt, labels, config.data.candidates)
    whole_prompt = config.prompt.model_copy(update={"max_length": _WHOLE})
    whole = PromptEncoder(tokenizer, whole_prompt, labels, config.data.candidates)

    def measure(rows: Sequence[Example]) -> TokenLengths:
        import numpy as np

        texts, prompts = [], []
        for start in range(0, len(rows), _BATCH):
            for prompt in whole.encode_examples(rows[start : start + _BATCH]):
                answer = max(len(whole.answer_ids(name)) for name in prompt.candidates)
                texts.append(prompt.text_length)
                prompts.append(len(prompt.input_ids) + answer)
        text, needed = np.array(texts, np.int64), np.array(prompts, np.int64)
        # the row with the least room: refused here in the words in which training would refuse it
        real.encode_example(rows[int((needed - text).argmax())])
        return TokenLengths(text, needed, config.prompt.max_length)

    return measure


@contextmanager
def _bars() -> Iterator[Progress]:
    """Progress on stderr, where that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from fenlei.cli.common import error_console

    console = error_console()
    if not console.is_terminal:
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=max(done, total) if total is not None else None)

        yield tell


def _show(report: CheckReport, console: Console) -> None:
    from fenlei.data.checks.report import printable

    console.print(_summary_table(report))
    for split in report.splits:
        if split.labels:
            shown = [f"{printable(name)} {rows:,}" for name, rows in list(split.labels.items())[:_LABELS_SHOWN]]
            more = f" and {len(split.labels) - _LABELS_SHOWN} more" if len(split.labels) > _LABELS_SHOWN else ""
            console.print(f"labels of {split.name}: {', '.join(shown)}{more}", soft_wrap=True)
    for remark in report.remarks:
        console.print(remark, style="dim", soft_wrap=True)
    for finding in report.findings:
        _show_finding(finding, console)
    console.print(f"\n{report.verdict()} ({report.seconds:.1f} s)")


def _show_finding(finding: Finding, console: Console) -> None:
    from rich.text import Text

    from fenlei.data.checks.report import printable

    least = "at least " if finding.at_least else ""
    head = Text.assemble(
        "\n",
        (finding.severity.upper(), _STYLES[finding.severity]),
        f" {finding.split}: {printable(finding.title)}: {least}{finding.count:,} of {finding.total:,} {finding.unit} "
        f"({finding.share:.2%}) ",
        (f"[{finding.code}]", "dim"),
    )
    console.print(head, soft_wrap=True)
    for place in finding.examples:
        parts = ((place.source, "dim"), (place.text, ""), (place.note, "italic"))
        shown = [Text(printable(part), style) for part, style in parts if part]
        console.print(Text("  ") + Text("  ").join(shown), soft_wrap=True)
    console.print(f"  -> {finding.advice}", soft_wrap=True)


def _summary_table(report: CheckReport) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("")
    for split in report.splits:
        table.add_column(split.name, justify="right")
    cells = [_cells(split) for split in report.splits]
    for name in dict.fromkeys(name for column in cells for name in column):
        table.add_row(name, *(column.get(name, "") for column in cells))
    return table


def _cells(split: SplitSummary) -> dict[str, str]:
    bad = split.read - split.used
    cells = {"rows": f"{split.read:,}"}
    if bad:
        cells["cannot be used"] = f"{bad:,}"
    if split.labels:
        rows = list(split.labels.values())
        cells["labels"] = f"{len(rows):,}"
        cells["rows a label"] = f"{rows[-1]:,} to {rows[0]:,}"
    if split.characters is not None:
        found = split.characters
        cells["characters: median"] = f"{found.median:,}"
        cells["  95 % have at most"] = f"{found.p95:,}"
        cells["  longest"] = f"{found.max:,}"
    if split.tokens is not None:
        text = split.tokens.text
        cells["tokens: median"] = f"{text.median:,}"
        cells["  95 % have at most "] = f"{text.p95:,}"
        cells["  longest "] = f"{text.max:,}"
        cells[f"  do not fit into {split.tokens.max_length}"] = f"{split.tokens.shortened:.1%}"
    if split.scripts:
        cells["scripts"] = "\n".join(f"{name} {rows / split.used:.1%}" for name, rows in split.scripts.items())
    if split.languages:
        sure = sum(split.languages.values())
        shown = [f"{name} {rows / sure:.1%}" for name, rows in list(split.languages.items())[:_LANGUAGES_SHOWN]]
        cells["languages of longer texts"] = "\n".join(shown)
    return cells
