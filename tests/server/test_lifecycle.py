"""Promise 16: starting, draining, ending. A real process; fake classifiers that hold their answers when told to."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from fenlei.server.service import Service
from tests.cli.test_commands import fenlei  # noqa: F401  a fixture
from tests.server.client import opened, said, service_of
from tests.server.fake import POISON, fake_models, predictor_of
from tests.server.process import Server, receive, until
from tests.server.test_socket_limits import unread

CLASSIFY = "/v1/classify"
IN_FLIGHT = "fenlei_in_flight_requests"


@pytest.fixture
def hold(tmp_path):
    return tmp_path / "hold"


def gauge(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.split("\n")
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


class Clients:
    """Requests in threads of their own, and their answers or errors."""

    def __init__(self, server: Server, count: int) -> None:
        self.answers: list[httpx.Response | Exception] = []
        self._server = server
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        try:
            with self._server.client() as client:
                self.answers.append(client.post(CLASSIFY, json={"texts": [f"{number}", "b"]}))
        except Exception as error:
            self.answers.append(error)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_none_of_fifty_is_lost(hold, number):
    with Server(["news"], hold=hold) as server, server.client() as client:
        expected = client.post(CLASSIFY, json={"texts": ["7", "b"]}).json()["results"]
        hold.touch()
        clients = Clients(server, 50)
        until(lambda: gauge(client, IN_FLIGHT) == 50, "fifty requests are in flight")
        server.signal(number)
        until(lambda: client.get("/health/ready").status_code == 503, "it is not ready any more")
        ready, live, new = (
            client.get("/health/ready"),
            client.get("/health/live"),
            client.post(CLASSIFY, json={"text": "x"}),
        )
        assert ready.json()["error"]["code"] == "draining"
        assert live.status_code == 200
        assert (new.status_code, new.json()["error"]["code"]) == (503, "draining")
        assert int(new.headers["Retry-After"]) >= 1
        assert new.headers["Connection"] == "close", "whoever has more to ask goes elsewhere"
        with server.client() as other:  # also on a new connection
            assert other.get("/v1/models").status_code == 503
        hold.unlink()
        clients.join()
        assert [getattr(a, "status_code", a) for a in clients.answers] == [200] * 50
        results = [a.json()["results"] for a in clients.answers]
        assert expected in results
        assert server.wait() == 0, server.text
        assert "every accepted request was answered" in server.text


def test_a_body_that_is_still_coming_counts_as_accepted(hold):
    with Server(["news"], hold=hold) as server, server.client() as client, server.connect() as connection:
        head = f"POST {CLASSIFY} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 13\r\n\r\n".encode())
        until(lambda: gauge(client, IN_FLIGHT) == 1, "the request is accepted")
        server.signal()
        until(lambda: client.get("/health/ready").status_code == 503, "it drains")
        connection.sendall(b'{"text": "a"}')
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0


def test_time_runs_out(hold):
    hold.touch()
    with Server(["news", "--drain-seconds", 1.2], hold=hold) as server, server.client() as client:
        clients = Clients(server, 3)
        until(lambda: gauge(client, IN_FLIGHT) == 3, "three requests are in flight")
        server.signal()
        assert server.wait() == 128 + signal.SIGTERM
        clients.join()
        assert [getattr(a, "status_code", a) for a in clients.answers] == [503] * 3
        assert "time ran out" in server.text


@pytest.mark.parametrize("reads", [True, False])
def test_answers_on_their_way_arrive(hold, reads):
    """A slow client gets all of what it is sent; and where there is no time for that, the exit code says so."""
    seconds = 60 if reads else 1.2
    with Server(["news", "--drain-seconds", seconds], hold=hold) as server, unread(server) as connection:
        begun = connection.recv(1)
        server.signal()
        server.wait_for("shutting down")
        if reads:
            time.sleep(2.0)  # longer than what is left for those who get no answer
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            answers = begun + receive(connection)
            assert answers
            while answers:
                head, _, rest = answers.partition(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head)[1])
                assert len(rest) >= length
                answers = rest[length:]
        assert server.wait() == (0 if reads else 128 + signal.SIGTERM), server.text


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_forces(hold, second):
    hold.touch()
    with Server(["news", "--drain-seconds", 600], hold=hold) as server, server.client() as client:
        clients = Clients(server, 2)
        until(lambda: gauge(client, IN_FLIGHT) == 2, "two requests are in flight")
        server.signal()
        server.wait_for("shutting down")
        server.signal(second)
        assert server.wait() == 128 + second
        clients.join()
        assert all(isinstance(a, Exception) for a in clients.answers)


def test_idle_connections_do_not_keep_it(hold):
    with Server(["news", "--drain-seconds", 600], hold=hold) as server, server.client() as client:
        assert client.post(CLASSIFY, json={"text": "a"}).status_code == 200
        with server.connect():
            server.signal()
            assert server.wait() == 0


def test_a_client_that_goes_away_is_dropped_from_the_queue(hold):
    hold.touch()
    with Server(["news"], hold=hold) as server, server.client() as client:
        connections = [server.connect() for _ in range(5)]
        body = json.dumps({"text": "a"})
        for connection in connections:
            head = f"POST {CLASSIFY} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: gauge(client, IN_FLIGHT) == 5, "five requests are in flight")
        for connection in connections:
            connection.close()
        until(lambda: gauge(client, IN_FLIGHT) == 0, "none is")
        assert gauge(client, "fenlei_queue_texts") == 0
        hold.unlink()
        assert client.post(CLASSIFY, json={"text": "a"}).status_code == 200


class TestGate:
    """What keeps requests out, without a process; and the same without it."""

    @pytest.mark.parametrize("phase", ["starting", "draining"])
    def test_shut(self, phase):
        with opened() as client:
            service_of(client).phase = phase
            for path in ("/v1/models", "/v1/nothing"):
                answer = client.get(path)
                assert (answer.status_code, said(answer)) == (503, phase)
                assert answer.headers["Retry-After"]
            for path in ("/health/live", "/metrics", "/", "/docs", "/openapi.json"):
                assert client.get(path).status_code == 200
            assert client.get("/health/ready").status_code == 503
            assert answer.headers.get("Connection") == ("close" if phase == "draining" else None)

    def test_without_it(self, monkeypatch):
        monkeypatch.setattr(Service, "enter", lambda self: setattr(self, "in_flight", self.in_flight + 1))
        with opened() as client:
            service_of(client).phase = "draining"
            assert client.post(CLASSIFY, json={"text": "a"}).status_code == 200
            service_of(client).phase = "ready"


class TestDeadModel:
    """After some errors of a GPU every pass fails until the process is new: no probe may call that ready."""

    def test_not_ready_until_it_works_again(self):
        models = fake_models()
        predictor = predictor_of(models)
        with opened(models) as client:
            predictor.broken = True
            for _ in range(3):
                assert client.get("/health/ready").status_code == 200
                answer = client.post(CLASSIFY, json={"text": "a"})
                assert (answer.status_code, said(answer)) == (503, "model_failed")
            until(lambda: client.get("/health/ready").status_code == 503, "it is not ready any more")
            assert said(client.get("/health/ready")) == "model_failed"
            assert client.get("/health/live").status_code == 200
            predictor.broken = False
            until(lambda: client.get("/health/ready").status_code == 200, "it is ready again")

    def test_an_answer_says_so_too(self):
        models = fake_models()
        predictor_of(models).warm = None  # nothing comes of looking
        with opened(models) as client:
            service_of(client)._batcher.soundness.good = False
            assert client.get("/health/ready").status_code == 503
            assert client.post(CLASSIFY, json={"text": "a"}).status_code == 200
            until(lambda: client.get("/health/ready").status_code == 200, "it is ready again")

    def test_texts_at_fault_are_not_the_model_s(self):
        """Negative control: nobody can take the server out by texts that it fails on."""
        with opened() as client:
            for _ in range(7):
                assert client.post(CLASSIFY, json={"text": POISON}).status_code == 503
                assert client.get("/health/ready").status_code == 200


class TestStart:
    def test_it_answers_while_classifiers_are_loaded(self, hold, tmp_path):
        go = tmp_path / "go"
        with Server(["news"], hold=hold, go=go) as server, server.client() as client:
            assert client.get("/health/live").status_code == 200
            ready, asked = client.get("/health/ready"), client.post(CLASSIFY, json={"text": "a"})
            assert (ready.status_code, ready.json()["error"]["code"]) == (503, "starting")
            assert (asked.status_code, asked.json()["error"]["code"]) == (503, "starting")
            assert asked.headers["Retry-After"]
            assert client.get("/metrics").status_code == 200
            go.touch()
            server.wait_for("ready: news, mood")
            assert client.get("/health/ready").status_code == 200
            assert client.post(CLASSIFY, json={"text": "a"}).status_code == 200

    def test_a_signal_while_classifiers_are_loaded(self, hold, tmp_path):
        with Server(["news"], hold=hold, go=tmp_path / "never") as server, server.client() as client:
            assert client.get("/health/ready").status_code == 503
            server.signal()
            assert server.wait() == 0

    @pytest.mark.parametrize("how", ["damaged", "twice", "base"])
    def test_a_classifier_that_cannot_be_loaded(self, news_folder, tmp_path, how):
        """Found out after the port was opened: still one message and exit code 2."""
        broken = tmp_path / "broken"
        shutil.copytree(news_folder, broken)
        arguments, words = [f"a={broken}"], "adapter_model.safetensors"
        if how == "damaged":
            weights = broken / "adapter" / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1])
        elif how == "twice":
            arguments, words = [f"a={broken}", f"a={broken}"], "'a' is taken"
        else:
            arguments, words = [f"a={broken}", "--model", "./absent"], "absent"
        command = [sys.executable, "-m", "fenlei", "serve", *arguments, "--port", "0", "--offline"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


class TestOptions:
    """What is told before anything is started."""

    def test_a_folder_that_is_no_classifier(self, fenlei, tmp_path):  # noqa: F811
        code, _, err = fenlei("serve", tmp_path, "--port", 0)
        assert code == 2
        assert "neither a run folder nor a classifier folder" in err

    def test_a_port_that_is_taken(self, fenlei, news_folder):  # noqa: F811
        with socket.create_server(("127.0.0.1", 0)) as taken:
            code, _, err = fenlei("serve", news_folder, "--port", taken.getsockname()[1])
        assert code == 2
        assert "choose another --port" in err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--host", "0.0.0.0"], "--api-key-file"),
            (["--admin"], "--api-key-file"),
            (["--api-key-file", "absent"], "absent"),
            (["--set", "model.devise=cpu"], "did you mean 'model.device'"),
            (["--drain-seconds", "0"], "--drain-seconds"),
            (["--queue-timeout", "0"], "--queue-timeout"),
            (["--allowed-host", "http://x"], "without http://"),
            (["--max-texts", "0"], "--max-texts"),
        ],
    )
    def test_bad_values(self, fenlei, news_folder, arguments, words):  # noqa: F811
        code, _, err = fenlei("serve", news_folder, "--port", 0, *arguments)
        assert code == 2, err
        assert words in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
    def test_a_package_is_missing(self, fenlei, news_folder, monkeypatch, package):  # noqa: F811
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name))
        code, _, err = fenlei("serve", news_folder)
        assert code == 2
        assert f"{package!r}: pip install 'fenlei[serve]'" in err

    def test_a_name_for_a_folder(self, tmp_path):
        from fenlei.cli.serve import _named

        assert _named("news=runs/news") == ("news", Path("runs/news"))
        assert _named("runs/news") == (None, Path("runs/news"))
        (tmp_path / "a=b").mkdir()
        assert _named(str(tmp_path / "a=b")) == (None, tmp_path / "a=b")

    def test_every_limit_has_an_option(self):
        """And the option the same default."""
        from typer.main import get_command

        from fenlei.cli import app
        from fenlei.server.batcher import BatchLimits
        from fenlei.server.settings import Limits, ServeSettings

        options = {p.name: p.default for p in get_command(app).commands["serve"].params}
        names = {
            "max_queue_s": "max_queue_seconds",
            "queue_timeout_s": "queue_timeout",
            "allowed_hosts": "allowed_host",
        }
        for kind in (Limits, BatchLimits, ServeSettings):
            for name, field in kind.model_fields.items():
                if name != "limits":
                    assert (options[names.get(name, name)] or None) == (field.default or None), name


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize(("wanted", "found"), [(150, 150), (50, 100), (10_000, 200)])
def test_as_many_files_as_the_system_lets_it(wanted, found):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200));"
        f"from fenlei.server.run import allow_open_files; allow_open_files({wanted});"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(found), "200"]
