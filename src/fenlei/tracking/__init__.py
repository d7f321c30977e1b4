"""The course of a run: an always-on record in the run folder, and trackers that can never stop training."""

from __future__ import annotations

from fenlei.tracking.confusion import confusion_matrix_png
from fenlei.tracking.group import TrackerGroup, start_tracking
from fenlei.tracking.record import Record

__all__ = ["Record", "TrackerGroup", "confusion_matrix_png", "start_tracking"]
