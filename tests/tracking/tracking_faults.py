"""Trackers for tests: one that keeps everything, and ones that hang, crash, stop or ask."""

from __future__ import annotations

import getpass
import json
import os
import signal
import time
from pathlib import Path

from fenlei.tracking.adapter import Say
from fenlei.tracking.channel import TrackerSettings


def hang() -> None:
    """What several of them do."""
    time.sleep(3600)


class Keeps:
    def __init__(self, settings: TrackerSettings, say: Say) -> None:
        self.path = Path(settings.run_dir) / "calls.jsonl"
        self.where = "Keeps: cat calls.jsonl"
        self.background_s = settings.background_s
        self._add("open", settings.run_name, settings.hyperparameters)

    def log(self, values: dict[str, float], step: int) -> None:
        self._add("log", values, step)

    def log_image(self, name: str, path: str, step: int, caption: str) -> None:
        self._add("image", name, path, step, caption)

    def log_text(self, name: str, text: str, step: int) -> None:
        self._add("text", name, text, step)

    def finish(self, status: str) -> None:
        self._add("finish", status)

    def _add(self, *what: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(what, ensure_ascii=False) + "\n")


class HangsAtStart(Keeps):
    def __init__(self, settings: TrackerSettings, say: Say) -> None:
        hang()


class HangsAtLog(Keeps):
    def log(self, values: dict[str, float], step: int) -> None:
        hang()


class HangsAtFinish(Keeps):
    def finish(self, status: str) -> None:
        hang()


class StopsAtStart(Keeps):
    """As deaf as a process can be: not even its threads run."""

    def __init__(self, settings: TrackerSettings, say: Say) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


class RaisesAtStart(Keeps):
    def __init__(self, settings: TrackerSettings, say: Say) -> None:
        raise RuntimeError("no such server")


class RaisesAtLog(Keeps):
    def log(self, values: dict[str, float], step: int) -> None:
        if "bad" in values:
            raise KeyboardInterrupt("stopped by the page")
        super().log(values, step)


class CrashesAtLog(Keeps):
    def log(self, values: dict[str, float], step: int) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class AsksForLogin(Keeps):
    def __init__(self, settings: TrackerSettings, say: Say) -> None:
        super().__init__(settings, say)
        for ask in (input, getpass.getpass):
            try:
                self._add("answer", ask("API key: "))
            except (EOFError, OSError) as error:
                self._add("refused", type(error).__name__)
        print("printed by the library")


class ReportsBadPackage(Keeps):
    """trackio, on a machine where it is not installed."""

    def __init__(self, settings: TrackerSettings, say: Say) -> None:
        from fenlei.tracking import adapter
        from fenlei.tracking.trackio_tracker import TrackioTracker

        adapter.find_spec = lambda _: None  # type: ignore[assignment]
        TrackioTracker(settings, say)
