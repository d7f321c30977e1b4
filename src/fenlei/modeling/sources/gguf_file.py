"""Reads the header of a GGUF file and checks it before any library sees the file.

The layout is that of the public GGUF specification, versions 2 and 3, little endian: magic, version, counts, key-value
pairs, tensor table, padding, tensor data. Every count and length is compared with what is left of the file before
memory is asked for, so that a damaged or hostile header ends in a :class:`ModelError`, not in a crash.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fenlei.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# Far above what real files hold (a large vocabulary has 300,000 tokens and twice as many merges), and low enough
# that a hostile header costs at most a few hundred MB.
MAX_HEADER_BYTES = 256 * 2**20
MAX_PAIRS = 4096
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 1024
MAX_STRINGS = 4_000_000
MAX_DIMENSIONS = 4

# Value type of the specification -> (numpy type, bytes); 8 is a string, 9 an array.
_SCALARS: dict[int, tuple[str, int]] = {
    0: ("<u1", 1),
    1: ("<i1", 1),
    2: ("<u2", 2),
    3: ("<i2", 2),
    4: ("<u4", 4),
    5: ("<i4", 4),
    6: ("<f4", 4),
    7: ("<u1", 1),
    10: ("<u8", 8),
    11: ("<i8", 8),
    12: ("<f8", 8),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the table; ``shape`` is in numpy's order (rows first), ``offset`` counts from the file's start."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """A checked header."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]

    @property
    def architecture(self) -> str:
        """``general.architecture``, e.g. ``qwen2``."""
        return str(self.metadata["general.architecture"])

    def number(self, key: str, default: float | None = None) -> Any:
        """A finite number below ``key`` of the architecture, e.g. ``block_count``.

        Raises:
            ModelError: it is missing without a default, or is no finite number.
        """
        full = f"{self.architecture}.{key}"
        value = self.metadata.get(full, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelError(f"{self.path}: expected a number in {full}, found {_short(value)}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Like :meth:`number`, but a positive whole number below 2**31."""
        value = self.number(key, default)
        if not isinstance(value, int) or not 0 < value < 2**31:
            raise ModelError(
                f"{self.path}: expected a positive whole number in {self.architecture}.{key}, found {_short(value)}"
            )
        return value


def read_gguf(path: str | Path) -> GgufFile:
    """Parses and checks the header of a GGUF file.

    Args:
        path: the file.

    Raises:
        ModelError: it is no GGUF file, is cut short or damaged, or is one part of a split model.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return _Parser(path, stream, path.stat().st_size).parse()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from None


class _Parser:
    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self.path, self.stream, self.size = path, stream, size
        self.position = 0

    def parse(self) -> GgufFile:
        n_tensors, n_pairs = self._preamble()
        metadata: dict[str, Any] = {}
        for _ in range(n_pairs):
            key = self._name("a key")
            if key in metadata:
                raise self._damaged(f"the key {key!r} occurs twice")
            metadata[key] = self._value(self._u32(), key)
        self._check_metadata(metadata)
        raw = [self._tensor_row() for _ in range(n_tensors)]
        alignment = self._alignment(metadata)
        start = -(-self.position // alignment) * alignment
        return GgufFile(self.path, metadata, self._place(raw, start, alignment))

    def _preamble(self) -> tuple[int, int]:
        if self.size < 24:
            raise self._damaged(f"expected at least 24 bytes, found {self.size}")
        magic = self._take(4)
        if magic != MAGIC:
            raise ModelError(f"{self.path}: not a GGUF file (expected it to begin with {MAGIC!r}, found {magic!r})")
        version = self._u32()
        if version not in SUPPORTED_VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "a big-endian file" if swapped in SUPPORTED_VERSIONS else f"version {version}"
            raise ModelError(f"{self.path}: expected GGUF version 2 or 3, little endian; found {what}")
        n_tensors, n_pairs = self._u64(), self._u64()
        # A tensor row takes 33 bytes at least, a key-value pair 14.
        if not 0 < n_tensors <= min(MAX_TENSORS, self.size // 33):
            raise self._damaged(f"it claims {n_tensors} tensors")
        if not 0 < n_pairs <= min(MAX_PAIRS, self.size // 14):
            raise self._damaged(f"it claims {n_pairs} key-value pairs")
        return n_tensors, n_pairs

    def _check_metadata(self, metadata: dict[str, Any]) -> None:
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str) or not arch or not arch.isascii():
            raise self._damaged(f"general.architecture should name the architecture, found {_short(arch)}")
        parts = metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise ModelError(
                f"{self.path}: this is one of {parts} parts of a split GGUF; join them first: "
                "llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf"
            )

    def _alignment(self, metadata: dict[str, Any]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(value, int) or not 8 <= value <= 2**20 or value & (value - 1):
            raise self._damaged(f"general.alignment should be a power of two, found {_short(value)}")
        return value

    # -- values ----------------------------------------------------------------------------------------------------
    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        value = self._numbers(kind, 1, key)[0]
        return bool(value) if kind == _BOOL else value.item()

    def _array(self, key: str) -> list[str] | np.ndarray[Any, Any]:
        kind, count = self._u32(), self._u64()
        if kind == _STRING:
            if count > min(MAX_STRINGS, (self.size - self.position) // 8):
                raise self._damaged(f"{key} claims {count} strings")
            return [self._string(key) for _ in range(count)]
        return self._numbers(kind, count, key)  # arrays of arrays are not in use, and refused there

    def _numbers(self, kind: int, count: int, key: str) -> np.ndarray[Any, Any]:
        import numpy as np

        if kind not in _SCALARS:
            raise self._damaged(f"{key} has the unknown value type {kind}")
        dtype, width = _SCALARS[kind]
        if count > (self.size - self.position) // width:
            raise self._damaged(f"{key} claims {count} values, more than the file holds")
        return np.frombuffer(self._take(count * width), dtype=dtype)

    def _string(self, key: str) -> str:
        length = self._u64()
        if length > self.size - self.position:
            raise self._damaged(f"{key} claims a text of {length} bytes, more than the file holds")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"{key} is not UTF-8") from None

    def _name(self, what: str) -> str:
        length = self._u64()
        if not 0 < length <= MAX_NAME_BYTES:
            raise self._damaged(f"{what} claims a name of {length} bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"the name of {what} is not UTF-8") from None

    # -- tensors ---------------------------------------------------------------------------------------------------
    def _tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name("a tensor")
        n_dims = self._u32()
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} claims {n_dims} dimensions")
        dims = tuple(self._u64() for _ in range(n_dims))
        return name, dims[::-1], self._u32(), self._u64()

    def _place(
        self, raw: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
    ) -> dict[str, TensorEntry]:
        tensors: dict[str, TensorEntry] = {}
        for name, shape, type_id, relative in raw:
            if name in tensors:
                raise self._damaged(f"the tensor {name!r} occurs twice")
            nbytes = self._bytes_of(name, shape, type_id)
            offset = start + relative
            if relative % alignment or offset + nbytes > self.size:
                raise self._damaged(
                    f"tensor {name!r} should lie at bytes {offset} to {offset + nbytes}, but the file has {self.size}"
                )
            tensors[name] = TensorEntry(name, shape, type_id, offset, nbytes)
        ordered = sorted(tensors.values(), key=lambda t: t.offset)
        for before, after in itertools.pairwise(ordered):
            if before.offset + before.nbytes > after.offset:
                raise self._damaged(f"the tensors {before.name!r} and {after.name!r} overlap")
        return tensors

    def _bytes_of(self, name: str, shape: tuple[int, ...], type_id: int) -> int:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
        except (ValueError, KeyError):
            raise self._damaged(f"tensor {name!r} has the unknown type {type_id}") from None
        if min(shape) < 1 or max(shape) > self.size * 8 or shape[-1] % block:
            raise self._damaged(f"tensor {name!r} claims the shape {shape}")
        return math.prod(shape) // block * block_bytes

    # -- bytes -----------------------------------------------------------------------------------------------------
    def _take(self, count: int) -> bytes:
        if self.position + count > MAX_HEADER_BYTES:
            raise self._damaged(f"its header is longer than {MAX_HEADER_BYTES} bytes")
        data = self.stream.read(count) if count else b""
        if len(data) != count:
            raise self._damaged(f"the header is cut short at byte {self.position + len(data)}")
        self.position += count
        return data

    def _u32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _u64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: the GGUF file is damaged or incomplete: {what}; fetch it again")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
