from __future__ import annotations

import ast
import time

import pytest

from fenlei.config import DataConfig
from fenlei.data import Columns, detect_columns, to_example
from fenlei.data.forms import parse_candidates, split_tutorial_input, tutorial_input
from fenlei.errors import DataError


def detect(*rows, need_label=True, **settings):
    return detect_columns(rows, DataConfig(**settings), need_label, "f")


def example(row, need_label=True, **settings):
    columns = detect(row, need_label=need_label, **settings)
    return to_example(row, columns, "f:1", 1, need_label=need_label)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "t", "category": ["a", "b"], "output": "a"}, Columns("text", "output", "category", None)),
        ({"text": "t", "category": "['a', 'b']", "output": "a"}, Columns("text", "output", "category", None)),
        ({"text": "t", "category": "Sports, Politics", "output": "x"}, Columns("text", "output", "category", None)),
        ({"text": "t", "category": "a"}, Columns("text", "category", None, None)),
        ({"content": "t", "label": 1, "category": "Sports"}, Columns("content", "label", None, None)),
        ({"sentence": "t", "label": 0, "label_text": "neg"}, Columns("sentence", "label_text", None, None)),
        ({"ID": 7, "Text": "t", "Label": "a"}, Columns("Text", "Label", None, "ID")),
        ({"内容": "t", "类别": "a"}, Columns("内容", "类别", None, None)),
        ({"text": "t", "label": "a", "candidates": None}, Columns("text", "label", "candidates", None)),
        ({"text": "t", "label": "a", "choices": ["a", "b"]}, Columns("text", "label", "choices", None)),
        ({"input": "t", "output": "a"}, Columns("input", "output", None, None)),
        ({"instruction": "i", "input": "t", "output": "a"}, Columns("input", "output", None, None, "alpaca")),
        (
            {"instruction": "i", "input": "t", "output": "a", "text": "i t a"},
            Columns("input", "output", None, None, "alpaca"),
        ),
        (
            {"messages": [{"role": "user", "content": "t"}]},
            Columns("messages", "messages", None, None, "messages"),
        ),
    ],
)
def test_detection(row, expected):
    assert detect(row) == expected


def test_detection_by_names_alone():
    columns = detect_columns(["text", "category", "output"], DataConfig(), True, "f")
    assert columns == Columns("text", "output", "category", None)


def test_rows_without_labels():
    assert detect({"text": "t", "category": ["a"]}, need_label=False) == Columns("text", None, "category", None)
    assert detect({"text": "t", "category": "a, b"}, need_label=False) == Columns("text", None, "category", None)
    assert detect({"text": "t", "category": "a, b"}) == Columns("text", "category", None, None)
    assert detect({"text": "t"}, need_label=False, label_column="gone", candidates_column="gone").label is None
    with pytest.raises(DataError, match="f: no label column found among: 'text', 'category'"):
        detect({"text": "t", "category": ["a"]})


def test_settings_win_and_must_exist():
    row = {"text": "t", "body": "b", "output": "x", "kind": "a", "opts": "a|b", "nr": 5}
    columns = detect(row, text_column="body", label_column="kind", candidates_column="opts", id_column="nr")
    assert columns == Columns("body", "kind", "opts", "nr")
    for setting in ("text_column", "label_column", "candidates_column", "id_column"):
        with pytest.raises(DataError, match=rf"f: no column 'outptu' \(data\.{setting}\); did you mean 'output'\?"):
            detect(row, **{setting: "outptu"})
    with pytest.raises(DataError, match="no text column found among: 'a', 'b'.*data.text_column"):
        detect({"a": 1, "b": 2})


def test_one_odd_row_does_not_hide_the_label_column():
    rows = [{"text": "t", "output": "a"}, {"text": "t", "output": ["a"]}, {"text": "t", "output": "b"}]
    assert detect(*rows).label == "output"


