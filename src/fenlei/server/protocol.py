"""HTTP/1.1 as uvicorn speaks it, with the limits that uvicorn does not have.

uvicorn waits without end for a request's head, for the rest of a body that nobody reads, and for a client that does
not take its answer; and it answers what is no HTTP in plain text.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fenlei.server.errors import ApiError
from fenlei.server.security import SECURITY_HEADERS
from fenlei.server.service import Service

# the rest of a body that was refused is read and dropped for so long: a client that is cut off at once
# would lose the answer that says why
_LINGER_SECONDS = 2.0
_RETRY_AFTER = 1.0


def protocol_for(service: Service) -> type[LimitedProtocol]:
    """The protocol class of one server.

    Args:
        service: its limits are kept; refused connections are counted there.
    """
    return type("ServerProtocol", (LimitedProtocol,), {"service": service})


class LimitedProtocol(H11Protocol):
    """One connection; see :func:`protocol_for`."""

    service: Service

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = self.service.settings.limits
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection; its first request has to come soon."""
        super().connection_made(transport)
        most = self._limits.max_connections
        if len(self.connections) > most:
            message = f"more than {most} connections; try again later"
            self._refuse(ApiError(503, "too_many_connections", message, retry_after=_RETRY_AFTER))
        else:
            self._arm("head", self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives the connection."""
        for name in list(self._timers):
            self._disarm(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._refused or self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._disarm("head")
        elif "head" not in self._timers:  # the rest of a body that was refused has come
            self._arm("head", self._limits.head_seconds)
        if not self._refused and self.conn.their_state is not h11.SEND_BODY:
            self._disarm("linger")

    def on_response_complete(self) -> None:
        """The next request has to come soon, and so has the rest of a body that nobody wants."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._arm("linger", _LINGER_SECONDS)
        elif self.conn.their_state is h11.IDLE:
            self._arm("head", self._limits.head_seconds)

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        super().pause_writing()
        self._arm("send", self._limits.send_seconds)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._disarm("send")

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP: nothing is known of it, and nothing of it is told."""
        self._refuse(ApiError(400, "invalid_http", "this is not HTTP/1.1 as the server understands it"))

    def _arm(self, name: str, seconds: float) -> None:
        ends = {"head": self._head_is_late, "linger": self.transport.close, "send": self.transport.abort}
        self._disarm(name)
        self._timers[name] = self.loop.call_later(seconds, ends[name])

    def _disarm(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(ApiError(408, "head_timeout", "the request's head did not arrive in time"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        self.service.metrics.rejected.labels(error.code).inc()
        self._refused = True
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # an answer that has begun cannot become another one
            return
        self.transport.write(plain_answer(error))
        if len(self.connections) > 2 * self._limits.max_connections or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()
            self._arm("linger", _LINGER_SECONDS)


def plain_answer(error: ApiError) -> bytes:
    """An error as the bytes of a whole HTTP answer, for connections that no application ever sees."""
    body = json.dumps(error.body(), ensure_ascii=False).encode("utf-8")
    headers = {
        **SECURITY_HEADERS,
        **(error.headers or {}),
        "Cache-Control": "no-store",
        "Connection": "close",
        "Content-Length": str(len(body)),
        "Content-Type": "application/json",
    }
    head = [f"HTTP/1.1 {error.status_code} {HTTPStatus(error.status_code).phrase}"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*head, "", ""]).encode("ascii") + body
