"""``fenlei check`` from the command line: what it prints, writes and ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from fenlei.cli import main
from fenlei.cli.check import token_measure
from fenlei.config import RunConfig
from fenlei.data import Example, LabelSet
from fenlei.data.checks import check_data
from fenlei.data.checks.page import render_page
from fenlei.errors import ConfigError
from fenlei.prompting import PromptEncoder
from tests.data.checks.clean import LABELS, clean_rows, write
from tests.data_dir import shared_data

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def fenlei(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*args, model=False) -> tuple[int, str, str]:
        nowhere = () if model else (f"model.cache_dir={tmp_path / 'no-models'}",)
        monkeypatch.setattr(sys, "argv", ["fenlei", "check", *map(str, args), *nowhere])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.fixture
def files(tmp_path):
    train, test = clean_rows(), clean_rows(30, seed=1)
    test[3]["text"] = train[3]["text"]
    train[9]["text"] = "国足今晚<br>迎战韩国队"
    write(tmp_path / "test.jsonl", test)
    return write(tmp_path / "train.jsonl", train)


def test_clean_data(fenlei, tmp_path):
    write(tmp_path / "train.jsonl", clean_rows())
    code, out, err = fenlei("train.jsonl", "--strict")
    assert (code, err) == (0, "")
    assert "0 errors, 0 warnings, 0 notes" in out
    assert "token lengths: need the model's tokenizer; --model" in out


def test_findings_are_printed_and_written(fenlei, files):
    code, out, _ = fenlei("train.jsonl", "--test", "test.jsonl", "--json", "c.json", "--html", "c.html")
    assert code == 0
    assert "ERROR test: rows whose text train has too" in out
    assert "1 of 30 rows (3.33%) [leak-exact-train]" in out
    assert "test.jsonl:4  " in out
    assert "WARNING train: texts with HTML tags" in out
    assert "  -> Strip them" in out
    assert out.index("ERROR") < out.index("WARNING")
    assert "1 error, 1 warning, 0 notes" in out
    report = json.loads((files.parent / "c.json").read_text("utf-8"))
    assert [f["code"] for f in report["findings"]] == ["leak-exact-train", "text-html"]
    assert report["splits"][0]["labels"] == dict.fromkeys(LABELS, 40)
    assert "leak-exact-train" in (files.parent / "c.html").read_text("utf-8")


def test_strict_fails_on_errors_only(fenlei, files):
    assert fenlei("train.jsonl", "--test", "test.jsonl", "--strict")[0] == 2
    assert fenlei("train.jsonl", "--strict")[0] == 0


def test_settings(fenlei, files, tmp_path):
    code, out, _ = fenlei("train.jsonl", "check.min_class_rows=50", "data.candidates=all")
    assert code == 0
    assert "[label-rare]" in out
    code, _, err = fenlei("train.jsonl", "check.min_clas_rows=50")
    assert (code, "did you mean check.min_class_rows?" in err) == (2, True)
    code, _, err = fenlei("train.jsonl", "check.min_class_rows=few")
    assert (code, "found 'few'" in err) == (2, True)
    code, _, err = fenlei("train.jsonl", "data.nothing=1")
    assert (code, "data.nothing" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["none.jsonl"], "no such file"),
        (["train.jsonl", "--test", "none.jsonl"], "no such file"),
        (["train.jsonl", "--json", "no/c.json"], "does not exist"),
        (["train.jsonl", "--html", "."], "is a folder"),
        (["train.jsonl", "--json", "train.jsonl"], "would be overwritten"),
        (["train.jsonl", "--model", "qwen2.5-coder-0.5b"], "fenlei models pull"),
        (["train.jsonl", "--model", "./nowhere"], "nowhere"),
        (["train.jsonl", "data.text_column=body"], "body"),
    ],
)
def test_mistakes_end_with_2(fenlei, files, args, says):
    before = files.read_bytes()
    code, out, err = fenlei(*args)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert files.read_bytes() == before


def test_control_characters_do_not_reach_the_terminal(fenlei, tmp_path):
    rows = clean_rows()
    rows[0]["text"] = "国足\x1b[31m今晚\u202e迎战[bold]韩国队[/bold]"
    rows[1]["label"] = "\x1b[31m财经\n"
    write(tmp_path / "train.jsonl", rows)
    _, out, _ = fenlei("train.jsonl")
    assert "国足\\x1b[31m今晚\\u202e迎战[bold]韩国队[/bold]" in out
    assert "\\x1b[31m财经\\x0a 1" in out
    assert "\x1b" not in out


def test_a_file_name_that_is_no_utf8(fenlei, tmp_path):
    import os

    name = os.fsdecode("训练\udcff".encode("utf-8", "surrogateescape") + b".jsonl")
    rows = clean_rows()
    rows[0]["text"] = ""
    try:
        source = write(tmp_path / name, rows)
    except OSError:
        pytest.skip("this file system has no such names")
    code, out, err = fenlei(source, "--json", "c.json", "--html", "c.html")
    assert code == 0, err
    assert ".jsonl:1" in out


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def parsed(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    return parser


def test_nothing_in_the_data_becomes_markup(fenlei, tmp_path):
    folder = tmp_path / EVIL.replace("/", "")
    folder.mkdir()
    rows = clean_rows()
    for row in rows[:40:3]:
        row["label"] = f"{EVIL}'\""
    rows[0]["text"] = rows[3]["text"] = f"国足{EVIL}</script><script>alert(1)</script>"
    rows[1]["label"] = f"{EVIL} '\""
    source = write(folder / "train.jsonl", rows)
    code, _, err = fenlei(source, "--html", "c.html")
    assert code == 0, err
    raw = (tmp_path / "c.html").read_text("utf-8")
    page = parsed(raw)
    assert {"img", "script", "iframe", "link", "a"}.isdisjoint(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert EVIL in page.text  # shown as it is
    assert "://" not in raw
    assert "default-src 'none'" in raw
    plain = parsed(render_page(check_data(write(tmp_path / "clean.jsonl", clean_rows()))))
    assert set(page.tags) - set(plain.tags) <= {"article", "h3", "span", "ul", "li", "code", "br"}


def test_token_lengths_are_those_of_the_real_prompts(fenlei, files, tiny_folder, tokenizer, tmp_path):
    config = RunConfig.build({"prompt": {"max_length": 280}})
    rows = [
        Example(row["text"] * (1 + i % 3), row["label"], LABELS[: 2 + i % 2]) for i, row in enumerate(clean_rows(60))
    ]
    found = token_measure(tiny_folder, config, LabelSet(LABELS))(rows)
    encoder = PromptEncoder(tokenizer, config.prompt, LabelSet(LABELS))
    real = [encoder.encode_example(row).truncated for row in rows]
    assert 0 < sum(real) < len(real)
    assert (found.prompt > found.max_length).tolist() == real
    # at the length that a row is said to need it stays whole, at one less it does not
    for row, needed in list(zip(rows, found.prompt, strict=True))[:6]:
        for length, cut in ((int(needed), False), (int(needed) - 1, True)):
            exact = PromptEncoder(tokenizer, config.prompt.model_copy(update={"max_length": length}), LabelSet(LABELS))
            assert exact.encode_example(row).truncated is cut
    with pytest.raises(ConfigError, match="leaves no room"):
        token_measure(tiny_folder, RunConfig.build({"prompt": {"max_length": 20}}), LabelSet(LABELS))(rows)

    code, out, err = fenlei(
        "train.jsonl", "--model", tiny_folder, "prompt.max_length=200", "--json", "c.json", model=True
    )
    assert code == 0, err
    assert "[text-shortened]" in out
    tokens = json.loads((tmp_path / "c.json").read_text("utf-8"))["splits"][0]["tokens"]
    assert tokens["rows"] == tokens["of"] == 120
    assert 0 < tokens["shortened"] < 1
    code, out, _ = fenlei("train.jsonl", "--model", tiny_folder, "prompt.max_length=20", "--strict", model=True)
    assert (code, "[prompt-refused]" in out) == (2, True)
    code, out, _ = fenlei("train.jsonl", "--model", tiny_folder, "check.token_sample=100", model=True)
    assert "a seeded sample of 100 of 120 rows" in out


def test_labels_that_must_be_mended_first_do_not_hide_the_rest(fenlei, tmp_path, tiny_folder):
    rows = clean_rows()
    rows[0]["label"] = "体 育"
    write(tmp_path / "train.jsonl", rows)
    code, out, err = fenlei("train.jsonl", "--model", tiny_folder, model=True)
    assert code == 0, err
    assert "[label-variant]" in out
    assert "the labels must be mended first" in out


@pytest.mark.parametrize("name", ["fudan-news", "thucnews-titles"])
def test_real_data_have_no_errors(name):
    report = check_data(shared_data(f"{name}/train.jsonl"), test=shared_data(f"{name}/test.jsonl"))
    assert report.of("error") == []
    found = {(f.code, f.split): f.count for f in report.findings}
    if name == "fudan-news":  # looked at by hand: calls for papers and articles that were reprinted
        assert found[("leak-near-train", "test")] == 3
        assert found[("duplicate-near", "train")] == 5
        assert ("label-rare", "train") not in found
    else:
        assert found == {
            ("text-html", "train"): 2,
            ("text-replacement", "train"): 8,
            ("text-replacement", "test"): 3,
        }


def million(path) -> None:
    """A million titles of 20 words of one to three characters, some of them copied or edited."""
    generator = np.random.default_rng(0)
    words = [
        "".join(chr(c) for c in generator.integers(0x4E00, 0x59B8, size)) for size in generator.integers(1, 4, 20_000)
    ]
    with path.open("w", encoding="utf-8") as handle:
        for start in range(0, 1_000_000, 10_000):
            for i, row in enumerate(generator.integers(0, len(words), (10_000, 11))):
                text = "".join(words[j] for j in row)
                handle.write(f'{{"text": "{text}", "label": "类别{(start + i) % 14}"}}\n')
                if i % 100 == 0:
                    handle.write(f'{{"text": "{text[:9]}  {text[9:]} ", "label": "类别{(start + i) % 14}"}}\n')
                    handle.write(f'{{"text": "{text}（组图）", "label": "类别{(start + i) % 14}"}}\n')


@pytest.mark.soak
def test_a_million_rows(tmp_path, capsys):
    million(tmp_path / "train.jsonl")
    code = (
        "import resource, sys, time\n"
        "from fenlei.data.checks import check_data\n"
        "start = time.monotonic(), time.process_time()\n"
        "report = check_data(sys.argv[1])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6\n"
        "print(time.monotonic() - start[0], time.process_time() - start[1], used)\n"
        "print({f.code: f.count for f in report.findings})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "train.jsonl"], capture_output=True, text=True, check=True
    )
    figures, found = done.stdout.splitlines()
    seconds, cpu, gigabytes = map(float, figures.split())
    with capsys.disabled():
        print(f"\n1,020,000 rows: {seconds:.1f} s, {cpu:.1f} s of CPU, {gigabytes:.2f} GB; {found}")
    assert gigabytes < 2
    assert cpu < 60  # of one core; the clock of a busy machine says nothing
    assert "'duplicate-exact': 10000" in found
    assert json.loads(found.replace("'", '"'))["duplicate-near"] >= 9_900
