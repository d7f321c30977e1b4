"""``fenlei convert``: labelled rows as instruction data."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Form(str, Enum):
    """Forms that convert writes."""

    alpaca = "alpaca"
    messages = "messages"
    csv = "csv"


class Wording(str, Enum):
    """Wordings that convert knows."""

    tutorial_zh = "tutorial-zh"


class OnBadRow(str, Enum):
    """What becomes of bad rows."""

    stop = "stop"
    skip = "skip"


class Candidates(str, Enum):
    """Which labels a row offers."""

    row = "row"
    all = "all"


_Name = Annotated[str | None, typer.Option(help="Column name; detected when not given.")]


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, folder, or data set id (ms:/hf:ORG/NAME).")],
    to: Annotated[Form, typer.Option("--to", help="alpaca and messages are JSON lines.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="data.KEY=VALUE", help="Any setting of how data is read.")
    ] = None,
    prompt_preset: Annotated[Wording, typer.Option(help="Wording of the instruction.")] = Wording.tutorial_zh,
    on_bad_row: Annotated[OnBadRow, typer.Option(help="skip: bad rows go to rejected.jsonl.")] = OnBadRow.stop,
    candidates: Annotated[Candidates, typer.Option(help="all: every row offers every label.")] = Candidates.row,
    text_column: _Name = None,
    label_column: _Name = None,
    candidates_column: _Name = None,
    id_column: _Name = None,
    encoding: Annotated[str | None, typer.Option(help="Recognised when not given.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Hub data sets from local caches only.")] = False,
) -> None:
    """Write labelled rows as instruction data: alpaca, messages, or a plain CSV."""
    from fenlei.config import RunConfig
    from fenlei.data.convert import convert_file

    settings: dict[str, Any] = {
        "on_bad_row": on_bad_row.value,
        "candidates": candidates.value,
        "text_column": text_column,
        "label_column": label_column,
        "candidates_column": candidates_column,
        "id_column": id_column,
        "encoding": encoding,
        "split": split,
    }
    config = RunConfig.build({"data": settings}, overrides=overrides or ())
    done = convert_file(source, out, to.value, config.data, force=force, offline=offline)
    note = f" (see {done.rejected_path})" if done.rejected_path else ""
    typer.echo(f"{out}: {done.read} rows read, {done.written} written, {done.rejected} rejected{note}")
