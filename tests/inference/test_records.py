"""What is carried over of a row: no column lost, no value bent, in files that every reader takes."""

from __future__ import annotations

import csv
import json
import math

import pytest

from fenlei.config import DataConfig
from fenlei.data import files, iter_rows, stream_examples
from fenlei.inference import records
from tests.inference.fake import predict
from tests.inference.test_bulk import lines, write

BREAKS = ["a\rb", "\r", "a\r\nb\nc", "\rx,\"y\"", "ends with\r", "ends with\r\n", "plain"]  # fmt: skip
TAG = records._TYPE


def strict(line: str) -> dict:
    """A line of JSON, read by the letter of RFC 8259."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(line, parse_constant=refuse)


class TestCsv:
    def test_line_breaks_of_every_kind_stay_in_their_cells(self, tmp_path):
        rows = [{"text": text, "more\rbreaks": text, "after": i} for i, text in enumerate(BREAKS) if text.strip()]
        out = tmp_path / "o.csv"
        predict(write(tmp_path / "in.jsonl", rows), out)
        with out.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file, strict=True))
        own = [row for _, row in iter_rows(out)]
        for read in (found, own):
            assert [(r["text"], r["more\rbreaks"], int(r["after"])) for r in read] == [tuple(r.values()) for r in rows]
        assert out.read_bytes().count(b"\r\n") == b"".join(t.encode() for t in BREAKS).count(b"\r\n") * 2, "ends in \\n"

    @pytest.mark.parametrize("writer", [files.CsvWriter, "plain"])
    def test_pythons_own_writer_breaks_the_row(self, tmp_path, writer):
        """Negative control, where Python is older than 3.13."""
        import io

        handle = io.StringIO()
        made = csv.writer(handle, lineterminator="\n") if writer == "plain" else writer(handle)
        made.writerow(["a\rb", "c"])
        quoted = handle.getvalue() == '"a\rb",c\n'
        if writer == "plain" and quoted:
            pytest.skip("this Python puts it in quotes by itself")
        assert quoted == (writer != "plain")


STRANGE = [
    {TAG: ["boom", 1]},
    {TAG: ["bytes", "aGk="]},
    {TAG: ["date", "2024-05-01"]},
    {TAG: None},
    {TAG: {TAG: ["object", [["a", 1]]]}},
    [{"deep": {TAG: ["bytes", "aGk="]}}],
    {TAG: 1, "and": 2},
]


class TestParquet:
    @pytest.mark.parametrize("value", STRANGE)
    def test_objects_of_the_input_that_look_like_ours_come_back_as_they_were(self, value):
        record = {"x": value, "bytes": b"hi"}
        assert records.read_typed_line(records.typed_line(record)) == record

    def test_such_a_row_ends_no_run(self, tmp_path):
        import pyarrow.parquet as pq

        source = write(tmp_path / "in.jsonl", [{"text": "a", "x": value} for value in STRANGE])
        predict(source, tmp_path / "o.parquet")
        assert len(pq.read_table(tmp_path / "o.parquet")) == len(STRANGE)

    def test_numbers_that_are_none_stay_numbers(self, tmp_path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        numbers = [math.nan, math.inf, -math.inf, 1.5]
        pq.write_table(pa.table({"text": list("abcd"), "x": numbers}), tmp_path / "in.parquet")
        predict(tmp_path / "in.parquet", tmp_path / "o.parquet")
        assert str(pq.read_table(tmp_path / "o.parquet").column("x").to_pylist()) == str(numbers)


class TestJson:
    def test_it_is_json_by_the_letter(self, tmp_path):
        rows = ['{"text": "a", "x": NaN, "y": [Infinity, {"z": -Infinity}], "w": 1e999}', '{"text": "", "x": NaN}']
        out = tmp_path / "o.jsonl"
        predict(write(tmp_path / "in.jsonl", rows), out)
        (row,) = map(strict, out.read_text("utf-8").splitlines())
        assert (row["x"], row["y"], row["w"]) == (None, ["Infinity", {"z": "-Infinity"}], "Infinity")
        (rejected,) = map(strict, (tmp_path / "o.jsonl.rejected.jsonl").read_text("utf-8").splitlines())
        assert rejected["row"] == {"text": "", "x": None}
        with pytest.raises(ValueError, match="NaN is no JSON"):  # negative control
            strict(rows[0])


class TestColumns:
    def test_a_file_that_was_predicted_before_keeps_all_its_columns(self, tmp_path):
        first, second, third = (tmp_path / f"{name}.jsonl" for name in ("one", "two", "three"))
        write(first, [{"text": "a", "label": "财经", "id": 7}])
        predict(first, second)
        predict(second, third)
        (one,), (two,) = lines(second), lines(third)
        assert two["input_label"] == one["label"]
        assert two["input_input_label"] == one["input_label"] == "财经"
        assert two["input_probabilities"] == one["probabilities"]
        assert two["id"] == one["id"] == "7"
        assert len(two) == len(one) + len(records.FIELDS) - 1

    def test_rows_with_other_columns_do_not_mix_them(self, tmp_path):
        """Whatever else a row has, a column goes by one name in all of them."""
        rows = [{"text": "a", "label": "own"}, {"text": "b", "input_label": "older"}]
        rows += [{"text": "c", "label": "own", "input_label": "older"}]
        predict(write(tmp_path / "in.jsonl", rows), tmp_path / "o.jsonl")
        found = lines(tmp_path / "o.jsonl")
        assert [row.get("input_label") for row in found] == ["own", None, "own"]
        assert [row.get("input_input_label") for row in found] == [None, "older", "older"]

    def test_text_and_label_of_a_conversation_leave_columns_of_that_name_alone(self, tmp_path):
        turns = [{"role": "user", "content": "国足"}, {"role": "assistant", "content": "体育"}]
        rows = [{"messages": turns, "text": "column", "label": "column", "n": 1}]
        source = write(tmp_path / "in.jsonl", rows)
        (row,) = stream_examples(source, DataConfig(), need_label=False, role="predict")
        carried = records.carried_columns(row.example, row.columns)
        assert carried == {"input_text": "国足", "input_label": "体育", "text": "column", "label": "column", "n": 1}
        predict(source, tmp_path / "o.jsonl")
        assert list(lines(tmp_path / "o.jsonl")[0])[len(records.FIELDS) :] == [
            "input_text", "input_input_label", "text", "input_label", "n",
        ]  # fmt: skip
