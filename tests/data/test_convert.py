from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from fenlei.cli.convert import convert
from fenlei.config import DataConfig
from fenlei.data import convert as convert_module
from fenlei.data import read_examples
from fenlei.errors import DataError
from tests.data_dir import shared_data

INSTRUCTION = "你是一个文本分类领域的专家，你会接收到一段文本和几个潜在的分类选项，请输出文本内容的正确类型"
NASTY = [
    "plain",
    "a\u2028b\u2029c\x85d",
    'quotes " and \' and ""',
    "lines\none\r\ntwo\rthree",
    "a lone\rreturn",
    "commas, and ，、;；|",
    "text,类型选型:['x', 'y']",
    ",类型选型:",
    "文本:a,类型选型:Sports, Politics",
    "  spaces around\t",
    "\ufeffmark",
    "反斜杠 \\n \\u2028 {json: [1]}",
    "😀 emoji",
    "[1, 2]",
]
CANDIDATES = [
    ["Sports", "Politics"],
    ["it's", 'say "x"', "Sports", "a, b"],
    "Sports, Politics",
    "Politics、Sports ",
    ["Sports", "x,类型选型:y", "换\n行"],
    '["Sports","z"]',
    ["Sports"],
]
app = typer.Typer()
app.command()(convert)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def nasty(tmp_path):
    rows = [{"text": t, "category": c, "output": "Sports"} for t in NASTY for c in CANDIDATES]
    return write(tmp_path / "in.jsonl", rows)


def facts(path):
    return [(e.text, e.label, e.candidates, e.candidates_text) for e in read_examples(path, DataConfig()).examples]


@pytest.mark.parametrize(
    ("to", "name"), [("alpaca", "o.jsonl"), ("alpaca", "o.json"), ("messages", "o.jsonl"), ("csv", "o.csv")]
)
def test_round_trip(nasty, tmp_path, to, name):
    out = tmp_path / name
    result = run(nasty, "--to", to, "--out", out)
    assert result.exit_code == 0, result.output
    assert (
        f"{len(NASTY) * len(CANDIDATES)} rows read, {len(NASTY) * len(CANDIDATES)} written, 0 rejected" in result.output
    )
    assert facts(out) == facts(nasty)
    again = tmp_path / f"again-{name}"
    assert run(out, "--to", to, "--out", again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()


def test_alpaca_is_what_the_tutorial_writes(tmp_path):
    """Its own few lines, run on the same rows, give the same bytes."""
    source, out, expected = shared_data("fudan-news/train.jsonl"), tmp_path / "o.jsonl", []
    with open(source, encoding="utf-8", newline="\n") as handle:
        for line in handle:
            row = json.loads(line)
            turn = f"文本:{row['text']},类型选型:{row['category']}"
            values = {"instruction": INSTRUCTION, "input": turn, "output": row["output"]}
            expected.append(json.dumps(values, ensure_ascii=False) + "\n")
    assert run(source, "--to", "alpaca", "--out", out).exit_code == 0
    assert out.read_bytes() == "".join(expected).encode()
    assert facts(out) == facts(source)


def test_messages_and_csv(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "t", "category": "['a', 'b']", "output": "b"}])
    run(source, "--to", "messages", "--out", tmp_path / "m.jsonl")
    assert json.loads((tmp_path / "m.jsonl").read_text(encoding="utf-8")) == {
        "messages": [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": "文本:t,类型选型:['a', 'b']"},
            {"role": "assistant", "content": "b"},
        ]
    }
    run(source, "--to", "csv", "--out", tmp_path / "c.csv")
    with open(tmp_path / "c.csv", encoding="utf-8", newline="") as handle:
        assert list(csv.reader(handle)) == [["text", "category", "output"], ["t", "['a', 'b']", "b"]]


