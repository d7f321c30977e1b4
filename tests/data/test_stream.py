"""Rows as a stream, and what is told of a source before it is read."""

from __future__ import annotations

import gzip
import json

import pytest

from fenlei.config import DataConfig
from fenlei.data import probe, read_examples, stream_examples
from fenlei.data.probe import RowCount, estimate_rows, fingerprint
from fenlei.data.readers import require_good_rows
from fenlei.errors import DataError

ROWS = [{"text": f"第{i}条", "label": "体育"} for i in range(30)]


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


def test_a_stream_holds_what_reading_at_once_gives(tmp_path):
    rows = [*ROWS, "{broken", {"text": ""}, {"text": "x", "label": None}]
    source = write(tmp_path / "a.jsonl", rows)
    whole = read_examples(source, DataConfig(on_bad_row="skip"))
    streamed = list(stream_examples(source, DataConfig()))
    assert [row.example for row in streamed if row.example] == whole.examples
    assert [(r.source, r.reason, r.found) for r in streamed if not r.example] == [
        (r.source, r.reason, r.row) for r in whole.rejected
    ]
    assert len(whole.rejected) == 3
    assert streamed[0].columns == whole.columns


def test_a_stream_reads_no_further_than_it_is_asked_to(tmp_path):
    stream = stream_examples(write(tmp_path / "a.jsonl", ROWS * 10), DataConfig(), need_label=False)
    assert next(stream).example.text == "第0条"
    stream.close()


def test_each_file_of_a_folder_has_columns_of_its_own(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", [{"text": "a"}])
    write(tmp_path / "in" / "b.jsonl", [{"title": "b"}])
    found = list(stream_examples(tmp_path / "in", DataConfig(), need_label=False, role="predict"))
    assert [(row.example.text, row.columns.text) for row in found] == [("a", "text"), ("b", "title")]


def test_good_rows_are_required(tmp_path):
    source = write(tmp_path / "a.jsonl", ROWS)
    require_good_rows(source, stream_examples(source, DataConfig()))
    bad = write(tmp_path / "b.jsonl", [*ROWS, "{broken"])
    with pytest.raises(DataError, match=r"1 of 31 rows cannot be used:\n.*b\.jsonl:31: invalid JSON"):
        require_good_rows(bad, stream_examples(bad, DataConfig()))
    empty = write(tmp_path / "c.jsonl", [])
    with pytest.raises(DataError, match="no rows"):
        require_good_rows(empty, stream_examples(empty, DataConfig()))


def test_rows_are_counted_before_they_are_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert estimate_rows(tmp_path / "a.parquet") == RowCount(30, True)
    source = write(tmp_path / "a.jsonl", ROWS)
    assert estimate_rows(source) == RowCount(30, False)
    source.write_text(source.read_text("utf-8").rstrip("\n"), "utf-8")
    assert estimate_rows(source) == RowCount(30, False), "the last line need not end"
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    assert estimate_rows(tmp_path / "b.jsonl.gz") == RowCount(30, False)
    write(tmp_path / "a.csv", ["text,label", "a,b", "c,d"])
    assert estimate_rows(tmp_path / "a.csv") == RowCount(2, False)
    assert estimate_rows(write(tmp_path / "a.json", [json.dumps(ROWS)])) is None
    assert estimate_rows("ms:ORG/NAME") is None
    assert estimate_rows(tmp_path / "absent.jsonl") is None
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    assert estimate_rows(tmp_path / "damaged.parquet") is None


def test_rows_of_a_large_file_are_estimated_from_parts_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "_BLOCK", 500)
    monkeypatch.setattr(probe, "_COUNTED", 8)
    source = write(tmp_path / "a.jsonl", [{"text": "x" * (i % 50)} for i in range(2000)])
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    assert estimate_rows(source).rows == pytest.approx(2000, rel=0.2)
    # what gzip reads ahead weighs much in so small a file
    assert estimate_rows(packed).rows > 0


def test_changed_content_has_another_fingerprint(tmp_path, monkeypatch):
    source = write(tmp_path / "a.jsonl", ROWS)
    seen = {fingerprint(source)}
    content = source.read_bytes()
    for changed in (content + b"\n", content[:-1], b" " + content[1:], content[:-1] + b" "):
        source.write_bytes(changed)
        seen.add(fingerprint(source))
    assert len(seen) == 5
    assert fingerprint("ms:ORG/NAME") == ""


def test_one_byte_in_the_middle_of_a_large_file_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "_BLOCK", 16)
    monkeypatch.setattr(probe, "_COUNTED", 2)
    source = write(tmp_path / "a.jsonl", ROWS)
    content = source.read_bytes()
    seen = {fingerprint(source)}
    for place in range(0, len(content), 97):
        source.write_bytes(content[:place] + b"#" + content[place + 1 :])
        seen.add(fingerprint(source))
    assert len(seen) == 1 + len(range(0, len(content), 97))


@pytest.mark.parametrize("marks", [["dataset_dict.json"], ["state.json", "dataset_info.json"]])
def test_a_saved_data_set_has_no_files_that_could_be_hashed_one_by_one(tmp_path, marks):
    for name in marks:
        (tmp_path / name).write_text("{}")
    write(tmp_path / "a.jsonl", ROWS)
    assert fingerprint(tmp_path) == ""
    (tmp_path / marks[0]).unlink()  # negative control: a folder like any other
    assert fingerprint(tmp_path) != ""


def test_a_folder_is_its_data_files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.jsonl", ROWS)
    before = fingerprint(folder)
    (folder / "notes.txt").write_text("x")
    assert fingerprint(folder) == before
    assert estimate_rows(folder) == RowCount(30, False)
    write(folder / "b.jsonl", ROWS)
    assert fingerprint(folder) != before
    (folder / "b.jsonl").rename(folder / "c.jsonl")
    assert estimate_rows(folder) == RowCount(60, False)


MEMORY = """
import sys
import pyarrow
from fenlei.config import DataConfig
from fenlei.data import stream_examples
rows = sum(1 for _ in stream_examples(sys.argv[1], DataConfig(), need_label=False))
print(rows, pyarrow.default_memory_pool().max_memory())
"""


@pytest.mark.parametrize("group", [2000, 20_000])
def test_a_large_parquet_file_is_not_held_in_memory(tmp_path, group):
    """40 MB, in ten row groups or one."""
    import os
    import subprocess
    import sys

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": [os.urandom(1000).hex() for _ in range(20_000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, most = map(int, done.stdout.split())
    assert rows == 20_000
    assert most < 20e6
