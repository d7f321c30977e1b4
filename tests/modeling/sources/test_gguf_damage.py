"""A damaged or hostile GGUF file ends in one clear message: never a crash, never endless memory, never half a model."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from fenlei.errors import ModelError
from fenlei.modeling.sources import gguf_file
from fenlei.modeling.sources.gguf_convert import convert_gguf
from fenlei.modeling.sources.gguf_file import read_gguf
from tests.modeling.sources.tiny import tiny_model, write_gguf

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def u64(value):
    return value.to_bytes(8, "little")


def u32(value):
    return value.to_bytes(4, "little")


def text(value):
    return u64(len(value)) + value.encode()


def mutated(data, rng):
    """One to eight changes, mostly in the header, as a bad disk or a fuzzer makes them."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data)) if rng.random() < 0.1 else rng.randrange(min(len(data), 12_000))
        how = rng.random()
        if how < 0.4:
            data[at] ^= 1 << rng.randrange(8)
        elif how < 0.6:
            data[at] = rng.choice(INTERESTING)
        elif how < 0.8:
            value = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.getrandbits(64)))
            data[at : at + 8] = u64(value)
        elif how < 0.9:
            del data[at : at + rng.randint(1, 64)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 64))
    return bytes(data)


@pytest.fixture(scope="module")
def whole(tiny_gguf):
    return tiny_gguf.read_bytes()


def fail(error):
    raise AssertionError(f"the message does not name the file: {error}")


def attempt(path, out):
    """Converts; a ModelError that names the file is fine, anything else is a fault."""
    try:
        convert_gguf(path, out)
    except ModelError as error:
        return str(path) not in str(error) and fail(error)
    return True


def test_mutations(whole, tmp_path):
    rng = random.Random(1)
    path = tmp_path / "m.gguf"
    refused = 0
    for _ in range(200):
        path.write_bytes(mutated(whole, rng))
        refused += not attempt(path, tmp_path)
    assert refused > 100  # the mutations do hit what is checked


def test_truncations(whole, tmp_path):
    path = tmp_path / "m.gguf"
    lengths = [*range(0, 300, 7), *range(300, len(whole), len(whole) // 60), len(whole) - 1]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_gguf(path)


def test_without_the_check_a_cut_file_is_taken(whole, tmp_path, monkeypatch):
    """Control: the comparison with the file's size is what refuses it."""
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:-4000])
    monkeypatch.setattr(gguf_file._Parser, "_place", lambda self, raw, start, _: {r[0]: r for r in raw})
    assert read_gguf(path).tensors


HEAD = b"GGUF" + u32(3)
ARCH = text("general.architecture") + u32(8) + text("qwen2")
SAME_PLACE = u32(1) + u64(4) + u32(0) + u64(0)
BAD = {
    "empty": b"",
    "another kind of file": b"PK\x03\x04" + bytes(100),
    "version 1": b"GGUF" + u32(1) + bytes(100),
    "big endian": b"GGUF" + (3).to_bytes(4, "big") + bytes(100),
    "2**60 tensors": HEAD + u64(2**60) + u64(1) + ARCH + bytes(100),
    "2**60 pairs": HEAD + u64(1) + u64(2**60) + ARCH + bytes(100),
    "2**60 strings": HEAD + u64(1) + u64(1) + text("k") + u32(9) + u32(8) + u64(2**60) + bytes(100),
    "2**62 numbers": HEAD + u64(1) + u64(1) + text("k") + u32(9) + u32(4) + u64(2**62) + bytes(100),
    "array of arrays": HEAD + u64(1) + u64(1) + text("k") + (u32(9) + u64(1)) * 50 + bytes(100),
    "long text": HEAD + u64(1) + u64(1) + text("k") + u32(8) + u64(2**63) + bytes(100),
    "long key": HEAD + u64(1) + u64(1) + u64(2**40) + bytes(100),
    "twice": HEAD + u64(1) + u64(2) + ARCH + ARCH + bytes(100),
    "no architecture": HEAD + u64(1) + u64(1) + text("k") + u32(4) + u32(1) + bytes(100),
    "split": HEAD + u64(1) + u64(2) + ARCH + text("split.count") + u32(4) + u32(3) + bytes(100),
    "alignment": HEAD + u64(1) + u64(2) + ARCH + text("general.alignment") + u32(4) + u32(0) + bytes(100),
    "dimensions": HEAD + u64(1) + u64(1) + ARCH + text("t") + u32(2**31) + bytes(100),
    "overflow": HEAD + u64(1) + u64(1) + ARCH + text("t") + u32(2) + u64(2**33) * 2 + u32(0) + u64(0) + bytes(99),
    "zero shape": HEAD + u64(1) + u64(1) + ARCH + text("t") + u32(1) + u64(0) + u32(0) + u64(0) + bytes(99),
    "unknown type": HEAD + u64(1) + u64(1) + ARCH + text("t") + u32(1) + u64(1) + u32(999) + u64(0) + bytes(99),
    "half a block": HEAD + u64(1) + u64(1) + ARCH + text("t") + u32(1) + u64(33) + u32(8) + u64(0) + bytes(99),
    "outside": HEAD + u64(1) + u64(1) + ARCH + text("t") + u32(1) + u64(4) + u32(0) + u64(2**40) + bytes(99),
    "unaligned": HEAD + u64(1) + u64(1) + ARCH + text("t") + u32(1) + u64(4) + u32(0) + u64(3) + bytes(99),
    "overlap": HEAD + u64(2) + u64(1) + ARCH + b"".join(text(n) + SAME_PLACE for n in "ab") + bytes(99),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_hostile_headers(name, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD[name])
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        read_gguf(path)


def test_the_frame_of_those_headers_is_right(tmp_path):
    """Control: the same bytes without the fault are read."""
    path = tmp_path / "good.gguf"
    path.write_bytes(HEAD + u64(1) + u64(1) + ARCH + text("t") + u32(1) + u64(4) + u32(0) + u64(0) + bytes(99))
    assert read_gguf(path).tensors["t"].nbytes == 16


def test_damaged_numbers(tmp_path):
    """Counts that would make transformers build a giant or divide by nothing."""
    data = write_gguf(tmp_path / "m.gguf", tiny_model("qwen2")).read_bytes()
    for key in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv"):
        for value in (0, 3, 7, 2**30, 2**31, 2**32 - 1):
            name = f"qwen2.{key}".encode()
            at = data.index(u64(len(name)) + name) + 8 + len(name) + 4
            path = tmp_path / "n.gguf"
            path.write_bytes(data[:at] + u32(value) + data[at + 4 :])
            with pytest.raises(ModelError):
                convert_gguf(path, tmp_path)


_FUZZ = """
import pathlib, random, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
from tests.modeling.sources.test_gguf_damage import attempt, mutated
whole, folder, seed, count = pathlib.Path(sys.argv[1]).read_bytes(), pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:])
rng, path, refused = random.Random(seed), folder / "m.gguf", 0
for _ in range(count):
    path.write_bytes(mutated(whole, rng))
    refused += not attempt(path, folder)
print(refused)
"""


@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_ten_thousand_mutations_in_a_process_of_their_own(tiny_gguf, tmp_path):
    for seed in range(10):
        done = subprocess.run(
            [sys.executable, "-c", _FUZZ, str(tiny_gguf), str(tmp_path), str(seed), "1000"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert int(done.stdout) > 500
