from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings or stored login of whoever runs the tests reach a tracker."""
    for name in list(os.environ):
        if name.startswith(("SWANLAB_", "TRACKIO_", "TENSORBOARD_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("SWANLAB_ROOT", str(home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(home)
