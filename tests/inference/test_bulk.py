"""Bulk prediction where nothing crashes: what is written, what is refused, what is put aside."""

from __future__ import annotations

import csv
import datetime
import decimal
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fenlei.data import readers
from fenlei.data.tables import RawRow, Table
from fenlei.errors import ConfigError, DataError, StopNow
from fenlei.inference import bulk, chunks, output, records, store, writers
from fenlei.inference.journal import read_journal
from tests.inference.fake import FakeClassifier, predict

ROOT = Path(__file__).parent.parent.parent


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.jsonl", [{"text": f"第{i}条", "n": i} for i in range(20)])


class DiesAt(FakeClassifier):
    """Is interrupted in its n-th call."""

    def __init__(self, call: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.call, self.error = call, error or StopNow(15)

    def score(self, texts, *, progress=None):
        if len(self.calls) == self.call:
            raise self.error
        return super().score(texts, progress=progress)


def interrupted(source, out, call: int = 1, **how) -> None:
    with pytest.raises(StopNow):
        predict(source, out, classifier=DiesAt(call), **how)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_row_is_written_once_in_order_or_put_aside_with_its_reason(tmp_path, suffix):
    rows = [{"text": f"第{i}条", "n": i} for i in range(30)]
    rows[3]["text"] = "  "
    rows[9] = "{broken"
    rows[17] = {"other": 1}
    out = tmp_path / f"out{suffix}"
    result = predict(write(tmp_path / "in.jsonl", rows), out)
    assert (result.counts.read, result.counts.written, result.counts.rejected) == (30, 27, 3)
    if suffix == ".jsonl":
        found = lines(out)
    elif suffix == ".csv":
        with out.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    else:
        import pyarrow.parquet as pq

        found = pq.read_table(out).to_pylist()
    assert [row["text"] for row in found] == [row["text"] for i, row in enumerate(rows) if i not in (3, 9, 17)]
    assert [str(row["id"]) for row in found] == [str(i + 1) for i in range(30) if i not in (3, 9, 17)]
    rejected = lines(result.rejected)
    assert [row["source"].rpartition(":")[2] for row in rejected] == ["4", "10", "18"]
    assert "text is empty" in rejected[0]["reason"]
    assert "invalid JSON" in rejected[1]["reason"]
    assert rejected[1]["row"] == "{broken"
    assert rejected[2]["row"] == {"other": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", out.name, f"{out.name}.rejected.jsonl"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "json", "jsonl.gz", "folder"])
def test_every_kind_of_input_gives_the_same(tmp_path, source, kind):
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = lines(source)
    other = tmp_path / f"same.{kind}"
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        other.write_text("".join(mark.join(map(str, r)) + "\n" for r in [("text", "n"), *(r.values() for r in rows)]))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), other)
    elif kind == "json":
        other.write_text(json.dumps(rows))
    elif kind == "folder":
        other.mkdir()
        write(other / "a.jsonl", rows[:9])
        write(other / "b.jsonl", rows[9:])
    else:
        other.write_bytes(gzip.compress(source.read_bytes()))
    sizes = {"chunk_rows": 4}
    predict(source, tmp_path / "one.jsonl", **sizes)
    predict(other, tmp_path / "two.jsonl", **sizes)
    one, two = lines(tmp_path / "one.jsonl"), lines(tmp_path / "two.jsonl")
    keep = ("text", "label", "probability", "probabilities")
    assert [[row[k] for k in keep] for row in one] == [[row[k] for k in keep] for row in two]


def test_columns_that_come_late_are_not_lost(tmp_path):
    rows = [{"text": f"{i}"} for i in range(20)] + [{"text": "x", "late": "a,b"}]
    predict(write(tmp_path / "in.jsonl", rows), tmp_path / "o.csv")
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["late"] for row in found] == [""] * 20 + ["a,b"]


