"""How fast the model has been lately."""

from __future__ import annotations

_HALF_LIFE = 10.0  # seconds of work


class Rate:
    """Texts and tokens a second of scoring; what is older counts less and less, idle time not at all."""

    def __init__(self) -> None:
        self._texts = self._tokens = self._seconds = 0.0

    def add(self, texts: int, tokens: int, seconds: float) -> None:
        """So much was scored in so many seconds."""
        keep = 0.5 ** (seconds / _HALF_LIFE)
        self._texts = keep * self._texts + texts
        self._tokens = keep * self._tokens + tokens
        self._seconds = keep * self._seconds + seconds

    @property
    def texts(self) -> float | None:
        """Texts a second; None before anything was scored."""
        return self._texts / self._seconds if self._seconds > 0 else None

    @property
    def tokens(self) -> float | None:
        """Tokens a second; None before anything was scored."""
        return self._tokens / self._seconds if self._seconds > 0 else None
