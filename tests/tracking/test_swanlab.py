"""Real SwanLab runs: what is on disk, and what its own page and a browser show of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fenlei.config import RunConfig, TrackingConfig
from fenlei.tracking import TrackerGroup, confusion_matrix_png, start_tracking
from fenlei.tracking.adapter import project_name
from fenlei.tracking.swanlab_tracker import clean_environment, reachable, resolve_mode

pytest.importorskip("swanlab")
pytest.importorskip("swanboard")

SAMPLES = "right  体育 (0.981), label 体育: 国足今晚\nWRONG  政治 (0.512), label 经济: <b>上海</b> 证券"
SWANLAB = [sys.executable, "-m", "swanlab"]


def log_a_run(folder: Path, status: str = "completed", **config: Any) -> TrackerGroup:
    trackers = start_tracking(
        TrackingConfig(**config),
        folder,
        hyperparameters=RunConfig().model_dump(mode="json"),
        run_name="新闻 一号",
        description="a real run",
    )
    for step in range(1, 101):
        trackers.log({"train/loss": 1.0 / step, "train/learning_rate": 1e-4}, step)
    trackers.log({"dev/macro_f1": 0.9, "train/loss": 0.005}, 101)
    trackers.log({"test/final_macro_f1": 0.875}, 50)
    picture = confusion_matrix_png([[3, 1], [0, 0]], ["体育", "政治"], folder / "report" / "c.png")
    trackers.log_image("dev/confusion_matrix", picture, 50)
    trackers.log_text("dev/samples", SAMPLES, 50)
    trackers.finish(status)
    return trackers


@pytest.fixture
def watch() -> Iterator[Callable[[Path], str]]:
    """Starts ``swanlab watch`` on a free loopback port; gives its address."""
    pages: list[subprocess.Popen[bytes]] = []

    def start(folder: Path) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [*SWANLAB, "watch", str(folder), "--host", "127.0.0.1", "--port", str(port)]
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


def ask(address: str, path: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}/api/v1/{path}", timeout=20) as reply:
        body = reply.read()
    return json.loads(body)["data"] if reply.headers["content-type"].startswith("application/json") else body


def values(address: str, tag: str, experiment: int = 1) -> list[dict[str, Any]]:
    return ask(address, f"experiment/{experiment}/tag/{urllib.parse.quote(tag, safe='')}")["list"]


def test_local_run_is_on_its_page(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    run = tmp_path / "runs" / "新闻"
    trackers = log_a_run(run, mode="local", project="新闻分类")
    assert trackers.where[0] == f"SwanLab (local): swanlab watch {run}/swanlog" or "'" in trackers.where[0]
    assert "'新闻分类' becomes 'fenlei-" in trackers.where[1]
    address = watch(run / "swanlog")
    experiment = ask(address, "experiment/1")
    assert (experiment["name"], experiment["description"], experiment["status"]) == ("新闻 一号", "a real run", 1)
    assert experiment["config"]["train.learning_rate"]["value"] == RunConfig().train.learning_rate
    loss = values(address, "train/loss")
    assert [(e["index"], e["data"]) for e in loss] == [(s, 1.0 / s) for s in range(1, 101)] + [(101, 0.005)]
    assert values(address, "dev/macro_f1")[0]["data"] == 0.9
    assert values(address, "test/final_macro_f1")[0]["index"] == 50
    text = values(address, "dev/samples")[0]
    assert text["data"] == SAMPLES.split("\n")
    assert [e["caption"] for e in text["more"]] == ["1", "2"]
    image = values(address, "dev/confusion_matrix")[0]
    assert image["more"][0]["caption"] == "dev/confusion_matrix"
    query = urllib.parse.urlencode({"tag": "dev/confusion_matrix", "experiment_id": 1})
    body = ask(address, f"media/{image['data'][0]}?{query}")
    assert body.startswith(b"\x89PNG")
    assert not list((run / "swanlog").glob("*-wal"))  # the data base was closed in order


def test_the_page_in_a_browser(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    log_a_run(tmp_path, mode="local")
    address = watch(tmp_path / "swanlog")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-proxy-server",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,3000",
        "--virtual-time-budget=20000",
    ]
    page = subprocess.run(
        [chromium, *flags, "--dump-dom", f"{address}/experiment/1/chart"],
        capture_output=True,
        timeout=120,
        encoding="utf-8",
    ).stdout
    for shown in ("新闻 一号", "train/loss", "dev/macro_f1", "<canvas", "dev/confusion_matrix", "国足今晚"):
        assert shown in page, shown
    assert "&lt;b&gt;上海&lt;/b&gt;" in page  # a text is no markup
    assert "blob:" in page  # the picture


def test_a_text_without_a_caption_would_be_invisible(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    """Why each sample gets a number: SwanLab's local page shows nothing else of a text."""
    script = (
        "import sys, swanlab\n"
        "swanlab.init(project='p', name='n', log_dir=sys.argv[1], mode='local')\n"
        "swanlab.log({'dev/samples': swanlab.Text('text')}, step=1)\n"
        "swanlab.finish()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], check=True, timeout=60)
    assert values(watch(tmp_path / "log"), "dev/samples")[0]["more"] == [None]


def test_nan_does_not_break_the_local_page(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    trackers = start_tracking(TrackingConfig(mode="local"), tmp_path, hyperparameters={}, run_name="n")
    trackers.log({"train/loss": float("nan"), "train/epoch": 1.0}, 1)
    trackers.log({"train/loss": 2.0}, 2)
    trackers.finish()
    assert [e["data"] for e in values(watch(tmp_path / "swanlog"), "train/loss")] == [2.0]
    assert sum("NaN or infinity left out" in line for line in trackers.where) == 1


def test_without_the_filter_nan_would_break_it(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    script = (
        "import sys, swanlab\n"
        "swanlab.init(project='p', name='n', log_dir=sys.argv[1], mode='local')\n"
        "swanlab.log({'train/loss': float('nan')}, step=1)\n"
        "swanlab.finish()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], check=True, timeout=60)
    address = watch(tmp_path / "log")
    with pytest.raises((KeyError, urllib.error.HTTPError)):
        values(address, "train/loss")


@pytest.mark.parametrize(("status", "shown"), [("completed", 1), ("failed", -1), ("interrupted", -1)])
def test_the_end_of_a_run_is_recorded(tmp_path: Path, watch: Callable[[Path], str], status: str, shown: int) -> None:
    log_a_run(tmp_path, status, mode="local")
    assert ask(watch(tmp_path / "swanlog"), "experiment/1")["status"] == shown


def test_a_resumed_run_is_a_second_experiment(tmp_path: Path, watch: Callable[[Path], str]) -> None:
    log_a_run(tmp_path, "interrupted", mode="local")
    log_a_run(tmp_path, mode="local")
    names = [e["name"] for e in ask(watch(tmp_path / "swanlog"), "project")["experiments"]]
    assert len(set(names)) == 2


def test_offline_run_can_be_read_back(tmp_path: Path) -> None:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    trackers = log_a_run(tmp_path, mode="offline")
    (folder,) = (tmp_path / "swanlog").glob("run-*")
    assert trackers.where == [f"SwanLab (offline): swanlab sync {folder}"]
    (file,) = folder.glob("*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    records = [Record.FromString(data) for data in reader]
    losses = [r.scalar for r in records if r.HasField("scalar") and r.scalar.key == "train/loss"]
    assert [(s.step, s.value.number) for s in losses] == [(s, 1.0 / s) for s in range(1, 101)] + [(101, 0.005)]
    assert {r.media.key for r in records if r.HasField("media")} == {"dev/confusion_matrix", "dev/samples"}
    texts = sorted((folder / "media" / "text").rglob("*.txt"))
    assert sorted(p.read_text(encoding="utf-8") for p in texts) == sorted(SAMPLES.split("\n"))
    assert len(list((folder / "media" / "image").rglob("*.png"))) == 1
    assert "train.learning_rate" in (folder / "files" / "config.yaml").read_text(encoding="utf-8")


TRAINING = """
import os, signal, sys, time
from pathlib import Path
run, direct = Path(sys.argv[1]), sys.argv[2] == "direct"
if direct:
    import swanlab
    swanlab.init(project="p", name="n", log_dir=str(run / "swanlog"), mode="local")
    log = lambda step: swanlab.log({"train/loss": 1.0}, step=step)
else:
    from fenlei.config import TrackingConfig
    from fenlei.tracking import start_tracking
    trackers = start_tracking(TrackingConfig(mode="local"), run, hyperparameters={}, run_name="n")
    log = lambda step: trackers.log({"train/loss": 1.0}, step)
    time.sleep(0.5)
for step in range(200):
    log(step)
time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("how", ["worker", "direct"])
def test_sigkill_loses_nothing_because_swanlab_lives_on(tmp_path: Path, how: str) -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING, str(tmp_path), how], timeout=60)
    assert done.returncode == -signal.SIGKILL
    (folder,) = _wait_for(lambda: list((tmp_path / "swanlog").glob("run-*")))

    def steps() -> int:
        return sum(len(p.read_text().splitlines()) for p in (folder / "logs").glob("*/*.log"))

    if how == "worker":
        _wait_for(lambda: steps() == 200)
    else:  # SwanLab in the training process itself
        time.sleep(2.0)
        assert steps() < 200


def _wait_for(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
    return found


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


@pytest.mark.parametrize("server", [401], indirect=True)
def test_auto_goes_local_when_the_server_refuses(tmp_path: Path, server: _Server) -> None:
    trackers = log_a_run(tmp_path)
    assert server.asked
    assert trackers.where[0].startswith("SwanLab (local)")
    assert "the server refused the run" in trackers.where[1]


@pytest.mark.parametrize("server", [401], indirect=True)
def test_online_that_is_refused_is_a_line(tmp_path: Path, server: _Server) -> None:
    trackers = log_a_run(tmp_path, mode="online")
    assert any("SwanLab failed: AuthenticationError" in line for line in trackers.where)
    assert server.asked
    assert "k" * 21 not in "".join(p.read_text() for p in tmp_path.glob("*.log"))


def test_online_without_a_key_is_a_line(tmp_path: Path) -> None:
    trackers = log_a_run(tmp_path, mode="online")
    assert any("SwanLab failed: RuntimeError" in line and "online" in line for line in trackers.where)


@pytest.mark.parametrize("server", [0], indirect=True)
def test_a_server_that_never_answers_delays_nothing(tmp_path: Path, server: _Server) -> None:
    trackers = start_tracking(TrackingConfig(mode="online"), tmp_path, hyperparameters={}, run_name="n")
    _wait_for(lambda: server.asked)
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


def test_auto_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("SWANLAB_API_HOST", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("SWANLAB_API_KEY", "k" * 21)
        assert log_a_run(tmp_path).where[0].startswith("SwanLab (local)")