@pytest.mark.parametrize(
    ("value", "names", "verbatim"),
    [
        (["a", "b"], ("a", "b"), None),
        (["a", "b", "a"], ("a", "b"), None),
        ([1, True], ("1", "true"), None),
        ("['Military', 'Space']", ("Military", "Space"), "['Military', 'Space']"),
        ("('a', 'b')", ("a", "b"), "('a', 'b')"),
        ('["a", "b"]', ("a", "b"), None),
        ('["a","b"]', ("a", "b"), '["a","b"]'),
        ("Sports, Politics", ("Sports", "Politics"), "Sports, Politics"),
        ("体育，财经、科技;军事；教育|历史", ("体育", "财经", "科技", "军事", "教育", "历史"), None),
        ("(体育),财经", ("(体育)", "财经"), "(体育),财经"),
        ("Sports", ("Sports",), "Sports"),
        (None, None, None),
        ("", None, None),
        ([], None, None),
        (float("nan"), None, None),
        (" , ", None, None),
    ],
)
def test_candidates(value, names, verbatim):
    found, text = parse_candidates(value, "c")
    assert found == names
    if verbatim or not isinstance(value, str):
        assert text == verbatim


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, 7, "[Military, Space]", "['a', {}]", [["a"]], ["a", None], ["a", " "], "[" * 5000 + "]" * 5000],
)
def test_bad_candidates(value):
    with pytest.raises(DataError, match="column 'c'"):
        parse_candidates(value, "c")


def test_list_strings_run_nothing(tmp_path):
    canary = tmp_path / "canary"
    for text in (f"[open({str(canary)!r}, 'w')]", f"[__import__('pathlib').Path({str(canary)!r}).touch()]"):
        assert isinstance(ast.parse(text, mode="eval").body.elts[0], ast.Call)  # it is code
        with pytest.raises(DataError):
            parse_candidates(text, "c")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("value", "label"),
    [("a", "a"), (" a ", " a "), (1, "1"), (1.0, "1"), (1.5, "1.5"), (True, "true"), (False, "false")],
)
def test_labels_become_text(value, label):
    assert example({"text": "t", "label": value}).label == label


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "", "label": "a"}, "column 'text': the text is empty"),
        ({"text": " \n\u3000", "label": "a"}, "column 'text': the text is empty"),
        ({"text": None, "label": "a"}, "column 'text': the text is missing"),
        ({"text": {"x": 1}, "label": "a"}, "column 'text': expected a text, found an object"),
        ({"text": 5, "label": "a"}, "column 'text': expected a text, found int 5"),
        ({"label": "a"}, "column 'text' is missing"),
        ({"text": "t"}, "column 'label': the label is missing"),
        ({"text": "t", "label": ""}, "column 'label': the label is missing"),
        ({"text": "t", "label": float("nan")}, "column 'label': the label is missing"),
        ({"text": "t", "label": ["a"]}, "column 'label': expected one label"),
        ({"text": "t", "label": "a", "candidates": ["b", "c"]}, "'a' is not among the row's candidates: b, c"),
        ({"text": "t", "label": "a", "id": {}}, "column 'id': expected an id"),
    ],
)
def test_bad_rows(row, reason):
    columns = Columns("text", "label", "candidates", "id")
    with pytest.raises(DataError) as caught:
        to_example(row, columns, "f:1", 1, need_label=True)
    assert reason in str(caught.value)


def test_example_parts():
    row = {"id": 17, "text": "t", "category": "a、b", "output": "b", "url": "u", "n": None}
    found = example(row)
    assert (found.text, found.label, found.candidates, found.candidates_text) == ("t", "b", ("a", "b"), "a、b")
    assert (found.id, found.source, found.extra) == ("17", "f:1", {"url": "u", "n": None})
    assert example({"text": "t", "label": "b"}).id == "1"
    assert example({"text": "t", "label": ["odd"]}, need_label=False).label is None


