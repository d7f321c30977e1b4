"""Labelled rows in the forms that instruction tuning tools read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from fenlei.config import DataConfig
from fenlei.data.example import Example
from fenlei.data.files import CsvWriter, atomic_text
from fenlei.data.forms import INSTRUCTION, tutorial_input
from fenlei.data.labels import LabelSet
from fenlei.data.readers import REJECTED_NAME, ReadResult, input_files, read_examples, write_rejected
from fenlei.errors import DataError

Target = Literal["alpaca", "messages", "csv"]
_SUFFIXES = {
    "alpaca": (".jsonl", ".ndjson", ".json"),
    "messages": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
}


@dataclass(frozen=True)
class Converted:
    """Counts of a conversion: ``read == written + rejected``."""

    read: int
    written: int
    rejected: int
    rejected_path: Path | None


def alpaca_row(text: str, candidates: Sequence[str], candidates_text: str | None, label: str) -> dict[str, Any]:
    """``instruction``, ``input`` and ``output``, letter for letter as the tutorial makes them."""
    return {
        "instruction": INSTRUCTION,
        "input": tutorial_input(text, tuple(candidates), candidates_text),
        "output": label,
    }


def messages_row(text: str, candidates: Sequence[str], candidates_text: str | None, label: str) -> dict[str, Any]:
    """The same wording as turns of system, user and assistant."""
    row = alpaca_row(text, candidates, candidates_text, label)
    turns = (("system", row["instruction"]), ("user", row["input"]), ("assistant", label))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def convert_file(
    source: str,
    out: Path,
    to: Target,
    config: DataConfig,
    *,
    force: bool = False,
    offline: bool = False,
) -> Converted:
    """Reads ``source`` and writes it in another form; ``out`` appears whole or not at all.

    Rows without candidates of their own get the whole label set. With ``on_bad_row=skip`` the bad rows go to
    ``rejected.jsonl`` beside ``out``.

    Args:
        source: as for :func:`~fenlei.data.readers.read_examples`.
        out: file to write.
        to: ``alpaca`` or ``messages`` (JSON lines), or ``csv`` with the columns text, category, output.
        config: how ``source`` is read; ``candidates="all"`` gives every row the whole label set.
        force: replace ``out`` if it is there (never if it is the input).
        offline: hub data sets from local caches only.

    Raises:
        DataError: the input has faults, or ``out`` cannot or may not be written.
    """
    rejected_path = out.parent / REJECTED_NAME
    _check_out(source, out, to, rejected_path, force)
    result = read_examples(source, config, offline=offline)
    labels = LabelSet.from_examples(result.examples, config)
    if result.rejected:  # only now: a run that ends over its labels writes nothing at all
        write_rejected(rejected_path, result.rejected)
    writer = _write_csv if to == "csv" else _write_json
    with atomic_text(out) as handle:
        writer(handle, result, labels, to, config.candidates == "all")
    return Converted(
        result.read, len(result.examples), len(result.rejected), rejected_path if result.rejected else None
    )


def _check_out(source: str, out: Path, to: Target, rejected_path: Path, force: bool) -> None:
    if to not in _SUFFIXES:
        raise DataError(f"--to: expected one of {', '.join(_SUFFIXES)}; found {to!r}")
    if out.is_dir():
        raise DataError(f"{out}: is a folder; --out names the file to write")
    if out.suffix.lower() not in _SUFFIXES[to]:
        raise DataError(f"{out}: {to} is written to a file that ends in {' or '.join(_SUFFIXES[to])}")
    if not out.parent.is_dir():
        raise DataError(f"{out}: the folder {str(out.parent)!r} does not exist; make it first")
    inputs = input_files(source)
    if any(_same(out, file) for file in inputs):
        raise DataError(f"{out}: is the input itself; write to another file")
    if _same(out, rejected_path) or any(_same(rejected_path, file) for file in inputs if not Path(source).is_dir()):
        raise DataError(f"{rejected_path}: this name is kept for rejected rows; use another one")
    if out.exists() and not force:
        raise DataError(f"{out}: exists already; choose another name, or --force to replace it")


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other) or (
        one.exists() and other.exists() and os.path.samefile(one, other)
    )


def _row_candidates(example: Example, labels: LabelSet, everything: bool) -> tuple[tuple[str, ...], str | None]:
    if everything or example.candidates is None:
        return labels.names, None
    return example.candidates, example.candidates_text


def _write_json(handle: TextIO, result: ReadResult, labels: LabelSet, to: Target, everything: bool) -> None:
    make: Callable[..., dict[str, Any]] = alpaca_row if to == "alpaca" else messages_row
    for example in result.examples:
        candidates, verbatim = _row_candidates(example, labels, everything)
        row = make(example.text, candidates, verbatim, example.label)
        handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(handle: TextIO, result: ReadResult, labels: LabelSet, to: Target, everything: bool) -> None:
    writer = CsvWriter(handle)
    writer.writerow(("text", "category", "output"))
    for example in result.examples:
        candidates, verbatim = _row_candidates(example, labels, everything)
        shown = verbatim if verbatim is not None else json.dumps(list(candidates), ensure_ascii=False)
        if "\0" in example.text + shown + str(example.label):
            raise DataError(f"{example.source}: holds a NUL character, which CSV cannot keep; use --to alpaca")
        writer.writerow((example.text, shown, example.label))
