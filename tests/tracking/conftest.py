from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fenlei.tracking import group


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


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """``finish`` waits on a busy machine, too: for tests of what trackers wrote, not of how long it took."""
    monkeypatch.setattr(group, "_FINISH_S", 60.0)


@pytest.fixture
def watch() -> Iterator[Callable[[Path], str]]:
    """Starts ``swanlab watch`` on a free loopback port; gives its address."""
    pages: list[subprocess.Popen[bytes]] = []

    def start(folder: Path) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "swanlab", "watch", str(folder), "--host", "127.0.0.1", "--port", str(port)]
        pages.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return f"http://127.0.0.1:{port}"
            except OSError:
                time.sleep(0.1)
        raise AssertionError("swanlab watch does not answer")

    yield start
    for page in pages:
        page.terminate()
        page.wait(10)