def test_aliases_reach_label_and_candidates():
    row = {"text": "t", "category": "sport, Politics", "output": "sport"}
    found = to_example(row, detect(row), "f:1", 1, need_label=True, aliases={"sport": "Sports"})
    assert (found.label, found.candidates, found.candidates_text) == ("Sports", ("Sports", "Politics"), None)


ALPACA = {"instruction": "判断类型", "input": "", "output": "a"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("news", "news"),
        ("", "判断类型"),
        (None, "判断类型"),
        ("文本:news", "文本:news"),
        ("文本:n,类型选型:", "文本:n,类型选型:"),
    ],
)
def test_alpaca_without_the_tutorials_form(given, text):
    found = example({**ALPACA, "input": given})
    assert (found.text, found.label, found.candidates, found.extra) == (text, "a", None, {})


def test_alpaca_with_the_tutorials_form():
    found = example({**ALPACA, "input": "文本:news,类型选型:['a', 'b']"})
    assert (found.text, found.candidates, found.candidates_text) == ("news", ("a", "b"), None)
    found = example({**ALPACA, "input": "文本:news,类型选型:b, a"})
    assert (found.text, found.candidates, found.candidates_text) == ("news", ("b", "a"), "b, a")
    with pytest.raises(DataError, match="'z' is not among the row's candidates"):
        example({**ALPACA, "input": "文本:news,类型选型:['a', 'b']", "output": "z"})


@pytest.mark.parametrize(
    ("who", "what", "user", "bot"), [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")]
)
def test_messages(who, what, user, bot):
    key = "messages" if who == "role" else "conversations"
    turns = [("system", "s"), (user, "first"), (bot, "x"), (user, "文本:last,类型选型:a|b"), (bot, "b")]
    row = {key: [{who: role, what: content} for role, content in turns]}
    found = example(row)
    assert (found.text, found.label, found.candidates, found.candidates_text) == ("last", "b", ("a", "b"), "a|b")
    unanswered = {key: row[key][:-1]}
    assert example(unanswered, need_label=False).label is None
    with pytest.raises(DataError, match="label is missing"):
        example(unanswered)
    with pytest.raises(DataError, match="no user turn among 1 turns"):
        example({key: row[key][:1]})
    parts = {key: [{who: user, what: [{"type": "text", "text": "in parts"}]}, {who: bot, what: "b"}]}
    assert example(parts).text == "in parts"
    with pytest.raises(DataError, match="content must be text"):
        example({key: [{who: user, what: 5}]})
    with pytest.raises(DataError, match="expected a list of turns"):
        to_example({key: ["hi"]}, detect(row), "f:1", 1, need_label=True)


TEXTS = [
    "plain",
    "a,类型选型:['x', 'y']",
    ",类型选型:",
    "a,类型选型:b,类型选型:Sports",
    "文本:文本:",
    "t,类型选型:['Sports', 'b']",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("candidates", "verbatim"),
    [
        (("Sports", "Politics"), None),
        (("Sports", "a,b", "it's", 'q"', "x,类型选型:y"), None),
        (("Sports", "Politics"), "Sports, Politics"),
        (("Politics", "Sports"), " Politics、Sports "),
    ],
)
def test_tutorial_form_is_taken_apart_again(text, candidates, verbatim):
    packed = tutorial_input(text, candidates, verbatim)
    assert split_tutorial_input(packed, "Sports") == (text, candidates, verbatim)


def test_cutting_at_the_last_mark_alone_would_fail():
    """Negative control: a candidate may hold the mark, so the last one is not always right."""
    packed = tutorial_input("t", ("Sports", "x,类型选型:y"), None)
    assert packed.rpartition(",类型选型:")[0] != "文本:t"


def test_many_marks_take_no_time():
    started = time.perf_counter()
    split_tutorial_input("文本:" + ",类型选型:" * 100_000, None)
    assert time.perf_counter() - started < 2
