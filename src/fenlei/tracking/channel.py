"""What training and a tracker's process share: bounded queues, the settings, and lines of JSON on a pipe."""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """First in, first out; never blocks the writer: what does not fit is refused.

    Args:
        capacity: most items that wait.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> bool:
        """Appends an item; False when the queue is full or closed."""
        with self._changed:
            if self._closed or len(self._items) >= self._capacity:
                return False
            self._items.append(item)
            self._changed.notify()
            return True

    def close(self, last: T | None = None) -> None:
        """Ends the queue after what waits and, even when it is full, ``last``. Later calls change nothing."""
        with self._changed:
            if not self._closed and last is not None:
                self._items.append(last)
            self._closed = True
            self._changed.notify_all()

    def get(self) -> T | None:
        """The next item, waiting for it; None at the end."""
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            return self._items.popleft() if self._items else None


@dataclass(frozen=True)
class TrackerSettings:
    """What a tracker is told when it starts.

    Attributes:
        run_dir: absolute path of the run folder.
        shown_dir: the run folder as the user wrote it, for commands to copy.
        project: project name as configured.
        project_is_default: whether nobody chose ``project``.
        run_name: experiment name.
        description: free text.
        mode: SwanLab's mode as configured.
        hyperparameters: flat, values that JSON can hold.
        background_s: seconds the process may take to finish after training has ended.
    """

    run_dir: str
    shown_dir: str
    project: str
    run_name: str
    project_is_default: bool = False
    description: str = ""
    mode: str = "auto"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    background_s: float = 60.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line; Python's reader takes NaN and Infinity back as numbers."""
    return json.dumps(message, ensure_ascii=True).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """The message of a line, or None when it is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
