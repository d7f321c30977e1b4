"""Which encoding a text file has, found on the whole file in constant memory."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO, cast

from fenlei.errors import DataError

BLOCK = 1 << 20
SAMPLE = 1 << 16

# UTF-32 before UTF-16: the little-endian UTF-32 mark starts with the UTF-16 one.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32", "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32", "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8-sig", "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16", "utf-16-be"),
)
# Characters that every JSON, CSV or TSV file is made of; in the wrong byte order they read as rare ones.
_STRUCTURE = frozenset('\n\r\t ",:;{}[]')


class _Fault(NamedTuple):
    """The first place that a codec cannot decode: byte offset from 0, line from 1."""

    offset: int
    line: int
    reason: str


def open_binary(path: Path) -> BinaryIO:
    """Opens a file for reading bytes; ``.gz`` is unpacked on the way.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        if path.suffix.lower() == ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror or error}") from None


def open_text(path: Path, encoding: str | None = None) -> TextIO:
    r"""Opens a text file in its own encoding; lines end at ``\n`` only, and nothing is translated.

    U+2028, U+0085 and the like are ordinary characters here, also inside a line of JSON.

    Args:
        path: the file; ``.gz`` is unpacked.
        encoding: what the user says it is; recognised when None.

    Raises:
        DataError: the file cannot be opened, or no encoding fits (see :func:`detect_encoding`).
    """
    return open_decoded(path, detect_encoding(path, encoding))


def open_decoded(path: Path, codec: str) -> TextIO:
    """:func:`open_text` with a codec that :func:`detect_encoding` gave for this file."""
    return io.TextIOWrapper(open_binary(path), encoding=codec, errors="strict", newline="\n")


def detect_encoding(path: Path, encoding: str | None = None) -> str:
    """The codec that decodes the whole file without a fault.

    A byte order mark decides; else UTF-16 shows by the zero bytes of its ASCII characters; else UTF-8, then
    GB18030. The whole file is decoded once, block by block: the first Chinese character may stand in the last
    line. A file that is UTF-8 but for a few bytes is called damaged, since GB18030 would "succeed" on it with
    wrong characters.

    Args:
        path: the file; ``.gz`` is unpacked.
        encoding: check this one instead of searching.

    Raises:
        DataError: nothing fits; names the byte offset, the line and what was tried.
    """
    if encoding is not None:
        return _check_given(path, encoding)
    head = _read(path, 0, SAMPLE)
    for mark, codec, exact in _MARKS:
        if head.startswith(mark):
            fault = _first_fault(path, exact)
            if fault:
                raise _cannot(path, fault, f"decoded as {exact}, which its byte order mark names")
            return codec
    as_utf8 = _first_fault(path, "utf-8")
    few_nul = head.count(b"\0") * 10 <= len(head)  # a stray one is its row's fault, not the file's
    if as_utf8 is None and few_nul:
        return "utf-8"
    if b"\0" in head:
        return _utf16_without_mark(path, head)
    assert as_utf8 is not None
    if _mostly_utf8(_read(path, max(0, as_utf8.offset - SAMPLE), BLOCK)):
        raise _cannot(path, as_utf8, "decoded as UTF-8, though the text around it is UTF-8: the file is damaged")
    as_gb = _first_fault(path, "gb18030")
    if as_gb is None:
        return "gb18030"
    tried = f"decoded (utf-8: {as_utf8.reason}; gb18030: {as_gb.reason} at byte {as_gb.offset})"
    raise _cannot(path, as_utf8, tried + _suggestion(_read(path, max(0, as_utf8.offset - SAMPLE), SAMPLE * 2)))


def _check_given(path: Path, encoding: str) -> str:
    try:
        info = codecs.lookup(encoding)
        if not getattr(info, "_is_text_encoding", True):
            raise LookupError
    except (LookupError, ValueError):
        raise DataError(
            f"data.encoding: unknown encoding {encoding!r}; use e.g. utf-8, gb18030, utf-16, or leave it out"
        ) from None
    name = info.name
    if name == "utf-8":  # a mark at the start is no part of the first column's name
        name = "utf-8-sig" if _read(path, 0, 3) == codecs.BOM_UTF8 else "utf-8"
    fault = _first_fault(path, "utf-8" if name == "utf-8-sig" else name)
    if fault is None:
        return name
    try:
        hint = f"; it reads well as {detect_encoding(path)}: leave data.encoding out"
    except DataError:
        hint = ""
    raise _cannot(path, fault, f"decoded as {encoding} (data.encoding){hint}")


def _utf16_without_mark(path: Path, head: bytes) -> str:
    even = head[: len(head) // 2 * 2]
    scores = {c: sum(x in _STRUCTURE for x in even.decode(c, "replace")) for c in ("utf-16-le", "utf-16-be")}
    best = max(scores, key=lambda codec: scores[codec])
    # one character in 200 is far below any real table, and far above what binary data gives
    if scores[best] * 200 >= len(even) // 2 and scores[best] > 2 * min(scores.values()):
        fault = _first_fault(path, best)
        if fault is None:
            return best
        raise _cannot(path, fault, f"decoded as {best}, which its zero bytes suggest")
    offset = head.index(b"\0")
    line = head.count(b"\n", 0, offset) + 1
    raise DataError(
        f"{path}:{line}: NUL byte at offset {offset}: this is no text file (nor UTF-16); "
        "expected UTF-8, GB18030 or UTF-16 text"
    )


def _mostly_utf8(sample: bytes) -> bool:
    """Whether text with a fault in it is UTF-8 all the same: many characters beyond ASCII fit, few do not."""
    text = sample.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = sum(1 for c in text if c > "\x7f") - wrong
    return right >= 2 and right >= 4 * wrong


def _first_fault(path: Path, codec: str) -> _Fault | None:
    decoder = codecs.getincrementaldecoder(codec)("strict")
    base = lines = 0
    for block in _blocks(path):
        try:
            lines += decoder.decode(block, not block).count("\n")
        except UnicodeDecodeError as error:
            pending = len(error.object) - len(block)  # bytes kept from the block before
            lines += error.object[: error.start].decode(codec, "replace").count("\n")
            return _Fault(base - pending + error.start, lines + 1, error.reason)
        except UnicodeError as error:  # a codec such as utf-16 that misses its mark
            return _Fault(base, lines + 1, str(error))
        base += len(block)
    return None


def _blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, and one empty block at the end that flushes a decoder."""
    try:
        with open_binary(path) as handle:
            while block := handle.read(BLOCK):
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    yield b""


def _read(path: Path, start: int, size: int) -> bytes:
    try:
        with open_binary(path) as handle:
            handle.seek(start)
            return handle.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _suggestion(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return f"; it may be {best.encoding}: set data.encoding={best.encoding} if so" if best else ""


def _cannot(path: Path, fault: _Fault, what: str) -> DataError:
    return DataError(
        f"{path}:{fault.line}: byte {fault.offset} cannot be {what}. "
        "Save the file as UTF-8, or name its encoding in data.encoding"
    )
