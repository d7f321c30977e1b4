from __future__ import annotations

import csv
import json

import pytest

from fenlei.config import DataConfig
from fenlei.data import iter_rows, read_examples
from fenlei.data.tables import clean_text, iter_file
from fenlei.errors import DataError

NASTY = ["a\u2028b", 'say "hi", ok', "line\none\r\ntwo", "x\x85y\u2029z", "tab\there", " spaced ", "a,b;c|d、e"]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def reasons(path):
    return {row.line: row.reason for row in iter_file(path) if row.values is None}


def test_u2028_inside_a_json_line_is_no_line_end(tmp_path):
    content = "".join(json.dumps({"text": t, "label": "l"}, ensure_ascii=False) + "\n" for t in NASTY)
    path = write(tmp_path / "a.jsonl", content)
    assert [row["text"] for _, row in iter_rows(path)] == NASTY
    # negative control: splitlines cuts these rows apart
    with pytest.raises(json.JSONDecodeError):
        [json.loads(line) for line in content.splitlines()]


def test_json_lines_faults_each_have_line_and_reason(tmp_path):
    lines = [
        '{"text": "ok", "label": "a"}',
        "",
        '{"text": "cut',
        '["a", "list"]',
        "17",
        '{"text": "x", "text": "y", "label": "a"}',
        '{"text": "raw\0nul", "label": "a"}',
        "[" * 100_000,
        '{"n": ' + "9" * 5000 + "}",
        '{"text": "fine", "label": "a"} trailing',
        "null",
    ]
    found = reasons(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert set(found) == {3, 4, 5, 6, 7, 8, 9, 10, 11}
    assert "invalid JSON at column" in found[3]
    assert "found a list" in found[4]
    assert "found a number" in found[5]
    assert "'text' stands twice" in found[6]
    assert "ontrol character" in found[7]
    assert "Extra data" in found[10]


def test_crlf_blank_lines_and_late_marks(tmp_path):
    path = write(tmp_path / "a.jsonl", '\r\n{"text": "a"}\r\n\r\n\ufeff{"text": "b"}\r\n')
    assert [(where.rsplit(":")[-1], row["text"]) for where, row in iter_rows(path)] == [("2", "a"), ("4", "b")]


def test_lone_surrogates_become_replacement_characters(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a\\ud800b \\ud83d\\ude00", "label": "l", "extra": ["\\udfff"]}\n')
    example = read_examples(path, DataConfig()).examples[0]
    assert example.text == "a\ufffdb 😀"
    assert example.extra == {"extra": ["\ufffd"]}
    example.text.encode()
    with pytest.raises(UnicodeEncodeError):  # negative control
        json.loads('"a\\ud800b"').encode()
    assert clean_text("中文 plain") == "中文 plain"


@pytest.mark.parametrize(
    "content",
    [
        '[\n {"text": "a", "label": "x"},\n\n {"text": "b",\n  "label": "y"}\n]\n',
        '{"data": [\n {"text": "a", "label": "x"},\n\n {"text": "b", "label": "y"}]}',
    ],
)
def test_json_array_rows_know_their_line(tmp_path, content):
    result = read_examples(write(tmp_path / "a.json", content), DataConfig())
    assert [(e.text, e.label, e.source[-2:]) for e in result.examples] == [("a", "x", ":2"), ("b", "y", ":4")]


def test_json_lines_under_the_name_json(tmp_path):
    path = write(tmp_path / "a.json", '{"text": "a\u2028", "label": "x"}\n{"text": "b", "label": "y"}\n')
    assert [e.source[-2:] for e in read_examples(path, DataConfig()).examples] == [":1", ":2"]
    one = write(tmp_path / "one.json", '{\n"text": "a",\n"label": "x"}')
    assert read_examples(one, DataConfig()).read == 1


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('[{"text": "a"},\n{"text": ]', r":2: invalid JSON at column 10"),
        ('[{"text": "a"}\n{"text": "b"}]', r":2: .*expected ',' or '\]'"),
        ('[{"text": "a"}', r":1: .*expected ',' or '\]'"),
        ('[{"text": "a"}] x', r":1: .*after the end of the array"),
        ("hello", r":1: invalid JSON"),
        ("[" * 100_000, r"invalid JSON"),
    ],
)
def test_broken_json_file(tmp_path, content, place):
    with pytest.raises(DataError, match=place):
        read_examples(write(tmp_path / "a.json", content), DataConfig())


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_delimited_rows_with_embedded_newlines_know_their_line(tmp_path, name, delimiter):
    path = tmp_path / name
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter=delimiter)
        writer.writerow(("text", "label"))
        writer.writerows((text, "l") for text in NASTY)
    result = read_examples(path, DataConfig())
    assert [e.text for e in result.examples] == NASTY
    assert [int(e.source.rsplit(":", 1)[1]) for e in result.examples] == [2, 3, 4, 7, 8, 9, 10]


