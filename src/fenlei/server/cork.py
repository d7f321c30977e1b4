"""The head of an answer leaves together with its body."""

from __future__ import annotations

import asyncio
from typing import Any


class CorkedTransport:
    """A transport that keeps what is written until more is written, or the event loop's next turn.

    uvicorn writes the head of an answer and its body one after the other: two system calls and two packets, for the
    second of which the client wakes up again. Everything that is not said here is the transport's own.

    Args:
        transport: of the connection.
        loop: that serves it.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Sends what was kept together with this; the first part is kept."""
        if not data:
            return
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        else:
            self._held = data
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what was kept."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        """Closes the connection when all has been sent."""
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        """Says that nothing more will come, after all that has."""
        self.flush()
        self._transport.write_eof()

    def abort(self) -> None:
        """Closes the connection at once."""
        self._held = b""
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        """Bytes that the client has not taken yet."""
        return len(self._held) + self._transport.get_write_buffer_size()
