"""SwanLab (0.10): runs inside the worker process."""

from __future__ import annotations

import json
import math
import os
import socket
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fenlei.tracking.adapter import Say, project_name, quoted, require
from fenlei.tracking.channel import TrackerSettings

MODES = ("online", "local", "offline", "disabled")
_PROBE_S = 3.0
_LOCAL_BACKGROUND_S = 60.0
_STATES = {"completed": "success", "failed": "crashed", "interrupted": "aborted"}
# SwanLab reads each of these as JSON of a group of settings and dies of anything else when it is imported
_GROUP_VARIABLES = tuple(
    f"SWANLAB_{name}" for name in ("PROJECT", "EXPERIMENT", "RUN", "TERMINAL", "INTEGRATION", "CORE", "PROBE")
)
_MOST_NAME, _MOST_DESCRIPTION = 512, 1024
_MOST_ROWS = 100


class SwanLabTracker:
    """One SwanLab run below ``<run>/swanlog``.

    Args:
        settings: what to open.
        say: takes a warning for the user.

    Raises:
        Exception: whatever SwanLab raises when it cannot start.
    """

    def __init__(self, settings: TrackerSettings, say: Say) -> None:
        self._say = say
        self.background_s = settings.background_s
        variable_project = clean_environment(say)
        wanted = settings.project
        if settings.project_is_default and variable_project is not None:
            wanted = variable_project
        self._project = project_name(wanted, say)
        require("swanlab", "pip install 'swanlab[dashboard]'")
        import swanlab

        self._swanlab = swanlab
        known = swanlab.Settings()  # environment, .env, yaml files, stored login
        preset = known.mode if "mode" in known.model_fields_set else None
        dashboard = find_spec("swanboard") is not None
        mode = resolve_mode(settings.mode, preset, known.api_key, lambda: reachable(known.api_host), dashboard)
        chosen = settings.mode if settings.mode != "auto" else preset
        try:
            self._run = self._init(mode, settings)
        except Exception as error:
            if mode != "online" or chosen is not None:
                raise
            mode = "local" if dashboard else "offline"
            say(f"the server refused the run ({' '.join(str(error).split())[:200]}); using mode {mode}")
            self._run = self._init(mode, settings)
        self._mode = mode
        if mode != "online":
            self.background_s = _LOCAL_BACKGROUND_S
        self.where = self._describe(settings)
        self._skipped_non_finite = False

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers, one chart a name."""
        if self._mode == "local":
            values = self._finite(values)
        if values:
            self._swanlab.log(values, step=step)

    def log_image(self, name: str, path: str, step: int, caption: str) -> None:
        """A picture, copied by SwanLab."""
        self._swanlab.log({name: self._swanlab.Image(path, caption=caption or name)}, step=step)

    def log_text(self, name: str, text: str, step: int) -> None:
        """A text, shown as a table with a row a line."""
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > _MOST_ROWS:
            lines = [text]
        # the local page stays blank for a text that has no caption
        rows = [self._swanlab.Text(line, caption=str(number)) for number, line in enumerate(lines, 1)]
        if rows:
            self._swanlab.log({name: rows}, step=step)

    def finish(self, status: str) -> None:
        """Closes the run; online this uploads what is left, and retries for as long as the server is away."""
        state = _STATES.get(status, "crashed")
        # without a text the local page would show a run that failed as finished
        error = None if state == "success" else f"training {status}"
        self._swanlab.finish(state=state, error=error)

    def _init(self, mode: str, settings: TrackerSettings) -> Any:
        swanlab = self._swanlab
        # this process prints nothing of interest
        swanlab.merge_settings({"terminal": {"proxy_type": "none"}, "interactive": False})
        return swanlab.init(
            project=self._project,
            name=settings.run_name.strip()[:_MOST_NAME] or None,
            description=settings.description.strip()[:_MOST_DESCRIPTION] or None,
            log_dir=str(Path(settings.run_dir) / "swanlog"),
            config=dict(settings.hyperparameters),
            mode=mode,
        )

    def _finite(self, values: dict[str, float]) -> dict[str, float]:
        # one NaN in a local run and the page can no longer show that chart nor the summary of any run
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if len(finite) < len(values) and not self._skipped_non_finite:
            self._skipped_non_finite = True
            names = ", ".join(sorted(values.keys() - finite.keys()))
            self._say(f"NaN or infinity left out, its local page cannot show them (first: {names})")
        return finite

    def _describe(self, settings: TrackerSettings) -> str:
        folder = Path(settings.shown_dir) / "swanlog"
        if self._mode == "online":
            return f"SwanLab (online): {self._run.url}"
        if self._mode == "local":
            return f"SwanLab (local): swanlab watch {quoted(folder)}"
        if self._mode == "offline":
            return f"SwanLab (offline): swanlab sync {quoted(folder / Path(self._run.dir).name)}"
        return "SwanLab: disabled by its own settings"


def resolve_mode(
    configured: str,
    preset: str | None,
    api_key: str | None,
    can_reach: Callable[[], bool],
    has_dashboard: bool,
) -> str:
    """The mode that ``auto`` stands for.

    Args:
        configured: ``tracking.mode``; anything but ``auto`` is taken as it is.
        preset: the mode from SWANLAB_MODE or from SwanLab's own configuration files, if any.
        api_key: SwanLab's key, from SWANLAB_API_KEY or a stored login.
        can_reach: tries a connection to the server; called only when there is a key.
        has_dashboard: whether the local page is installed.
    """
    if configured != "auto":
        return configured
    if preset is not None:
        return preset
    if api_key and can_reach():
        return "online"
    return "local" if has_dashboard else "offline"


def reachable(host: str) -> bool:
    """Whether a TCP connection to the server, or to the proxy on the way to it, succeeds within 3 s.

    Args:
        host: e.g. ``https://api.swanlab.cn``.
    """
    url = urlsplit(host if "://" in host else f"https://{host}")
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and url.hostname and not urllib.request.proxy_bypass(url.hostname):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if not url.hostname:
        return False
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        with socket.create_connection((url.hostname, port), timeout=_PROBE_S):
            return True
    except (OSError, ValueError):
        return False


def clean_environment(say: Say) -> str | None:
    """Removes variables that SwanLab cannot read; returns the project that SWANLAB_PROJECT named, if any."""
    project = None
    for name in _GROUP_VARIABLES:
        value = os.environ.get(name)
        if value is None or _is_json_object(value):
            continue
        del os.environ[name]
        if name == "SWANLAB_PROJECT":
            project = value.strip() or None
            say(f"SWANLAB_PROJECT={value} would stop SwanLab; used only where tracking.project is not set")
        else:
            say(f"{name} is ignored: SwanLab expects JSON there, found {value!r}")
    mode = os.environ.get("SWANLAB_MODE")
    if mode is not None and mode not in (*MODES, "cloud"):
        del os.environ["SWANLAB_MODE"]
        say(f"SWANLAB_MODE is ignored: expected one of {', '.join(MODES)}, found {mode!r}")
    return project


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
