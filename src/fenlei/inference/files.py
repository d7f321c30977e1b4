"""Predictions for a file of texts, written as a file."""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from fenlei.config import DataConfig
from fenlei.data import LabelSet, ReadResult, read_examples
from fenlei.errors import DataError
from fenlei.modeling.prediction import Prediction

_WRITTEN = ("id", "label", "probability", "probabilities", "abstained", "truncated")
_SUFFIXES = (".jsonl", ".csv", ".parquet")


def check_output(source: str | Path, out: Path) -> None:
    """Finds out before any work whether predictions can be written.

    Raises:
        DataError: unknown suffix, missing folder, or the output is the input.
    """
    if out.suffix.lower() not in _SUFFIXES:
        near = difflib.get_close_matches(out.suffix.lower(), _SUFFIXES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise DataError(f"--out {out}: expected a name that ends in .jsonl, .csv or .parquet{hint}")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    if out.is_dir():
        raise DataError(f"--out {out}: is a folder; give a file name")
    if Path(source).exists() and out.exists() and os.path.samefile(source, out):
        raise DataError(f"--out {out}: is the input; predictions would overwrite it")


def read_input(
    source: str | Path, config: DataConfig, labels: LabelSet, *, rejected_to: Path, offline: bool = False
) -> ReadResult:
    """Reads the texts to classify; labels in the file are carried over but not needed."""
    return read_examples(
        source,
        config,
        need_label=False,
        role="predict",
        labels=labels,
        offline=offline,
        rejected_path=rejected_to.with_name(rejected_to.name + ".rejected.jsonl"),
    )


def write_predictions(out: Path, rows: ReadResult, predictions: Sequence[Prediction]) -> None:
    """Writes one record a row, in the order of the input: whole or not at all.

    Each record holds ``id``, ``label``, ``probability``, ``probabilities`` (label -> p), ``abstained`` and
    ``truncated``, then the input's columns. An input column whose name is taken becomes ``input_<name>``.

    Raises:
        DataError: the file cannot be written.
    """
    records = [_record(rows, i, p) for i, p in enumerate(predictions)]
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.suffix.lower() == ".parquet":
            _write_parquet(temporary, records)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                (_write_csv if out.suffix.lower() == ".csv" else _write_jsonl)(file, records)
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, out)
    except OSError as error:
        raise DataError(f"--out {out}: cannot write: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _record(rows: ReadResult, index: int, prediction: Prediction) -> dict[str, Any]:
    example, columns = rows.examples[index], rows.columns
    record: dict[str, Any] = {
        "id": example.id,
        "label": prediction.label,
        "probability": prediction.probability,
        "probabilities": prediction.probabilities,
        "abstained": prediction.abstained,
        "truncated": prediction.truncated,
    }
    # a conversation is one column with text and label in it: here they go apart
    plain = columns.form != "messages"
    carried: dict[str, Any] = {columns.text if plain else "text": example.text}
    if columns.id and columns.id != "id":
        carried[columns.id] = example.id
    if columns.candidates and example.candidates is not None:
        carried[columns.candidates] = example.candidates_text or list(example.candidates)
    if columns.label and example.label is not None:
        carried[columns.label if plain else "input_label"] = example.label
    carried.update(example.extra)
    for name, value in carried.items():
        record[f"input_{name}" if name in _WRITTEN else name] = value
    return record


def _write_jsonl(file: IO[str], records: list[dict[str, Any]]) -> None:
    for record in records:
        file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def _columns(records: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record)) or list(_WRITTEN)


def _write_csv(file: IO[str], records: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(file, _columns(records), restval="", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({k: _cell(v) for k, v in record.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value).lower() if isinstance(value, bool) else value


def _write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for name in _columns(records):
        values = [record.get(name) for record in records]
        if name == "probabilities":
            pairs = [list(record[name].items()) for record in records]
            arrays[name] = pa.array(pairs, pa.map_(pa.string(), pa.float64()))
            continue
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # a column of mixed types in the input
            arrays[name] = pa.array([None if v is None else str(_cell(v)) for v in values])
    pq.write_table(pa.table(arrays), path)
