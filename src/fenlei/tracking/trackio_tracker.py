"""trackio: runs inside the worker process; a SQLite file in the run folder, no network."""

from __future__ import annotations

import os
from pathlib import Path

from fenlei.tracking.adapter import Say, as_markdown, project_name, quoted, require
from fenlei.tracking.channel import TrackerSettings

# each of them would send the run, or a part of it, to a server
_REMOTE = (
    "TRACKIO_SPACE_ID",
    "TRACKIO_SERVER_URL",
    "TRACKIO_BUCKET_ID",
    "TRACKIO_DATASET_ID",
    "TRACKIO_WEBHOOK_URL",
)


class TrackioTracker:
    """One trackio run below ``<run>/trackio``.

    Args:
        settings: what to open.
        say: takes a warning for the user.

    Raises:
        Exception: whatever trackio raises when it cannot start.
    """

    background_s = 60.0

    def __init__(self, settings: TrackerSettings, say: Say) -> None:
        require("trackio", "pip install 'fenlei[trackers]'")
        for name in _REMOTE:
            if os.environ.pop(name, None) is not None:
                say(f"{name} is ignored: the record stays in the run folder (`trackio sync` copies it)")
        # read when trackio is imported; with a stored token it would otherwise ask the hub who the user is
        os.environ["TRACKIO_DIR"] = str(Path(settings.run_dir) / "trackio")
        os.environ["HF_HUB_OFFLINE"] = "1"
        import trackio

        self._trackio = trackio
        project = project_name(settings.project, say)
        trackio.init(
            project=project,
            name=settings.run_name or None,
            config={key.lstrip("_"): value for key, value in settings.hyperparameters.items()},
            embed=False,
        )
        folder = quoted(Path(settings.shown_dir) / "trackio")
        setting = f"TRACKIO_DIR={folder} " if os.name != "nt" else f"set TRACKIO_DIR={folder} && "
        self.where = f"trackio: {setting}trackio show --project {project}"

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers."""
        self._trackio.log(values, step=step)

    def log_image(self, name: str, path: str, step: int, caption: str) -> None:
        """A picture, copied by trackio."""
        self._trackio.log({name: self._trackio.Image(path, caption=caption or None)}, step=step)

    def log_text(self, name: str, text: str, step: int) -> None:
        """A text, shown as it is."""
        self._trackio.log({name: self._trackio.Markdown(as_markdown(text))}, step=step)

    def finish(self, status: str) -> None:
        """Writes what waits; trackio keeps no state of a run."""
        self._trackio.finish()
