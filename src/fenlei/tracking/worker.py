"""A tracker's own process: ``python -m fenlei.tracking.worker MODULE:CLASS``.

It reads lines of JSON from its standard input (``open``, then ``log``, ``image``, ``text``, then ``finish``)
and answers with lines on its standard output (``ready``, ``warning``, ``failed``, ``closing``, ``done``). The
tracker's library sees neither: its standard input is empty, so that it can never ask for a login, and what it
prints goes to the log file. When training dies, the pipe ends, and the tracker is finished as failed.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import threading
import traceback
from typing import Any

from fenlei.tracking.adapter import Tracker
from fenlei.tracking.channel import BoundedQueue, TrackerSettings, decode, encode

_CAPACITY = 20_000
_READ_BYTES = 65536
_EXIT_S = 30.0


class Worker:
    """Reads messages in one thread and hands them to the tracker in the main thread.

    Args:
        spec: ``MODULE:CLASS`` of the adapter.
        messages: file descriptor to read from.
        replies: file descriptor to answer on.
    """

    def __init__(self, spec: str, messages: int, replies: int) -> None:
        self._spec, self._messages, self._replies = spec, messages, replies
        self._queue: BoundedQueue[dict[str, Any]] = BoundedQueue(_CAPACITY)
        self._background_s = 60.0
        self._reply_lock = threading.Lock()
        self._dropped = False
        self._warned: set[str] = set()

    def run(self) -> int:
        """Works until ``finish`` or the end of the pipe; returns the exit code."""
        threading.Thread(target=self._read, name="messages", daemon=True).start()
        opening = self._queue.get()
        if opening is None or opening.get("op") != "open":
            return 0
        try:
            tracker = self._open(opening["settings"])
        except BaseException as error:
            traceback.print_exc()
            self._reply("failed", _one_line(error))
            return 1
        status = "failed"  # unless training says otherwise: it may have been killed
        while (message := self._queue.get()) is not None:
            if message.get("op") == "finish":
                status = str(message.get("status", status))
                break
            self._guarded(message.get("op", "?"), lambda m=message: _apply(tracker, m))
        self._guarded("finish", lambda: tracker.finish(status))
        self._reply("done")
        return 0

    def _open(self, settings: dict[str, Any]) -> Tracker:
        told = TrackerSettings(**settings)
        module, _, name = self._spec.partition(":")
        tracker: Tracker = getattr(importlib.import_module(module), name)(told, self._warn)
        self._background_s = tracker.background_s
        # SwanLab puts its own handler in place, which would end the run in the middle
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._reply("ready", tracker.where, background_s=tracker.background_s)
        return tracker

    def _read(self) -> None:
        pending = b""
        while chunk := _read_some(self._messages):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                message = decode(line)
                if message is None:
                    continue
                if message.get("op") == "open":
                    # known from here on: training may be gone before the main thread has looked at it
                    self._background_s = TrackerSettings(**message["settings"]).background_s
                if message.get("op") == "finish":
                    self._closing(message)
                    return
                if not self._queue.put(message) and not self._dropped:
                    self._dropped = True
                    self._warn("it does not keep up: some entries were left out")
        self._closing(None)

    def _closing(self, last: dict[str, Any] | None) -> None:
        # a C thread of its own, which works even when the tracker's library never gives the interpreter back
        faulthandler.dump_traceback_later(self._background_s, exit=True)
        self._reply("closing")
        self._queue.close(last)

    def _guarded(self, what: str, call: Any) -> None:
        try:
            call()
        except BaseException as error:  # SwanLab raises KeyboardInterrupt when its page says "stop"
            traceback.print_exc()
            text = f"{what}: {_one_line(error)}"
            if what not in self._warned:
                self._warned.add(what)
                self._warn(text)

    def _warn(self, text: str) -> None:
        self._reply("warning", text)

    def _reply(self, event: str, text: str = "", **more: Any) -> None:
        with self._reply_lock:
            try:
                os.write(self._replies, encode({"event": event, "text": text, **more}))
            except OSError:
                pass  # training is gone; the record is finished all the same


def _apply(tracker: Tracker, message: dict[str, Any]) -> None:
    operation, step = message["op"], int(message["step"])
    if operation == "log":
        tracker.log(message["values"], step)
    elif operation == "image":
        tracker.log_image(message["name"], message["path"], step, message["caption"])
    elif operation == "text":
        tracker.log_text(message["name"], message["text"], step)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return text
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError:
        return b""


def main() -> None:
    """Takes the two pipes away from the library, then works."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    messages, replies = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    code = 1
    try:
        code = Worker(sys.argv[1], messages, replies).run()
    except BaseException:
        traceback.print_exc()
    # an ordinary exit, so that databases are closed; exit hooks of the library get only so long
    faulthandler.dump_traceback_later(_EXIT_S, exit=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
