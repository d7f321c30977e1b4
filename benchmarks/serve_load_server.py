"""A `fenlei serve` process, and the memory and time that it takes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

_LISTENS = re.compile(r"listening on (http://\S+)")


class Server:
    """A server; ends with the ``with`` block.

    Args:
        arguments: of ``fenlei serve``, without the port.
        log: file for what it prints.
        patience: seconds until it must be ready.
        threads: threads of its matrix products; None: torch's own choice.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, *, patience: float = 600.0, threads: int | None = None
    ) -> None:
        command = [sys.executable, "-m", "fenlei", "serve", *arguments, "--port", "0", "--no-access-log"]
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        env["PYTHONPATH"] = str(Path(__file__).resolve().parents[1] / "src")  # always this checkout
        if threads:
            env["OMP_NUM_THREADS"] = str(threads)
        self._log = log
        with log.open("wb") as handle:
            self.process = subprocess.Popen(command, stdout=handle, stderr=handle, env=env)
        try:
            self.url = self._wait_for_url(time.monotonic() + patience)
            self._wait_until_ready(time.monotonic() + patience)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def cpu(self) -> float:
        """Seconds of processor time so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _wait_for_url(self, deadline: float) -> str:
        while True:
            if found := _LISTENS.search(self._text()):
                return found[1]
            self._go_on(deadline)

    def _wait_until_ready(self, deadline: float) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                with opener.open(f"{self.url}/health/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:  # 503 among them
                pass
            self._go_on(deadline)

    def _go_on(self, deadline: float) -> None:
        if self.process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the server did not start: {self._text()[-2000:]}")
        time.sleep(0.1)

    def _text(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


class Watch:
    """Notes a server's memory from time to time, within a ``with`` block.

    Attributes:
        samples: (seconds since the beginning, bytes).
        cpu: processor seconds that the server took within.
        seconds: length of the block.
    """

    def __init__(self, server: Server, every: float = 0.5) -> None:
        self.server, self.every = server, every
        self.samples: list[tuple[float, int]] = []
        self.cpu = self.seconds = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._begin, self._cpu = time.perf_counter(), self.server.cpu
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self.server.process.poll() is None:
            self._note()
            self.cpu = self.server.cpu - self._cpu
        self.seconds = time.perf_counter() - self._begin

    def _run(self) -> None:
        while not self._end.wait(self.every):
            self._note()

    def _note(self) -> None:
        try:
            self.samples.append((time.perf_counter() - self._begin, self.server.memory))
        except psutil.Error:  # it has ended
            pass
