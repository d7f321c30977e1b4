"""``fenlei predict --explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fenlei.classifier import TextClassifier
    from fenlei.config import RunConfig
    from fenlei.data import LabelSet, StreamedRow

MOST_TEXTS = 20


class Unloaded(Protocol):
    """A classifier whose model is loaded when it is asked for."""

    config: RunConfig
    labels: LabelSet

    @property
    def classifier(self) -> TextClassifier:
        """With its model."""


def explain_file(unloaded: Unloaded, source: str, out: Path | None, *, limit: int | None, overwrite: bool) -> None:
    """Prints what each sentence of the first texts does to their labels, and writes it as JSON lines if asked to.

    Raises:
        DataError: more than a few texts, a bad row, or ``out`` is in the way or no ``.jsonl``.
    """
    from fenlei.cli.common import output_console
    from fenlei.data.files import atomic_text
    from fenlei.inference.explain import render
    from fenlei.inference.records import json_line, make_record

    if out is not None:
        _check(source, out, overwrite)
    rows = _few(unloaded, source, limit)  # what is wrong with INPUT is said before anything is loaded
    console, lines = output_console(), []
    for row in rows:
        assert row.example is not None
        assert row.columns is not None
        explanation = unloaded.classifier.explain(row.example)
        console.print(render(explanation))
        record = make_record(row.example, row.columns, explanation.prediction)
        lines.append(json_line(record | {"explanation": explanation.to_dict()}).decode("utf-8"))
    if out is not None:
        with atomic_text(out) as file:
            file.writelines(lines)


def _few(unloaded: Unloaded, source: str, limit: int | None) -> list[StreamedRow]:
    from itertools import islice

    from fenlei.data import stream_examples
    from fenlei.errors import DataError

    config = unloaded.config
    stream = stream_examples(
        source,
        config.data,
        need_label=False,
        role="predict",
        offline=config.model.offline,
        labels=unloaded.labels,
    )
    rows = list(islice(stream, min(limit or MOST_TEXTS + 1, MOST_TEXTS + 1)))
    if len(rows) > MOST_TEXTS:
        raise DataError(
            f"--explain classifies a text once more for each of its sentences, so it takes {MOST_TEXTS} texts at most; "
            f"{source} has more: choose the first ones with --limit {MOST_TEXTS}"
        )
    for row in rows:
        if row.example is None:
            raise DataError(f"{row.source}: {row.reason}")
    if not rows:
        raise DataError(f"{source}: no rows; expected at least one row with a text")
    return rows


def _check(source: str, out: Path, overwrite: bool) -> None:
    import os

    from fenlei.errors import DataError

    if out.suffix.lower() != ".jsonl":
        raise DataError(f"--out {out}: explanations are written as .jsonl only")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    if out.exists() and Path(source).exists() and os.path.samefile(source, out):
        raise DataError(f"--out {out}: is the input; explanations would overwrite it")
    if out.exists() and not overwrite:
        raise DataError(f"--out {out}: exists; choose another name, or replace it with --overwrite")
