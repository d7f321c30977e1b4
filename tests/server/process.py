"""A server in a process of its own, over a real socket."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil

PATIENCE_S = 300.0
# `fenlei serve` with classifiers that are made by load() as soon as the file `go` is there
FAKE = """
import sys, time
from pathlib import Path
import fenlei.artifact
from fenlei.cli import main
from fenlei.server.models import Models
from tests.server.fake import fake_models
go, hold = (Path(sys.argv.pop(1)) for _ in range(2))
def load(cls, runs, **how):
    while not go.exists():
        time.sleep(0.01)
    return fake_models(hold)
Models.open = classmethod(load)
fenlei.artifact.find_classifier = lambda path: path
main()
"""


class Server:
    """``fenlei serve`` with some arguments; ends with the ``with`` block.

    Args:
        arguments: of ``fenlei serve``.
        hold: with it, the classifiers are fakes that answer nothing while this file is there.
        go: fakes are loaded once this file is there; at once when not given. Nobody waits for that here.
    """

    def __init__(self, arguments: Sequence[object], *, hold: Path | None = None, go: Path | None = None) -> None:
        start = [sys.executable, "-m", "fenlei"]
        if hold is not None:
            start = [sys.executable, "-c", FAKE, str(go or Path(__file__)), str(hold)]
        self.log: list[str] = []
        self._lines = threading.Condition()
        self.process = subprocess.Popen(
            [*start, "serve", *map(str, arguments), "--port", "0"],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.process.stderr, self.process.stdout)
        ]
        for reader in self._readers:
            reader.start()
        try:
            self.port = int(self.wait_for(r"listening on http://.*:(\d+)$")[1])
            self.url = f"http://127.0.0.1:{self.port}"
            if go is None:
                self.wait_for(r"ready: ")
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line of the log in which a pattern is found."""
        deadline = time.monotonic() + PATIENCE_S
        with self._lines:
            while True:
                for line in self.log:
                    if found := re.search(pattern, line):
                        return found
                ended = self.process.poll() is not None and not any(r.is_alive() for r in self._readers)
                assert not ended, f"the server has ended: {self.text}"
                assert time.monotonic() < deadline, f"no line with {pattern!r}: {self.text}"
                self._lines.wait(0.1)

    @property
    def text(self) -> str:
        """The whole log so far."""
        return "\n".join(self.log)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    def client(self, **how: object) -> httpx.Client:
        """An HTTP client for it."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, **how)  # type: ignore[arg-type]

    def connect(self) -> socket.socket:
        """A bare connection."""
        found = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        found.settimeout(PATIENCE_S)
        return found

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended and its log is read."""
        code = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return code

    def kill(self) -> None:
        """Ends it at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def _read(self, stream) -> None:
        for line in stream:
            with self._lines:
                self.log.append(line.rstrip("\n"))
                self._lines.notify_all()


def receive(connection: socket.socket) -> bytes:
    """Everything that comes until the other side closes."""
    found = b""
    try:
        while more := connection.recv(65_536):
            found += more
    except ConnectionResetError:
        pass
    return found


def until(condition, what: str) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
