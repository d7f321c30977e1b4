"""TensorBoard: runs inside the worker process."""

from __future__ import annotations

import os
from pathlib import Path

from fenlei.tracking.adapter import Say, as_markdown, quoted, require
from fenlei.tracking.channel import TrackerSettings


class TensorBoardTracker:
    """Event files below ``<run>/tensorboard``, or below TENSORBOARD_LOGGING_DIR where that is set.

    Args:
        settings: what to open.
        say: takes a warning for the user.

    Raises:
        Exception: whatever TensorBoard raises when it cannot start.
    """

    background_s = 60.0

    def __init__(self, settings: TrackerSettings, say: Say) -> None:
        require("tensorboard", "pip install 'fenlei[trackers]'")
        from torch.utils.tensorboard import SummaryWriter

        elsewhere = os.environ.get("TENSORBOARD_LOGGING_DIR")
        folder = Path(elsewhere) if elsewhere else Path(settings.run_dir) / "tensorboard"
        self._writer = SummaryWriter(log_dir=str(folder), flush_secs=10)
        rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in settings.hyperparameters.items()]
        self._writer.add_text("hyperparameters", "\n".join(["| setting | value |", "|---|---|", *rows]), 0)
        shown = folder if elsewhere else Path(settings.shown_dir) / "tensorboard"
        self.where = f"TensorBoard: tensorboard --logdir {quoted(shown)}"

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_image(self, name: str, path: str, step: int, caption: str) -> None:
        """A picture; TensorBoard has no captions."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def log_text(self, name: str, text: str, step: int) -> None:
        """A text, shown as it is."""
        self._writer.add_text(name, as_markdown(text), step)

    def finish(self, status: str) -> None:
        """Writes what waits; TensorBoard keeps no state of a run, so a failed one gets a note."""
        if status != "completed":
            self._writer.add_text("status", status, 0)
        self._writer.close()


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
