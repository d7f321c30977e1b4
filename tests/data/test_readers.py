from __future__ import annotations

import json

import pytest

from fenlei.config import DataConfig
from fenlei.data import Columns, LabelSet, Rejected, iter_rows, read_examples, stratified_split
from fenlei.data import files as files_module
from fenlei.data import readers as readers_module
from fenlei.errors import DataError
from tests.data_dir import shared_data

SKIP = DataConfig(on_bad_row="skip")


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def row(i=0, **more):
    return {"text": f"text {i}", "label": "ab"[i % 2], **more}


def test_fudan_news():
    result = read_examples(shared_data("fudan-news/train.jsonl"), DataConfig())
    assert result.read == len(result.examples) == 1380
    assert result.columns == Columns("text", "output", "category", None)
    assert all(e.candidates and e.label in e.candidates and e.candidates_text is None for e in result.examples)
    labels = LabelSet.from_examples(result.examples, DataConfig())
    assert len(labels) == 9
    train, dev = stratified_split(result.examples, 0.1, 42)
    assert (len(train), len(dev)) == (1242, 138)
    test = read_examples(shared_data("fudan-news/test.jsonl"), DataConfig(), role="test", labels=labels)
    assert len(test.examples) == 260


def test_thucnews():
    result = read_examples(str(shared_data("thucnews-titles/train.jsonl")), DataConfig())
    assert len(LabelSet.from_examples(result.examples, DataConfig())) == 10


def mixed(tmp_path, bad=12):
    rows = []
    for i in range(bad):
        rows += [row(i), {"text": "", "label": "a"} if i % 2 else '{"text": "cut']
    return write(tmp_path / "m.jsonl", rows)


