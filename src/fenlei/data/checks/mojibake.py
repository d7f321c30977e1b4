"""Texts that were decoded with the wrong encoding: recognised by undoing it."""

from __future__ import annotations

import re

# bytes 0x80 to 0xBF, as Latin-1 shows them, or as Windows-1252 does
_CP1252 = {bytes([byte]).decode("cp1252", "replace"): byte for byte in range(0x80, 0xA0)}
_TAIL = "[\x80-\xbf" + "".join(re.escape(char) for char in _CP1252 if char != "\ufffd") + "]"
_UTF8_AS_LATIN = re.compile(f"[\xc2-\xdf]{_TAIL}|[\xe0-\xef]{_TAIL}{{2}}|[\xf0-\xf4]{_TAIL}{{3}}")
# é, §, ', ": no word is written so, while ß» ends a quotation in German
_SURE = re.compile(f"[\xc2\xc3]{_TAIL}|\xe2[\x80€]{_TAIL}")
_FIXED = re.compile("锟斤拷|锟斤|斤拷锟|烫烫烫|屯屯屯")
_HAN_SIGNS = re.compile("[锛銆鐨鏄鍦鈥]")
_MOST_READ = 2000
_ENOUGH = 3  # pairs such as É» occur in honest text, three of them do not
_MOST_BROKEN = 0.2


def find_mojibake(text: str) -> tuple[int, str] | None:
    """Where a text shows that it was decoded wrongly, and how it came to be; None for ordinary text.

    - ``Ã©``, ``â€œ``, ``ä¸­æ–‡``: UTF-8 read as Latin-1 or Windows-1252. The bytes behind the characters must be UTF-8.
    - ``涓枃``: UTF-8 read as GBK. Encoding the text back and decoding it as UTF-8 must give Chinese.
    - ``锟斤拷``: U+FFFD written as UTF-8 and read as GBK; ``烫烫烫``, ``屯屯屯``: memory that was never filled.
    """
    fixed = _FIXED.search(text)
    if fixed:
        return fixed.start(), f"{fixed[0]}: bytes that were lost before this file was written"
    found = _latin(text)
    if found is not None:
        return found, "UTF-8 that was read as Latin-1 or Windows-1252"
    signs = list(_HAN_SIGNS.finditer(text, 0, _MOST_READ))
    if len(signs) >= 2 and _reads_as_chinese(text[:_MOST_READ]):
        return signs[0].start(), "UTF-8 that was read as GBK"
    return None


def _latin(text: str) -> int | None:
    first: int | None = None
    count = 0
    for found in _UTF8_AS_LATIN.finditer(text):
        data = bytes(_CP1252.get(char, ord(char) & 0xFF) for char in found[0])
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        count += 1
        first = found.start() if first is None else first
        if count >= _ENOUGH or _SURE.match(found[0]):
            return first
    return None


def _reads_as_chinese(text: str) -> bool:
    back = text.encode("gb18030", "ignore").decode("utf-8", "replace")
    broken = back.count("\ufffd")
    han = sum("\u4e00" <= char <= "\u9fff" for char in back)
    return han >= 2 and broken <= _MOST_BROKEN * len(back)
