"""All trackers of a run, and how they are started."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fenlei.config import TrackingConfig
from fenlei.tracking.channel import TrackerSettings
from fenlei.tracking.process import TrackerProcess
from fenlei.tracking.record import plain

_log = logging.getLogger(__name__)

_FINISH_S = 4.0  # with what a busy machine adds, the promised 5 s are kept
_ONLINE_BACKGROUND_S = 600.0
_LOCAL_BACKGROUND_S = 60.0
_MOST_TEXT = 200_000
_ADAPTERS = {
    "swanlab": ("SwanLab", "fenlei.tracking.swanlab_tracker:SwanLabTracker"),
    "trackio": ("trackio", "fenlei.tracking.trackio_tracker:TrackioTracker"),
    "tensorboard": ("TensorBoard", "fenlei.tracking.tensorboard_tracker:TensorBoardTracker"),
}


class TrackerGroup:
    """The trackers of one run.

    Nothing here raises. Log calls return at once; only :meth:`finish` waits, at most 5 s for all together.

    Args:
        processes: the started trackers.
        notes: lines for :attr:`where` about trackers that were not started.
    """

    def __init__(self, processes: list[TrackerProcess], notes: list[str] | None = None) -> None:
        self._processes = processes
        self._notes = list(notes or [])
        self._finished = False
        self._warned = False

    def log(self, values: dict[str, float], step: int) -> None:
        """Sends numbers.

        Args:
            values: name (``train/loss``, ``dev/macro_f1``) -> number; the rest is left out, with a warning.
            step: optimizer steps done.
        """
        numbers: dict[str, float] = {}
        for name, value in values.items():
            try:
                numbers[str(name)] = value if type(value) in (int, float) else float(value)
            except Exception as error:
                self._warn_once(f"{name!r} is no number and not tracked: {error}")
        if numbers:
            self._send({"op": "log", "values": numbers, "step": step})

    def log_image(self, name: str, path: Path, step: int, caption: str = "") -> None:
        """Sends a picture; the file must stay until :meth:`finish` has returned.

        Args:
            name: e.g. ``dev/confusion_matrix``.
            path: a PNG file.
            step: optimizer steps done.
            caption: text under the picture.
        """
        absolute = os.path.abspath(path)
        self._send({"op": "image", "name": name, "path": absolute, "step": step, "caption": caption})

    def log_text(self, name: str, text: str, step: int) -> None:
        """Sends a text such as sample predictions, at most 200,000 characters of it."""
        self._send({"op": "text", "name": name, "text": text[:_MOST_TEXT], "step": step})

    def finish(self, status: str = "completed") -> None:
        """Ends the run in all trackers; what takes longer than 5 s goes on in the background.

        Args:
            status: ``completed``, ``failed`` or ``interrupted``.
        """
        if self._finished:
            return
        self._finished = True
        deadline = time.monotonic() + _FINISH_S
        for process in self._processes:
            process.close(status)
        for process in self._processes:
            process.wait(deadline - time.monotonic())

    @property
    def where(self) -> list[str]:
        """Lines for people: where each tracker shows the run, and which of them failed and why."""
        return [*self._notes, *(line for process in self._processes for line in process.lines)]

    def _send(self, message: dict[str, Any]) -> None:
        if self._finished:
            return
        try:
            message["step"] = int(message["step"])
            for process in self._processes:
                process.send(message)
        except Exception as error:
            self._warn_once(f"an entry could not be sent to the trackers: {error}")

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("tracking: %s", text)


def start_tracking(
    config: TrackingConfig,
    run_dir: Path,
    *,
    hyperparameters: Mapping[str, Any],
    run_name: str,
    description: str = "",
) -> TrackerGroup:
    """Starts the configured trackers, each in a process of its own; returns at once.

    Args:
        config: which trackers, and SwanLab's mode, project and experiment name.
        run_dir: the run folder; the trackers' data go there.
        hyperparameters: may be nested; shown flat, as ``train.learning_rate``.
        run_name: experiment name where ``config.experiment`` has none.
        description: free text beside the name.
    """
    try:
        return _start(config, Path(run_dir), hyperparameters, run_name, description)
    except Exception as error:
        _log.warning("no tracker could be started: %s; training goes on", error)
        return TrackerGroup([], [f"trackers failed: {error}; the record is complete in metrics.jsonl"])


def _start(
    config: TrackingConfig, run_dir: Path, hyperparameters: Mapping[str, Any], run_name: str, description: str
) -> TrackerGroup:
    run_dir.mkdir(parents=True, exist_ok=True)
    processes = []
    for name in dict.fromkeys(config.trackers):
        if name == "swanlab" and config.mode == "disabled":
            continue
        title, spec = _ADAPTERS[name]
        online = name == "swanlab" and config.mode in ("auto", "online")
        settings = TrackerSettings(
            run_dir=os.path.abspath(run_dir),
            shown_dir=str(run_dir),
            project=config.project,
            project_is_default=config.project == TrackingConfig.model_fields["project"].default,
            run_name=config.experiment or run_name,
            description=description,
            mode=config.mode,
            hyperparameters=flat(hyperparameters),
            background_s=_ONLINE_BACKGROUND_S if online else _LOCAL_BACKGROUND_S,
        )
        processes.append(TrackerProcess(title, spec, settings, run_dir / f"tracking-{name}.log"))
    return TrackerGroup(processes)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``part.field`` -> value: lists become text, what is not set is left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{name}."))
        elif isinstance(value, (list, tuple, set, frozenset)):
            found[name] = ", ".join(str(plain(item)) for item in value)
        elif value is not None:
            found[name] = plain(value)
    return found
