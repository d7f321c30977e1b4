from __future__ import annotations

import codecs
import gzip
import json

import pytest

from fenlei.config import DataConfig
from fenlei.data import encodings, read_examples
from fenlei.data.encodings import detect_encoding, open_text
from fenlei.errors import DataError

ROWS = [
    {"text": "联通公司今日发布财报，一季度净利润增长", "label": "财经"},
    {"text": "国足三比〇胜出 \u3000一一\u2028行分隔符之后", "label": "体育"},
    {"text": "只有中文没有别的内容的一段很长的文字" * 20, "label": "财经"},
]
CONTENT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("codec", "mark", "found"),
    [
        ("utf-8", b"", "utf-8"),
        ("utf-8", codecs.BOM_UTF8, "utf-8-sig"),
        ("gb18030", b"", "gb18030"),
        ("utf-16-le", codecs.BOM_UTF16_LE, "utf-16"),
        ("utf-16-be", codecs.BOM_UTF16_BE, "utf-16"),
        ("utf-16-le", b"", "utf-16-le"),
        ("utf-16-be", b"", "utf-16-be"),
        ("utf-32-le", codecs.BOM_UTF32_LE, "utf-32"),
        ("utf-32-be", codecs.BOM_UTF32_BE, "utf-32"),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_each_encoding_gives_the_same_rows(tmp_path, codec, mark, found, ends):
    path = tmp_path / "a.jsonl"
    path.write_bytes(mark + CONTENT.replace("\n", ends).encode(codec))
    assert detect_encoding(path) == found
    examples = read_examples(path, DataConfig()).examples
    assert [{"text": e.text, "label": e.label} for e in examples] == ROWS


@pytest.mark.parametrize("codec", ["utf-8", "gb18030", "utf-8-sig", "utf-16"])
def test_csv_header_carries_no_mark(tmp_path, codec):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\n今日股市,财经\n".encode(codec))
    assert read_examples(path, DataConfig()).columns.text == "text"
    if codec == "utf-8-sig":  # the user's "utf-8" means this file all the same
        assert read_examples(path, DataConfig(encoding="utf-8")).columns.text == "text"


@pytest.mark.parametrize("codec", ["gb18030", "utf-8"])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_first_chinese_character_late_and_across_a_block(tmp_path, codec, offset):
    path = tmp_path / "a.csv"
    head = "text,label\n"
    body = "plain ascii text,a\n" * (encodings.BLOCK // 19 - 3)
    pad = "x" * (encodings.BLOCK - len(head) - len(body) + offset) + "中文,b\n"
    path.write_bytes((head + body + pad).encode(codec))
    assert detect_encoding(path) == codec
    assert read_examples(path, DataConfig()).examples[-1].text.endswith("x中文")


def test_only_looking_at_the_start_would_fail(tmp_path, monkeypatch):
    """Negative control for the test above: with detection cut to the head, reading breaks."""
    path = tmp_path / "a.csv"
    path.write_bytes(("text,label\n" + "ascii,a\n" * 200_000 + "中文,b\n").encode("gb18030"))
    whole = encodings._blocks

    def head_only(file):
        yield next(whole(file))
        yield b""

    monkeypatch.setattr(encodings, "_blocks", head_only)
    with pytest.raises(UnicodeDecodeError), open_text(path) as handle:
        handle.read()


def test_damaged_utf8_is_named_not_read_as_gb18030(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    good = CONTENT.encode()
    at = good.index("财经".encode()) + 1
    path.write_bytes(good[:at] + good[at + 1 :])  # one byte lost in line 1
    with pytest.raises(DataError, match=rf"a\.jsonl:1: byte {at - 1} .*the file is damaged"):
        detect_encoding(path)
    path.write_bytes(good + "财".encode()[:2])  # cut off
    with pytest.raises(DataError, match=rf"a\.jsonl:4: byte {len(good)} .*the file is damaged"):
        detect_encoding(path)
    # negative control: without the guard a damaged file can pass as GB18030 with wrong characters
    path.write_bytes("新".encode() * 6 + b"\xe6\x96" + b"\n")
    with pytest.raises(DataError, match="damaged"):
        detect_encoding(path)
    monkeypatch.setattr(encodings, "_mostly_utf8", lambda sample: False)
    assert detect_encoding(path) == "gb18030"


def test_nothing_fits_names_place_and_what_was_tried(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\nok,a\n\xff\xff\xff\xfe\x80\x80,b\n")
    with pytest.raises(DataError) as caught:
        detect_encoding(path)
    message = str(caught.value)
    assert "a.csv:3: byte 16" in message
    assert "utf-8" in message
    assert "gb18030" in message
    assert "data.encoding" in message


def test_big5_is_read_when_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\n今日股市大漲，投資人樂觀,財經\n".encode("big5"))
    assert read_examples(path, DataConfig(encoding="big5")).examples[0].label == "財經"


def test_wrong_encoding_setting(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT.encode("gb18030"))
    with pytest.raises(DataError, match=r"a\.jsonl:1: byte \d+ cannot be decoded as utf-8 .*reads well as gb18030"):
        read_examples(path, DataConfig(encoding="utf-8"))
    for name in ("utf8000", "base64", "rot13"):
        with pytest.raises(DataError, match=f"unknown encoding '{name}'"):
            read_examples(path, DataConfig(encoding=name))


@pytest.mark.parametrize("content", [b"\x00" * 50, bytes(range(256)) * 20, b"PK\x03\x04" + b"\x00\x01" * 99])
def test_binary_file_is_refused(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.csv:\d+: NUL byte at offset \d+"):
        read_examples(path, DataConfig())


def test_truncated_utf16_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT.encode("utf-16")[:-1])
    with pytest.raises(DataError, match=r"a\.jsonl:3: byte \d+ cannot be decoded as utf-16-le"):
        read_examples(path, DataConfig())


def test_gzip_is_unpacked_and_a_cut_one_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(CONTENT.encode("gb18030"))
    path.write_bytes(packed)
    assert len(read_examples(path, DataConfig()).examples) == 3
    for content in (packed[: len(packed) // 2], b"no gzip at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read"):
            read_examples(path, DataConfig())


def test_memory_stays_constant(tmp_path):
    import tracemalloc

    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"a" * 80 + b'"}\n' * 1)
    line = path.read_bytes()
    path.write_bytes(line * 250_000)  # 23 MB
    from fenlei.data import iter_rows

    tracemalloc.start()
    count = sum(1 for _ in iter_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 250_000
    assert peak < 8e6