def test_parquet_keeps_types_and_puts_mixed_ones_as_text(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(writers, "GROUP_ROWS", 2)  # so that every type is settled over several groups
    day = datetime.date(2024, 5, 1)
    table = pa.table(
        {
            "text": ["a", "b", "c"],
            "when": [datetime.datetime(2024, 5, 1, 12, 30, 0, 5), None, datetime.datetime(2025, 1, 1)],
            "day": [None, None, day],
            "price": [decimal.Decimal("1.5"), decimal.Decimal("100.5"), None],
            "raw": [b"\xff", b"", None],
            "took": [datetime.timedelta(days=1, microseconds=3), None, None],
            "at": [datetime.time(1, 2), None, None],
            "numbers": [[1], [], None],
            "nested": [{"a": 1, "b": {"c": "x"}}, None, {"a": None, "b": None}],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    predict(tmp_path / "in.parquet", tmp_path / "o.parquet")
    found = pq.read_table(tmp_path / "o.parquet").to_pylist()
    for name in table.column_names:
        assert [row[name] for row in found] == table.column(name).to_pylist(), name
    rows = [
        {"text": "a", "mixed": 1, "number": 1, "large": 2**60, "huge": 2**70, "empty": {}, "deep": {"x": 1}},
        {"text": "b", "mixed": 2.5, "number": 2},
        {"text": "c", "mixed": True, "number": 2.5, "large": 0.5, "deep": {"y": [1]}},
        {"text": "d", "mixed": ["x"], "number": None, "deep": {"y": [2.5]}},
    ]
    write(tmp_path / "in.jsonl", rows)
    predict(tmp_path / "in.jsonl", tmp_path / "m.parquet")
    found = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert [row["mixed"] for row in found] == ["1", "2.5", "true", '["x"]']
    assert [row["number"] for row in found] == [1.0, 2.0, 2.5, None]
    assert [row["large"] for row in found] == [str(2**60), None, "0.5", None]
    assert found[0]["huge"] == str(2**70)
    assert found[0]["empty"] == "{}"
    assert [row["deep"] for row in found][2:] == [{"x": None, "y": [1.0]}, {"x": None, "y": [2.5]}]
    assert pq.ParquetFile(tmp_path / "m.parquet").num_row_groups == 2


def test_a_typed_line_reads_as_it_was_written():
    record = {"a": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc), "b": {"c": [b"\0\xff"]}, "d": 2**70}
    assert records.read_typed_line(records.typed_line(record)) == record


def test_limit_takes_the_first_rows(tmp_path, source):
    result = predict(source, tmp_path / "o.jsonl", limit=7, chunk_rows=3)
    assert [row["n"] for row in lines(tmp_path / "o.jsonl")] == list(range(7))
    assert result.counts.read == 7


def test_columns_are_chosen_by_name(tmp_path):
    rows = [{"text": "a", "id": "x1", "label": "体育", "n": 1, "m": 2}, {"text": "b", "id": "x2", "late": 3}]
    source = write(tmp_path / "in.jsonl", rows)
    fixed = list(records.FIELDS)
    for columns, expected in ((("m", "label"), ["input_label", "m"]), ((), []), (("late",), []), (("text",), ["text"])):
        predict(source, tmp_path / "o.jsonl", columns=columns, overwrite=True)
        assert list(lines(tmp_path / "o.jsonl")[0]) == fixed + expected
    assert lines(tmp_path / "o.jsonl")[0]["id"] == "x1"
    with pytest.raises(DataError, match=r"--columns: no column 'lat' in the input; did you mean 'late'\?"):
        predict(source, tmp_path / "p.jsonl", columns=("m", "lat"))
    with pytest.raises(DataError, match="no column 'late'"):
        predict(source, tmp_path / "p.jsonl", columns=("late",), limit=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "o.jsonl"]


def test_a_bad_row_ends_the_run_before_it_begins_where_the_user_says_so(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": str(i)} for i in range(30)] + [{"text": ""}])
    classifier = FakeClassifier(("data.on_bad_row=stop",))
    with pytest.raises(DataError, match=r"in\.jsonl:31.*text is empty"):
        predict(source, tmp_path / "o.jsonl", classifier=classifier)
    assert classifier.calls == []
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_no_usable_row_is_an_error_and_the_reasons_stay(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": ""}] * 12)
    with pytest.raises(DataError, match=r"none of its 12 rows can be used:\n.*in\.jsonl:1: .*empty(?s:.*)2 more"):
        predict(source, tmp_path / "o.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "o.jsonl.rejected.jsonl"]
    write(tmp_path / "in.jsonl", [])
    with pytest.raises(DataError, match="no rows"):
        predict(source, tmp_path / "p.jsonl")


def test_chunks_end_by_rows_or_size_and_long_texts_are_alone(tmp_path):
    texts = ["a"] * 5 + ["长" * 400_000] + ["b"] * 3
    classifier = FakeClassifier()
    source = write(tmp_path / "in.jsonl", [{"text": t} for t in texts])
    predict(source, tmp_path / "o.jsonl", classifier=classifier, chunk_rows=4)
    assert [len(call) for call in classifier.calls] == [4, 2, 3]


CHANGES = {
    "first rows": ("INPUT was", {}, lambda rows: rows.__setitem__(0, {"text": "another"})),
    "last row": ("content of INPUT was", {}, lambda rows: rows.__setitem__(-1, {"text": "another"})),
    "more rows": ("content of INPUT was", {}, lambda rows: rows.append({"text": "another"})),
    "classifier": ("RUN (hash of its classifier) was", {"sha": "1" * 64}, None),
    "limit": ("--limit was None, is 9", {"limit": 9}, None),
    "columns": ("--columns was None, is n", {"columns": ("n",)}, None),
    "chunks": ("the size of a chunk", {"chunk_rows": 9}, None),
    "setting": ("prompt.max_length was 384, is 128", {"overrides": ("prompt.max_length=128",)}, None),
    "column": ("data.text_column was None, is n", {"overrides": ("data.text_column=n",)}, None),
    "device": ("model.device was auto, is cpu", {"overrides": ("model.device=cpu",)}, None),
    "machine": ("the number of threads was None, is 8", {"machine": {"the number of threads": 8}}, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_going_on_is_refused_when_something_changed(tmp_path, source, change):
    words, how, edit = CHANGES[change]
    out = tmp_path / "o.jsonl"
    interrupted(source, out)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p != source}
    if edit:
        rows = lines(source)
        edit(rows)
        write(source, rows)
    with pytest.raises(DataError) as refused:
        predict(source, out, resume=True, **how)
    assert "cannot go on" in str(refused.value)
    assert words in str(refused.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p != source} == before


def test_another_output_format_or_library_is_refused(tmp_path, source, monkeypatch):
    out = tmp_path / "o.jsonl"
    libraries = ("fenlei", "torch", "transformers", "peft", "tokenizers")
    interrupted(source, out)
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "OUTPUT_FORMAT", "999")
        with pytest.raises(DataError, match=r"the output format was 3 \(id, label, .*\), is 999"):
            predict(source, out, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "library_versions", lambda: dict.fromkeys(libraries, "0"))
        with pytest.raises(DataError) as refused:
            predict(source, out, resume=True)
        assert all(f"the version of {name} was " in str(refused.value) for name in libraries)
        assert "is 0" in str(refused.value)
    journal = out.with_name("o.jsonl.journal")
    content = json.loads(journal.read_text("utf-8"))
    journal.write_text(json.dumps({**content, "journal_version": 9}))
    with pytest.raises(DataError, match="journal version 9"):
        predict(source, out, resume=True)
    journal.write_text("{")
    with pytest.raises(DataError, match="cannot be read as a journal"):
        predict(source, out, resume=True)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("stage", ["predicting", "publishing"])
def test_a_run_of_a_version_that_wrote_other_columns_is_refused_as_it_is(tmp_path, source, suffix, stage):
    """Rows of format 1 had no `confidence`: a file must not have it in its second half only."""
    out = tmp_path / f"o.{suffix}"
    interrupted(source, out)
    journal = out.with_name(f"{out.name}.journal")
    content = json.loads(journal.read_text("utf-8"))
    old = {**content, "identity": {**content["identity"], "the output format": 1}, "stage": stage}
    journal.write_text(json.dumps(old))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(DataError, match=r"the output format was 1, is 3 \(id, .*confidence.*\).*--overwrite"):
        predict(source, out, resume=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    journal.write_text(json.dumps(content))  # negative control: the same journal with the format of today goes on
    assert predict(source, out, resume=True).counts.read == 20


def test_the_format_names_the_fields_that_are_written(tmp_path, source):
    """So that nobody has to think of the number when one comes or goes."""
    out = tmp_path / "o.jsonl"
    predict(source, out)
    (first, *_) = lines(out)
    assert tuple(first)[: len(records.FIELDS)] == records.FIELDS
    assert list(first)[len(records.FIELDS) :] == ["text", "n"]
    assert bulk.OUTPUT_FORMAT == f"3 ({', '.join(records.FIELDS)})"
    assert first["confidence"] == first["probability"] - 1, "the classifier's own figure"


def test_a_column_of_the_input_with_a_fields_name_is_renamed(tmp_path):
    out = tmp_path / "o.jsonl"
    predict(write(tmp_path / "in.jsonl", [{"text": "甲", "confidence": "high"}]), out)
    (row,) = lines(out)
    assert row["input_confidence"] == "high"
    assert isinstance(row["confidence"], float)


def test_of_a_limited_run_only_the_rows_that_are_wanted_count(tmp_path, source):
    out, rows = tmp_path / "o.jsonl", lines(source)
    interrupted(source, out, limit=16)
    write(source, [*rows[:16], {"text": "another"}])
    (tmp_path / "o.jsonl.journal").rename(tmp_path / "kept")
    for place in (3, 15):  # done, and to come
        (tmp_path / "o.jsonl.journal").write_bytes((tmp_path / "kept").read_bytes())
        changed = [*rows]
        changed[place] = {"text": "another"}
        write(source, changed)
        with pytest.raises(DataError, match="the content of INPUT was"):
            predict(source, out, resume=True, limit=16)
    write(source, [*rows[:16], {"text": "another"}])
    assert predict(source, out, resume=True, limit=16).counts.read == 16


def test_a_data_set_without_files_of_its_own_is_told_by_its_rows(tmp_path, monkeypatch):
    """Of a hub, or saved by `datasets`: a row that is still to come has changed."""
    rows = [{"text": f"{i}"} for i in range(20)]
    tables = lambda *_, **__: [Table("ms:A/B/test", (RawRow(i, row) for i, row in enumerate(rows, 1)))]  # noqa: E731
    monkeypatch.setattr(readers.hub, "hub_tables", tables)
    out = tmp_path / "o.jsonl"
    interrupted("ms:A/B", out)
    kept, rows[17] = rows[17], {"text": "another"}
    with pytest.raises(DataError, match="the content of INPUT was"):
        predict("ms:A/B", out, resume=True)
    rows[17] = kept
    assert predict("ms:A/B", out, resume=True).counts.written == 20


@pytest.mark.parametrize("with_hash", [True, False], ids=["hash", "negative control"])
def test_rows_changed_where_the_fingerprint_does_not_look_are_noticed(tmp_path, source, monkeypatch, with_hash):
    monkeypatch.setattr(bulk, "fingerprint", lambda source: "")
    if not with_hash:
        monkeypatch.setattr(
            bulk, "skip_done", lambda chunks, rows, consumed, source: [next(chunks) for _ in range(rows // 8)]
        )
    interrupted(source, tmp_path / "o.jsonl")
    rows = lines(source)
    rows[2]["n"] = 99
    write(source, rows)
    if with_hash:
        with pytest.raises(DataError, match="its first 8 rows, which are done, are not what they were"):
            predict(source, tmp_path / "o.jsonl", resume=True)
        write(source, rows[:5])
        with pytest.raises(DataError, match="are not what they were"):
            predict(source, tmp_path / "o.jsonl", resume=True)
    else:
        predict(source, tmp_path / "o.jsonl", resume=True)
        assert lines(tmp_path / "o.jsonl")[2]["n"] == 2, "the output says what the input no longer says"


def test_staged_lines_that_somebody_changed_are_noticed(tmp_path, source):
    out, staged = tmp_path / "o.jsonl", tmp_path / "o.jsonl.partial"
    interrupted(source, out)
    content = staged.read_bytes()
    for changed in (content[:-1], content.replace(b"id", b"iD", 1), b""):
        staged.write_bytes(changed)
        with pytest.raises(DataError, match="is not what the run left there"):
            predict(source, out, resume=True)
        assert staged.read_bytes() == changed
    staged.write_bytes(content + b'{"id": "torn')
    predict(source, out, resume=True)
    predict(source, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_stands_in_the_way_is_named_with_the_ways_out(tmp_path, source):
    out = tmp_path / "o.jsonl"
    with pytest.raises(DataError, match="nothing to resume: there is no o.jsonl.journal; run it without --resume"):
        predict(source, out, resume=True)
    interrupted(source, out)
    with pytest.raises(DataError, match=r"an unfinished run is there .*--resume.*--overwrite"):
        predict(source, out)
    with pytest.raises(ConfigError, match="leave one of the two out"):
        predict(source, out, resume=True, overwrite=True)
    predict(source, out, resume=True)
    content = out.read_bytes()
    with pytest.raises(DataError, match=r"o\.jsonl exists already; choose another name, or replace it by --overwrite"):
        predict(source, out)
    with pytest.raises(DataError, match="is complete, there is nothing to resume"):
        predict(source, out, resume=True)
    assert out.read_bytes() == content


def test_overwriting_keeps_the_old_output_until_the_new_one_is_whole(tmp_path, source):
    out = tmp_path / "o.jsonl"
    write(source, [{"text": ""}, *({"text": f"{i}"} for i in range(20))])
    predict(source, out)
    old = out.read_bytes(), (tmp_path / "o.jsonl.rejected.jsonl").read_bytes()
    write(source, [{"text": f"new {i}"} for i in range(20)])
    interrupted(source, out, overwrite=True)
    assert (out.read_bytes(), (tmp_path / "o.jsonl.rejected.jsonl").read_bytes()) == old
    predict(source, out, resume=True)
    assert [row["text"] for row in lines(out)] == [f"new {i}" for i in range(20)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "o.jsonl"], "no bad rows of another input"
    interrupted(source, tmp_path / "p.jsonl")
    predict(source, tmp_path / "p.jsonl", overwrite=True)
    assert (tmp_path / "p.jsonl").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_an_output_that_came_into_being_meanwhile_is_not_lost(tmp_path, source, suffix):
    out = tmp_path / f"o{suffix}"
    interrupted(source, out, call=2)
    out.write_text("mine")
    with pytest.raises(DataError, match="came into being while the run was interrupted; move it away, then --resume"):
        predict(source, out, resume=True)
    out.unlink()

    class Meanwhile(FakeClassifier):
        def score(self, texts, *, progress=None):
            out.write_text("mine")
            return super().score(texts, progress=progress)

    with pytest.raises(DataError, match="came into being while the predictions were made"):
        predict(source, out, resume=True, classifier=Meanwhile())
    assert out.read_text() == "mine"
    out.unlink()
    predict(source, out, resume=True)
    predict(source, tmp_path / f"whole{suffix}")
    assert out.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_files_of_the_input_are_never_written(tmp_path, source):
    (tmp_path / "o.jsonl.rejected.jsonl").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match=r"o\.jsonl\.rejected\.jsonl is the input"):
        predict(tmp_path / "o.jsonl.rejected.jsonl", tmp_path / "o.jsonl")
    with pytest.raises(DataError, match="lies in the input folder"):
        predict(tmp_path, tmp_path / "o.jsonl")
    link = tmp_path / "link.jsonl"
    link.symlink_to(source)
    with pytest.raises(DataError, match="is the input"):
        predict(source, link)


def test_a_link_keeps_pointing_at_the_file_it_names(tmp_path, source):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "o.jsonl"
    link.symlink_to(tmp_path / "elsewhere" / "real.jsonl")
    predict(source, link)
    assert link.is_symlink()
    assert len(lines(tmp_path / "elsewhere" / "real.jsonl")) == 20


def test_a_second_process_is_refused(tmp_path, source):
    pytest.importorskip("fcntl")
    out = tmp_path / "o.jsonl"
    code = "import sys, pathlib; from tests.inference.fake import predict; predict(*map(pathlib.Path, sys.argv[1:]))"
    with output.open_output(source, out):
        done = subprocess.run(
            [sys.executable, "-c", code, str(source), str(out)], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode != 0
    assert "another process is writing it; wait for it, or choose another --out" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
    predict(source, out)


def test_an_error_of_the_model_keeps_what_is_done_and_an_early_one_leaves_nothing(tmp_path, source):
    out = tmp_path / "o.jsonl"
    with pytest.raises(DataError, match="boom"):
        predict(source, out, classifier=DiesAt(0, DataError("boom")))
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
    with pytest.raises(DataError, match="boom"):
        predict(source, out, classifier=DiesAt(1, DataError("boom")))
    assert read_journal(tmp_path / "o.jsonl.journal", out).counts.read == 8
    classifier = FakeClassifier()
    predict(source, out, resume=True, classifier=classifier)
    assert [len(call) for call in classifier.calls] == [8, 4], "what was done is not done again"


def test_a_full_disk_says_how_much_is_needed_and_free(tmp_path, source, monkeypatch):
    out = tmp_path / "o.jsonl"
    append = output.GrowingFile.append

    def full(self, data):
        if self._size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(output.GrowingFile, "append", full)
        with pytest.raises(DataError, match=r"o\.jsonl: No space left on device: the rest of the predictions takes "
                           r"about 0\.0 MB, .* are free there\. What is done is kept: make room, then go on with "
                           r"--resume"):  # fmt: skip
            predict(source, out)
    predict(source, out, resume=True)
    assert len(lines(out)) == 20


def test_progress_is_told_and_knows_about_how_many_rows_there_are(tmp_path, source):
    class Told:
        def __init__(self):
            self.heard, self.done = [], 0

        def start(self, done, total):
            self.done = done
            self.heard.append((done, total.rows, total.exact))

        def advance(self, rows):
            self.done += rows

        def note(self, text):
            self.heard.append(text)

    write(source, [{"text": str(i) if i % 6 else ""} for i in range(20)])
    told = Told()
    interrupted(source, tmp_path / "o.csv", progress=told)
    assert told.heard == [(0, 20, False)]
    predict(source, tmp_path / "o.csv", progress=told, resume=True)
    assert told.heard[1:] == ["reading again the 8 rows that are done", (8, 20, False), "making o.csv"]
    assert told.done == 20


def test_skipping_needs_the_same_boundaries():
    with pytest.raises(DataError, match="its first 3 rows"):
        chunks.skip_done(iter([chunks.Chunk([], 4, "x")]), 3, "x", "in.jsonl")


def test_no_room_for_the_last_step_is_made_up_for(tmp_path, source, monkeypatch):
    """All rows are done, the final form is not: nothing is predicted again."""
    out = tmp_path / "o.csv"

    def full(*_):
        raise OSError(errno.ENOSPC, "x")

    with monkeypatch.context() as patch:
        patch.setattr(store, "convert", full)
        with pytest.raises(DataError, match="the output takes about"):
            predict(source, out)
    classifier = FakeClassifier()
    predict(source, out, resume=True, classifier=classifier)
    assert classifier.calls == []


MEMORY = """
import json, re, sys
from pathlib import Path
import pyarrow.parquet
from fenlei.inference import writers
from tests.inference.fake import FakeClassifier, predict
writers.GROUP_BYTES = 1 << 20
out, rows = Path(sys.argv[1]), int(sys.argv[2])
source = out.with_name("in.jsonl")
with source.open("w") as file:
    for number in range(rows):
        file.write(json.dumps({"text": f"{number} " * 300, "n": number}) + "\\n")
predict(source, out, chunk_rows=256, classifier=FakeClassifier(remember=KEEP))
# not ru_maxrss: a new process begins with that of the one that started it
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


def needs_proc() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc (Linux)")


def peak(folder: Path, suffix: str, rows: int, keep: bool = False) -> int:
    """Most bytes of memory that a process took for so many rows."""
    folder.mkdir()
    command = [sys.executable, "-c", MEMORY.replace("KEEP", str(keep)), str(folder / f"o{suffix}"), str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_input(tmp_path, suffix):
    """8 MB and 40 MB."""
    needs_proc()
    few, many = peak(tmp_path / "few", suffix, 4_000), peak(tmp_path / "many", suffix, 20_000)
    assert many - few < 12e6, (few, many)


def test_memory_that_grows_is_seen(tmp_path):
    """Negative control: a classifier that keeps the texts."""
    needs_proc()
    few, many = peak(tmp_path / "few", ".jsonl", 4_000, True), peak(tmp_path / "many", ".jsonl", 20_000, True)
    assert many - few > 20e6, (few, many)