def test_bad_rows_stop_with_the_first_ten_and_the_count(tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(mixed(tmp_path), DataConfig(), rejected_path=tmp_path / "rejected.jsonl")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("m.jsonl: 12 of 24 rows cannot be used:")
    assert sum("m.jsonl:" in line for line in lines[1:]) == 10
    assert "m.jsonl:2: invalid JSON at column" in lines[1]
    assert "m.jsonl:4: column 'text': the text is empty" in lines[2]
    assert lines[-2] == "  ... and 2 more"
    assert "data.on_bad_row=skip" in lines[-1]
    assert not (tmp_path / "rejected.jsonl").exists()


def test_skipped_rows_are_written_with_their_reason(tmp_path):
    path = tmp_path / "rejected.jsonl"
    path.write_text("old")
    result = read_examples(mixed(tmp_path), SKIP, rejected_path=path)
    assert result.read == 24 == len(result.examples) + len(result.rejected)
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert [Rejected(**values) for values in written] == result.rejected
    assert written[0]["row"] == '{"text": "cut'
    assert written[1]["row"] == {"text": "", "label": "a"}
    assert [e.id for e in result.examples][:2] == ["1", "3"]


def test_nothing_rejected_writes_nothing(tmp_path):
    read_examples(write(tmp_path / "a.jsonl", [row()]), SKIP, rejected_path=tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_rejected_rows_that_cannot_be_encoded_are_still_written(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(), '{"text": "\\ud800", "label": [1]}', '"\\udfff'])
    result = read_examples(path, SKIP, rejected_path=tmp_path / "r.jsonl")
    assert (len(result.examples), len(result.rejected)) == (1, 2)
    assert (tmp_path / "r.jsonl").read_text(encoding="utf-8").count("\n") == 2


def test_rejected_file_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"

    def no_room(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module.os, "fsync", no_room)
    with pytest.raises(DataError, match=r"r\.jsonl: cannot be written: No space left"):
        read_examples(mixed(tmp_path), SKIP, rejected_path=path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_no_usable_row(tmp_path):
    path = write(tmp_path / "a.jsonl", ["{", "["])
    for config in (DataConfig(), SKIP):
        with pytest.raises(DataError, match=r"2 of 2 rows cannot be used"):
            read_examples(path, config)
    path = write(tmp_path / "b.jsonl", [{"text": "", "label": "a"}])
    with pytest.raises(DataError, match="No row is left"):
        read_examples(path, SKIP)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_empty_files(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="no rows"):
        read_examples(tmp_path / name, DataConfig())


def test_header_without_rows(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(DataError, match="no rows"):
        read_examples(tmp_path / "a.csv", DataConfig())


def test_random_garbage_balances(tmp_path):
    """Whatever stands in the lines, read = used + rejected, and reading never raises anything but DataError."""
    import random

    generator = random.Random(0)
    alphabet = '{}[]",:\\ntextlabel中文\u2028\0\ud7ff😀 0189.-'
    for trial in range(60):
        lines = ["".join(generator.choices(alphabet, k=generator.randint(0, 30))) for _ in range(30)]
        lines[0] = json.dumps(row(), ensure_ascii=False)
        path = write(tmp_path / "g.jsonl", lines)
        result = read_examples(path, SKIP)
        assert result.read == len(result.examples) + len(result.rejected)
        assert result.read == sum(bool(line.strip(" \t\r\n\ufeff")) for line in lines), trial


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"])
def test_mutated_files_never_raise_anything_but_data_errors(tmp_path, name):
    import csv
    import gzip
    import io
    import random

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": f'今日"股市"{i},\n', "category": "a|b", "output": "ab"[i % 2]} for i in range(6)]
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t" if name == "a.tsv" else ",")
    writer.writerows([rows[0], *(r.values() for r in rows)])
    seed = {
        "a.jsonl": lines.encode(),
        "a.json": json.dumps(rows, ensure_ascii=False, indent=1).encode(),
        "a.csv": table.getvalue().encode("gb18030"),
        "a.tsv": table.getvalue().encode("utf-16"),
        "a.parquet": buffer.getvalue(),
        "a.jsonl.gz": gzip.compress(lines.encode()),
    }[name]
    generator = random.Random(name)
    for _ in range(120):
        content = bytearray(seed)
        for _ in range(generator.choice([1, 1, 3])):
            at = generator.randrange(len(content))
            content[at : at + generator.choice([0, 1, 9])] = bytes(generator.choices(b'{}[]",\n\0\xff\t', k=1))
        (tmp_path / name).write_bytes(content)
        try:
            result = read_examples(tmp_path / name, SKIP)
        except DataError as error:
            assert name in str(error)  # noqa: PT017
        else:
            assert result.read == len(result.examples) + len(result.rejected)


def test_folder(tmp_path):
    write(tmp_path / "b.jsonl", [row(0), row(1)])
    (tmp_path / "a.csv").write_text("content,category\nx,c\n")
    (tmp_path / "c.tsv").write_text("text\tlabel\ny\tc\n")
    (tmp_path / "d.json").write_text('[{"instruction": "i", "input": "z", "output": "c"}]')
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.csv").write_text("?")
    (tmp_path / "empty.jsonl").write_text("")
    write(tmp_path / "rejected.jsonl", [{"source": "", "reason": "", "row": {}}])
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "e.jsonl", [row()])
    result = read_examples(tmp_path, DataConfig())
    assert [e.text for e in result.examples] == ["x", "text 0", "text 1", "y", "z"]
    assert result.columns.text == "content"
    assert len(list(iter_rows(tmp_path))) == 5


def test_rows_of_a_folder_have_ids_that_differ(tmp_path):
    write(tmp_path / "a.jsonl", [row(0), row(1)])
    write(tmp_path / "b.jsonl", [row(2), {**row(3), "id": "own"}])
    assert [e.id for e in read_examples(tmp_path, DataConfig()).examples] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "b.jsonl:1",
        "own",
    ]
    assert [e.id for e in read_examples(tmp_path / "b.jsonl", DataConfig()).examples] == ["1", "own"]


def test_folder_with_splits_does_not_leak(tmp_path):
    for i, name in enumerate(("train.jsonl", "test.jsonl", "dev-00.jsonl")):
        write(tmp_path / name, [row(i)])
    found = {role: read_examples(tmp_path, DataConfig(), role=role).examples for role in ("train", "test", "dev")}
    assert {role: [e.text for e in rows] for role, rows in found.items()} == {
        "train": ["text 0"],
        "test": ["text 1"],
        "dev": ["text 2"],
    }
    assert read_examples(tmp_path, DataConfig(), role="predict", need_label=False).read == 3
    (tmp_path / "dev-00.jsonl").unlink()
    with pytest.raises(DataError, match="no file for dev among 'test.jsonl', 'train.jsonl'"):
        read_examples(tmp_path, DataConfig(), role="dev")


def test_missing_and_odd_paths(tmp_path, monkeypatch):
    write(tmp_path / "train.jsonl", [row()])
    with pytest.raises(DataError, match=r"no such file or folder; the nearest name there is 'train\.jsonl'"):
        read_examples(tmp_path / "trian.jsonl", DataConfig())
    with pytest.raises(DataError, match="does not exist either"):
        read_examples(tmp_path / "none" / "x.jsonl", DataConfig())
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="found nothing"):
        read_examples(tmp_path / "void", DataConfig())
    (tmp_path / "void" / "x.xlsx").write_text("")
    with pytest.raises(DataError, match=r"no data file in this folder; expected \.jsonl.*found 'x\.xlsx'"):
        read_examples(tmp_path / "void", DataConfig())
    for name in ("", "  ", "a\0b", "x" * 5000):
        with pytest.raises(DataError):
            read_examples(name, DataConfig())
    with pytest.raises(DataError, match="role: expected train"):
        read_examples(tmp_path / "train.jsonl", DataConfig(), role="valid")
    import os

    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="expected a regular file"):
        read_examples(tmp_path / "pipe.jsonl", DataConfig())


