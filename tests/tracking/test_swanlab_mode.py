"""Which mode SwanLab gets, what its environment may hold, and servers that refuse or never answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fenlei.config import TrackingConfig
from fenlei.tracking import start_tracking
from fenlei.tracking.adapter import project_name
from fenlei.tracking.swanlab_tracker import clean_environment, reachable, resolve_mode
from tests.tracking.swanlab_run import ask, log_a_run, wait_for

pytest.importorskip("swanlab")
pytest.importorskip("swanboard")


@pytest.mark.parametrize(
    ("configured", "preset", "key", "reach", "dashboard", "expected"),
    [
        ("offline", "online", "k", True, True, "offline"),
        ("auto", "disabled", "k", True, True, "disabled"),
        ("auto", None, "k", True, True, "online"),
        ("auto", None, "k", False, True, "local"),
        ("auto", None, "k", False, False, "offline"),
        ("auto", None, None, True, True, "local"),
        ("auto", None, None, True, False, "offline"),
    ],
)
def test_what_auto_means(
    configured: str, preset: str | None, key: str | None, reach: bool, dashboard: bool, expected: str
) -> None:
    asked = []
    mode = resolve_mode(configured, preset, key, lambda: bool(asked.append(1)) or reach, dashboard)
    assert mode == expected
    assert bool(asked) == (configured == "auto" and preset is None and key is not None)


def test_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server, socket.socket() as closed:
        server.bind(("127.0.0.1", 0))
        server.listen()
        closed.bind(("127.0.0.1", 0))
        open_port, closed_port = server.getsockname()[1], closed.getsockname()[1]
        assert reachable(f"http://127.0.0.1:{open_port}")
        assert not reachable(f"http://127.0.0.1:{closed_port}")
        assert not reachable("http://")
        # behind a proxy it is the proxy that must answer
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{open_port}")
        assert reachable("https://host.invalid")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port}")
        assert not reachable("https://host.invalid")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fenlei", "fenlei"), ("my project/1", "my-project-1"), ("a" * 200, "a" * 100), ("新闻", "fenlei-")],
)
def test_project_names(name: str, expected: str) -> None:
    from swanlab.sdk.internal.pkg.constraints import ta_project

    said: list[str] = []
    clean = project_name(name, said.append)
    assert clean.startswith(expected)
    assert ta_project.validate_python(clean) == clean
    assert bool(said) == (clean != name)
    assert project_name("新闻", said.append) != project_name("体育", said.append)


def test_environment_that_stops_swanlab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_PROJECT", "mine")
    monkeypatch.setenv("SWANLAB_RUN", '{"id": "x"}')
    monkeypatch.setenv("SWANLAB_MODE", "lokal")
    said: list[str] = []
    assert clean_environment(said.append) == "mine"
    assert "SWANLAB_PROJECT" not in os.environ
    assert "SWANLAB_MODE" not in os.environ
    assert os.environ["SWANLAB_RUN"] == '{"id": "x"}'
    assert len(said) == 2


@pytest.mark.usefixtures("patient")
def test_swanlab_project_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Callable[[Path], str]
) -> None:
    monkeypatch.setenv("SWANLAB_PROJECT", "mine")
    monkeypatch.setenv("SWANLAB_MODE", "local")
    trackers = log_a_run(tmp_path)
    assert "SWANLAB_PROJECT=mine" in trackers.where[1]
    assert ask(watch(tmp_path / "swanlog"), "project")["name"] == "mine"
    # the negative control: SwanLab itself cannot even be imported
    direct = subprocess.run([sys.executable, "-c", "import swanlab"], capture_output=True, timeout=60)
    direct_run = subprocess.run(
        [sys.executable, "-c", "import swanlab; swanlab.init(mode='offline')"], capture_output=True, timeout=60
    )
    assert b"project" in direct.stderr + direct_run.stderr
    assert direct_run.returncode != 0


@pytest.mark.usefixtures("patient")
def test_mode_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    assert log_a_run(tmp_path).where[0].startswith("SwanLab (offline)")
    monkeypatch.setenv("SWANLAB_MODE", "disabled")
    assert log_a_run(tmp_path / "b").where == ["SwanLab: disabled by its own settings"]
    assert not (tmp_path / "b" / "swanlog").exists()


class _Server:
    """A loopback server in SwanLab's place that answers every request with one status, or never (0)."""

    def __init__(self, status: int) -> None:
        outer = self
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked += 1
                if status == 0:
                    time.sleep(600)
                self.send_response(status)
                self.end_headers()

            do_GET = do_PUT = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    started = _Server(request.param)
    monkeypatch.setenv("SWANLAB_API_HOST", started.address)
    monkeypatch.setenv("SWANLAB_API_KEY", "k" * 21)
    yield started
    started.close()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("server", [401], indirect=True)
def test_auto_goes_local_when_the_server_refuses(tmp_path: Path, server: _Server) -> None:
    trackers = log_a_run(tmp_path)
    assert server.asked
    assert trackers.where[0].startswith("SwanLab (local)")
    assert "the server refused the run" in trackers.where[1]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("server", [401], indirect=True)
def test_online_that_is_refused_is_a_line(tmp_path: Path, server: _Server) -> None:
    trackers = log_a_run(tmp_path, mode="online")
    assert any("SwanLab failed: AuthenticationError" in line for line in trackers.where)
    assert server.asked
    assert "k" * 21 not in "".join(p.read_text() for p in tmp_path.glob("*.log"))


@pytest.mark.usefixtures("patient")
def test_online_without_a_key_is_a_line(tmp_path: Path) -> None:
    trackers = log_a_run(tmp_path, mode="online")
    assert any("SwanLab failed: RuntimeError" in line and "online" in line for line in trackers.where)


@pytest.mark.parametrize("server", [0], indirect=True)
def test_a_server_that_never_answers_delays_nothing(tmp_path: Path, server: _Server) -> None:
    trackers = start_tracking(TrackingConfig(mode="online"), tmp_path, hyperparameters={}, run_name="n")
    wait_for(lambda: server.asked)
    begin = time.monotonic()
    for step in range(1000):
        trackers.log({"train/loss": 1.0}, step)
    trackers.finish()
    assert time.monotonic() - begin < 5.0
    assert "in the background" in trackers.where[0]
    assert "at most 600 s" in trackers.where[0]
    process = trackers._processes[0].process_id
    assert process is not None
    os.kill(process, signal.SIGKILL)


@pytest.mark.usefixtures("patient")
def test_auto_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("SWANLAB_API_HOST", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("SWANLAB_API_KEY", "k" * 21)
        assert log_a_run(tmp_path).where[0].startswith("SwanLab (local)")