def test_csv_faults_each_have_line_and_reason(tmp_path):
    content = 'text,label\nok,a\none\n1,2,3\n"bad"quote,a\nnul\0,a\n\nfine,a\n"open,a\nnever closed,b\n'
    path = write(tmp_path / "a.csv", content)
    found = reasons(path)
    assert found[3] == "expected 2 fields (text, label), found 1"
    assert found[4] == "expected 2 fields (text, label), found 3"
    assert "broken quoting" in found[5]
    assert found[6] == "holds a NUL character"
    assert "line 9 to 10" in found[9]
    assert [row.values for row in iter_file(path) if row.values] == [
        {"text": "ok", "label": "a"},
        {"text": "fine", "label": "a"},
    ]
    # negative control: a lenient reader takes the unclosed quote for one long row and says nothing
    assert len(list(csv.reader(['"open,a\n', "never closed,b\n"], strict=False))) == 1


def test_csv_headers(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv:1: column header 'text' stands twice"):
        read_examples(write(tmp_path / "a.csv", "text,label, text\na,b,c\n"), DataConfig())
    padded = read_examples(write(tmp_path / "b.csv", " text , label\na,b\n"), DataConfig())
    assert padded.columns.text == "text"
    with pytest.raises(DataError, match="no text column found among: '今日股市', '财经'.*header"):
        read_examples(write(tmp_path / "c.csv", "今日股市,财经\n明日,体育\n"), DataConfig())
    with pytest.raises(DataError, match=r"d\.csv:1: the header cannot be read"):
        read_examples(write(tmp_path / "d.csv", '"text,label\na,b\n'), DataConfig())


def test_a_field_larger_than_csv_allows_by_default(tmp_path):
    text = "字" * 200_000
    assert read_examples(write(tmp_path / "a.csv", f"text,label\n{text},a\n"), DataConfig()).examples[0].text == text


def test_tsv_with_and_without_quoting(tmp_path):
    plain = write(tmp_path / "plain.tsv", 'text\tlabel\n"你好"他说\ta\n5" screen\tb\n"unclosed\tc\n')
    assert [e.text for e in read_examples(plain, DataConfig()).examples] == ['"你好"他说', '5" screen', '"unclosed']
    quoted = write(tmp_path / "quoted.tsv", 'text\tlabel\n"a ""b""\n\tc"\ta\n')
    assert [e.text for e in read_examples(quoted, DataConfig()).examples] == ['a "b"\n\tc']


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    rows = [{"text": t, "category": ["l", "m"], "output": "l", "n": i} for i, t in enumerate(NASTY)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    examples = read_examples(path, DataConfig()).examples
    assert [e.text for e in examples] == NASTY
    assert examples[0].candidates == ("l", "m")
    assert examples[1].source.endswith("a.parquet:2")
    assert examples[1].extra == {"n": 1}
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        read_examples(path, DataConfig())
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, path)
    with pytest.raises(DataError, match="column 'text' stands twice"):
        read_examples(path, DataConfig())


def test_unknown_suffix(tmp_path):
    with pytest.raises(DataError, match=r"a\.xlsx: expected a file that ends in \.jsonl"):
        read_examples(write(tmp_path / "a.xlsx", "x"), DataConfig())


@pytest.mark.parametrize("text", ['"a"', '"\\ud800"'], ids=["plain", "surrogate"])
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("marks", ["[]", "{}"])
def test_rows_nested_too_deeply_are_put_aside(tmp_path, text, suffix, marks):
    """Whatever reads, hashes or writes a row calls itself for every level: Python ends that with a RecursionError."""

    def row(levels):
        one = ("[", "]") if marks == "[]" else ('{"k": ', "}")
        return f'{{"text": {text}, "x": {one[0] * levels}1{one[1] * levels}}}'

    content = [row(50), row(99), row(100), row(500), row(1)]
    path = write(tmp_path / f"a.{suffix}", ",\n".join(content) if suffix == "json" else "\n".join(content))
    if suffix == "json":
        path.write_text(f"[{path.read_text('utf-8')}]", "utf-8")
    found = list(iter_file(path))
    assert [row.values is not None for row in found] == [True, True, False, False, True]
    assert [row.line for row in found] == [1, 2, 3, 4, 5]
    assert found[3].reason == "lists or objects inside each other are more than 100 levels deep"
    assert found[3].raw == content[3]
    assert found[4].values["text"] in ("a", "\ufffd")


def test_many_brackets_side_by_side_are_fine(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "[[[", "x": [' + ",".join(["[{}]"] * 500) + "]}")
    assert [row.reason for row in iter_file(path)] == [""]