def test_rows_without_candidates_get_all_labels(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("content,label\nx,b\ny,a\n")
    for to, name in (("alpaca", "o.jsonl"), ("messages", "m.jsonl"), ("csv", "c.csv")):
        run(source, "--to", to, "--out", tmp_path / name)
        assert [e[2] for e in facts(tmp_path / name)] == [("b", "a")] * 2
    own = write(
        tmp_path / "own.jsonl", [{"text": str(i), "category": ["a", x], "output": x} for i, x in enumerate("bc")]
    )
    run(own, "--to", "alpaca", "--out", tmp_path / "all.jsonl", "--candidates", "all")
    assert [e[2] for e in facts(tmp_path / "all.jsonl")] == [("a", "b", "c")] * 2


def test_bad_rows_stop_and_leave_nothing(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "t", "label": "a"}, {"text": "", "label": "a"}])
    result = run(source, "--to", "alpaca", "--out", tmp_path / "o.jsonl")
    assert isinstance(result.exception, DataError)
    assert "in.jsonl:2: column 'text': the text is empty" in str(result.exception)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl"]


def test_bad_rows_skipped(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "t", "label": "a"}, {"text": "", "label": "a"}])
    out = tmp_path / "sub" / "o.jsonl"
    out.parent.mkdir()
    result = run(source, "--to", "alpaca", "--out", out, "--on-bad-row", "skip")
    assert "2 rows read, 1 written, 1 rejected (see " in result.output
    assert json.loads((out.parent / "rejected.jsonl").read_text())["source"].endswith("in.jsonl:2")


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("alpaca", "in.jsonl", "is the input itself"),
        ("alpaca", "link.jsonl", "is the input itself"),
        ("alpaca", "old.jsonl", "exists already.*--force"),
        ("alpaca", "o.csv", r"alpaca is written to a file that ends in \.jsonl"),
        ("csv", "o.jsonl", r"csv is written to a file that ends in \.csv"),
        ("alpaca", "none/o.jsonl", "does not exist"),
        ("alpaca", "folder", "is a folder"),
        ("alpaca", "rejected.jsonl", "kept for rejected rows"),
    ],
)
def test_out_is_checked_before_anything_is_written(tmp_path, to, name, message):
    source = write(tmp_path / "in.jsonl", [{"text": "t", "label": "a"}])
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "old.jsonl").write_text("old")
    (tmp_path / "folder").mkdir()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    force = ["--force"] if name in ("in.jsonl", "link.jsonl") else []
    result = run(source, "--to", to, "--out", tmp_path / name, *force)
    with pytest.raises(DataError, match=message):
        raise result.exception
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_out_inside_the_input_folder(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "t", "label": "a"}])
    result = run(tmp_path, "--to", "alpaca", "--out", source, "--force")
    assert "is the input itself" in str(result.exception)


def test_force_replaces(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "t", "label": "a"}])
    (tmp_path / "o.jsonl").write_text("old")
    assert run(source, "--to", "alpaca", "--out", tmp_path / "o.jsonl", "--force").exit_code == 0
    assert "instruction" in (tmp_path / "o.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_fault_while_writing_leaves_the_old_file(tmp_path, monkeypatch, fault):
    source = write(tmp_path / "in.jsonl", [{"text": str(i), "label": "a"} for i in range(5)])
    out = tmp_path / "o.jsonl"
    out.write_text("old")
    real, calls = convert_module.alpaca_row, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise fault
        return real(*args)

    monkeypatch.setattr(convert_module, "alpaca_row", failing)
    with pytest.raises((DataError, KeyboardInterrupt)):
        convert_module.convert_file(str(source), out, "alpaca", DataConfig(), force=True)
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "o.jsonl"]


