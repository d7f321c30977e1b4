"""Generated rows without any problem, to plant problems in."""

from __future__ import annotations

import json
import random
from pathlib import Path

LABELS = ("体育", "财经", "科技")
_HAN = [chr(0x4E00 + number) for number in range(0, 3000)]
# what mojibake is made of in earnest, or punctuation in shape only
_HAN = [char for char in _HAN if char not in "锟烫屯锛銆鐨鏄鍦鈥"]


def sentence(generator: random.Random, low: int = 20, high: int = 60) -> str:
    return "".join(generator.choices(_HAN, k=generator.randint(low, high))) + "。"


def clean_rows(count: int = 120, seed: int = 0, candidates: bool = False) -> list[dict]:
    generator = random.Random(seed)
    extra = {"category": list(LABELS)} if candidates else {}
    return [{"text": sentence(generator), "label": LABELS[i % len(LABELS)], **extra} for i in range(count)]


def write(path: Path, rows: list) -> Path:
    """Rows as JSON lines; a string is written as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
