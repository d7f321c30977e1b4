"""Where the shared test data lies: `shared/data` beside the repository, not part of it."""

from __future__ import annotations

from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """The path of a shared file or folder, e.g. `fudan-news/train.jsonl`; skips the test where it is not there."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"shared test data is not here: ../shared/data/{name}")
    return path