def test_nul_cannot_go_to_csv(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "a\0b", "label": "a"}])
    result = run(source, "--to", "csv", "--out", tmp_path / "o.csv")
    assert "in.jsonl:1: holds a NUL character, which CSV cannot keep" in str(result.exception)
    assert not (tmp_path / "o.csv").exists()
    assert run(source, "--to", "alpaca", "--out", tmp_path / "o.jsonl").exit_code == 0
    assert facts(tmp_path / "o.jsonl")[0][0] == "a\0b"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "t", "label": "a"}\n{"text": ', r"a\.jsonl:2: invalid JSON at column 10"),
        ("a.jsonl", '{"text": "财", "label": "a"}'.encode()[:11], r"a\.jsonl:1: byte 10 .*UTF-8.*data\.encoding"),
        ("a.json", b'[{"text": "t", "label": "a"},', r"a\.json:1: invalid JSON at column 30.*expected an array"),
        ("a.csv", b"text,label\nx\n", r"a\.csv:2: expected 2 fields \(text, label\), found 1"),
        ("a.csv", b"foo,bar\nx,y\n", r"a\.csv: no text column found among: 'foo', 'bar'.*data\.text_column"),
        ("a.tsv", b"text\tlabel\nx\t\n", r"a\.tsv:2: column 'label': the label is missing"),
        ("a.parquet", b"PAR1", r"a\.parquet: cannot be read as Parquet"),
        ("a.txt", b"x", r"a\.txt: expected a file that ends in"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "t"}]}', r"a\.jsonl:1: .*label is missing"),
        ("a.jsonl", b'{"instruction": "", "input": "", "output": "a"}', r"a\.jsonl:1: .*text is empty"),
        ("a.jsonl", b'{"text": "t", "label": "b", "candidates": "a, c"}', r"a\.jsonl:1: column 'label': label 'b'"),
    ],
)
def test_bad_input_of_every_kind_is_one_message_and_writes_nothing(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    result = run(tmp_path / name, "--to", "alpaca", "--out", tmp_path / "o.jsonl")
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 2
    with pytest.raises(DataError, match=f"(?s){message}"):
        raise result.exception
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_twin_labels_leave_no_rejected_file_either(tmp_path):
    rows = [{"text": "t", "label": "a"}, {"text": "t", "label": "A"}, {"text": "", "label": "a"}]
    source = write(tmp_path / "in.jsonl", rows)
    result = run(source, "--to", "alpaca", "--out", tmp_path / "o.jsonl", "--on-bad-row", "skip")
    assert "differ only in white space" in str(result.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_columns_can_be_named(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("a,b,c\nx,l,l|m\n")
    arguments = ["--text-column", "a", "--label-column", "b", "--candidates-column", "c"]
    run(source, "--to", "csv", "--out", tmp_path / "o.csv", *arguments)
    assert (tmp_path / "o.csv").read_text() == "text,category,output\nx,l|m,l\n"


def test_settings_that_messages_name_are_taken(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "t", "label": "a"}, {"text": "t", "label": "A"}, {"text": ""}])
    settings = ["data.aliases={A: a}", "data.on_bad_row=skip"]
    result = run(source, "--to", "alpaca", "--out", tmp_path / "o.jsonl", *settings)
    assert "3 rows read, 2 written, 1 rejected" in result.output
    assert [e[1] for e in facts(tmp_path / "o.jsonl")] == ["a", "a"]
    wrong = run(source, "--to", "alpaca", "--out", tmp_path / "p.jsonl", "data.alias=x")
    assert "did you mean 'data.aliases'" in str(wrong.exception)


def test_unknown_choices_are_usage_errors(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "t", "label": "a"}])
    for extra in (
        ["--to", "xml"],
        [],
        ["--to", "csv", "--prompt-preset", "zh"],
        ["--to", "csv", "--on-bad-row", "drop"],
    ):
        assert run(source, "--out", tmp_path / "o.csv", *extra).exit_code == 2


def test_command_line_ends_with_two_and_one_message(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "t", "label": "Sports"}, {"text": "u", "label": "sports"}])
    command = [
        sys.executable,
        "-m",
        "fenlei",
        "convert",
        str(source),
        "--to",
        "alpaca",
        "--out",
        str(tmp_path / "o.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 2
    assert "'Sports' (1 times" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.jsonl").exists()
