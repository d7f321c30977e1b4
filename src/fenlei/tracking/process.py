"""Training's side of one tracker: starts its process and talks to it without ever waiting for it."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from fenlei.tracking.channel import BoundedQueue, TrackerSettings, decode, encode

_log = logging.getLogger(__name__)
_CAPACITY = 2_000
_EXIT_S = 0.4
_RECORD = "the record is complete in metrics.jsonl"
# processes that finish on their own; a reference keeps Python from complaining about them
_background: list[subprocess.Popen[bytes]] = []


class TrackerProcess:
    """One tracker in a process of its own.

    Nothing here raises and only :meth:`wait` waits: a tracker that hangs, crashes, asks for a login or
    retries for ever is a line in :attr:`lines` and no more.

    Args:
        title: the tracker's name for people.
        spec: ``MODULE:CLASS`` of its adapter.
        settings: sent first.
        log_path: where what the tracker's library prints goes.
        capacity: most entries that wait to be sent.
    """

    def __init__(
        self, title: str, spec: str, settings: TrackerSettings, log_path: Path, *, capacity: int = _CAPACITY
    ) -> None:
        self.title, self._log_path = title, log_path
        self._queue: BoundedQueue[bytes] = BoundedQueue(capacity)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._where: str | None = None
        self._background_s = settings.background_s
        self._fault: str | None = None
        self._done = self._closing = False
        self._dropped = 0
        self._notes: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._queue.put(encode({"op": "open", "settings": settings.to_dict()}))
        try:
            self._process = _spawn(spec, log_path)
        except OSError as error:
            self._fail(f"its process cannot be started: {error}")
            self._ended.set()
            return
        for work in (self._write, self._read):
            threading.Thread(target=work, name=f"tracking-{title}", daemon=True).start()

    @property
    def process_id(self) -> int | None:
        """The process, where one could be started."""
        return self._process.pid if self._process is not None else None

    def send(self, message: dict[str, Any]) -> None:
        """Queues a message; one that does not fit is left out, with one warning."""
        if self._fault is not None:
            return
        if not self._queue.put(encode(message)):
            self._dropped += 1
            if self._dropped == 1:
                self._say("does not keep up: entries are left out")

    def close(self, status: str) -> None:
        """Asks the tracker to finish with what it has; returns at once."""
        self._queue.close(encode({"op": "finish", "status": status}))

    def wait(self, seconds: float) -> None:
        """Waits for the end, at most ``seconds``; then leaves the process to itself, or kills a deaf one."""
        process = self._process
        if process is None:
            return
        if self._ended.wait(max(0.0, seconds)):
            try:
                process.wait(_EXIT_S)
            except subprocess.TimeoutExpired:
                _background.append(process)
        elif self._closing:
            _background.append(process)  # it ends by itself after background_s at the latest
            state = "still finishing" if self._where is not None else "still starting"
            self._note(
                f"{state} in the background (process {process.pid}, at most {self._background_s:.0f} s; "
                f"log: {self._log_path})"
            )
        else:
            process.kill()
            self._fail("it did not answer at the end of training and was killed")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_S)

    @property
    def lines(self) -> list[str]:
        """Where to look, and what went wrong."""
        with self._lock:
            lines = [self._where] if self._where is not None else []
            lines += [f"{self.title}: {note}" for note in self._notes]
            if self._fault is not None:
                lines.append(f"{self.title} failed: {self._fault}; {_RECORD} (log: {self._log_path})")
            if self._dropped:
                lines.append(f"{self.title}: {self._dropped} entries left out, it did not keep up; {_RECORD}")
            if not lines:
                lines.append(f"{self.title}: starting")
            return lines

    def _write(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        pipe = self._process.stdin
        try:
            while (line := self._queue.get()) is not None:
                rest = memoryview(line)
                while rest:
                    rest = rest[pipe.write(rest) :]
            pipe.close()
        except (OSError, ValueError):
            pass  # the process is gone; the reader says so

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in iter(self._process.stdout.readline, b""):
            message = decode(line)
            if message is not None and self._heard(str(message.get("event")), message):
                break
        if not self._done and self._fault is None:
            self._fail("its process ended early")
        self._ended.set()

    def _heard(self, event: str, message: dict[str, Any]) -> bool:
        text = str(message.get("text", ""))
        if event == "ready":
            with self._lock:
                self._where, self._background_s = text, float(message.get("background_s", 60.0))
        elif event == "warning":
            self._say(text)
            self._note(text)
        elif event == "failed":
            self._fail(text)
        elif event == "closing":
            self._closing = True
        elif event == "done":
            self._done = True
        return self._done

    def _fail(self, text: str) -> None:
        with self._lock:
            first, self._fault = self._fault is None, self._fault or text
        if first:
            self._say(f"failed: {text}; training goes on, {_RECORD}")

    def _note(self, text: str) -> None:
        with self._lock:
            self._notes.append(text)

    def _say(self, text: str) -> None:
        _log.warning("%s: %s", self.title, text)


def _spawn(spec: str, log_path: Path) -> subprocess.Popen[bytes]:
    # the tracker finds the same packages as training, and none that merely lies in the current folder
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONSAFEPATH": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    # out of the terminal's reach: Ctrl-C ends training, the tracker then still takes the last entries
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with log_path.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - a fixed command of ours
            [sys.executable, "-m", "fenlei.tracking.worker", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            bufsize=0,  # a buffer has a lock, which a writer that hangs would hold at exit
            **apart,
        )