def test_known_labels_are_enforced(tmp_path):
    labels = LabelSet(["a", "b"], aliases={"bee": "b"})
    path = write(tmp_path / "t.jsonl", [row(0), row(1, label="bee"), row(2, label="A"), row(3, label="c")])
    with pytest.raises(DataError) as caught:
        read_examples(path, DataConfig(), labels=labels)
    assert "t.jsonl:3: column 'label': label 'A' differs from 'a' only in white space" in str(caught.value)
    assert "t.jsonl:4: column 'label': unknown label 'c'" in str(caught.value)
    for config, known in (
        (SKIP, labels),
        (DataConfig(on_bad_row="skip", labels=("a", "b"), aliases={"bee": "b"}), None),
    ):
        assert [e.label for e in read_examples(path, config, labels=known).examples] == ["a", "b"]
    assert len(read_examples(path, SKIP).examples) == 4  # negative control: unknown labels pass without the set
    # rows to predict: the label does not matter, candidates do
    assert len(read_examples(path, DataConfig(), labels=labels, need_label=False).examples) == 4
    path = write(tmp_path / "p.jsonl", [{"text": "t", "category": ["a", "z"]}])
    with pytest.raises(DataError, match=r"p\.jsonl:1: column 'category': unknown label 'z'"):
        read_examples(path, DataConfig(), labels=labels, need_label=False)


def test_iter_rows_reports_bad_rows(tmp_path):
    path = mixed(tmp_path, bad=2)
    with pytest.raises(DataError, match=r"m\.jsonl:2: invalid JSON"):
        list(iter_rows(path))
    bad = []
    assert [where[-1] for where, _ in iter_rows(path, on_bad=bad.append)] == ["1", "3", "4"]
    assert [r.source[-1] for r in bad] == ["2"]


def test_first_rows_all_broken_then_good_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(readers_module, "_PEEK_MOST", 5)
    path = write(tmp_path / "a.jsonl", ["{"] * 6 + [row()])
    write(tmp_path / "b.jsonl", [row()])
    result = read_examples(tmp_path, SKIP)
    assert (result.read, len(result.examples), len(result.rejected)) == (8, 1, 7)
    with pytest.raises(DataError, match="6 of 7|7 of 7"):
        read_examples(path, SKIP)
