"""HTTP/1.1 as uvicorn speaks it, with the limits that uvicorn does not have.

uvicorn waits without end for a request's head, for the rest of a body that nobody reads, and for a client that does
not take its answer; and it answers what is no HTTP in plain text.

A connection has one of a limited number of places from its beginning, or from a request's first byte, to the end of
the answer. In between it keeps none: it may stay open, and what it asks when all places are taken is refused in words.
To close it instead would now and then cut off a client that is just asking something. Who finds all places taken may
ask how the server is, and nothing else: who watches a busy server is not to take it for a dead one.
"""

from __future__ import annotations

import asyncio
import json
import re
import select
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fenlei.server.errors import ApiError
from fenlei.server.security import SECURITY_HEADERS
from fenlei.server.service import Service
from fenlei.server.settings import Limits

# the rest of a body that was refused is read and dropped for so long: a client that is cut off at once
# would lose the answer that says why
_LINGER_SECONDS = 2.0
# open connections for each that may ask
_FULL = 8
# with as many open, one makes room for a new one that has been refused, idle or silent from the beginning for so long.
# A client that has just connected, or just been answered, may be about to ask: a busy one is seconds late
_SPARE_REFUSED_SECONDS, _SPARE_IDLE_SECONDS, _SPARE_SILENT_SECONDS = 0.2, 1.0, 2.0
_RETRY_AFTER = 1.0
_PROBE = re.compile(rb"(GET|HEAD) /(health/live|health/ready|metrics)(\?[^ ]*)? HTTP/1\.[01]\r?\n")
_LONGEST_PROBE = 200


def most_open(limits: Limits) -> int:
    """Connections that may be open before a new one needs another one's room."""
    return _FULL * limits.max_connections


def protocol_for(service: Service) -> type[LimitedProtocol]:
    """The protocol class of one server.

    Args:
        service: its limits are kept; refused connections are counted there.
    """
    return type("ServerProtocol", (LimitedProtocol,), {"service": service, "places": set()})


class LimitedProtocol(H11Protocol):
    """One connection; see :func:`protocol_for`."""

    service: Service
    places: set[LimitedProtocol]  # the connections that have one

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = self.service.settings.limits
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._refused = False
        self._unsure: bytes | None = None  # without a place: what it has sent, as long as that says too little
        self._idles = False
        self._spare_from: float | None = None  # the time from which it may be closed for another one

    @property
    def unsent(self) -> bool:
        """Whether the client has not taken all of its answers yet."""
        return self.transport.get_write_buffer_size() > 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Finds a place for the connection; its first request has to come soon."""
        super().connection_made(transport)
        if self._is_full() and not self._close_a_spare_one():
            self._refuse(self._too_many())
            return
        self._arm("head", self._limits.head_seconds)
        self._spare_from = self.loop.time() + _SPARE_SILENT_SECONDS
        self._take_place()

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives the connection."""
        for name in list(self._timers):
            self._disarm(name)
        self.places.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._refused or self.transport.is_closing():
            return
        self._spare_from = None
        if self._idles:
            self._idles = False
            self._take_place()
        if self._unsure is not None:
            data = self._unsure = self._unsure + data
            if not self._may_ask(data):
                return
            self._unsure = None
        super().data_received(data)
        if self._refused:
            return
        if self.conn.their_state is not h11.SEND_BODY:
            self._disarm("linger")
        if self.conn.their_state is not h11.IDLE:
            self._disarm("head")
        elif not self.conn.trailing_data[0]:  # the rest of a body that was refused has come
            self._idle()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif "head" not in self._timers:
            self._arm("head", self._limits.head_seconds)

    def on_response_complete(self) -> None:
        """The connection waits for its next request, or for the rest of a body that nobody wants."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._arm("linger", _LINGER_SECONDS)
        elif self.conn.their_state is h11.IDLE:
            if self.conn.trailing_data[0]:  # the next head has begun
                self._unset_keepalive_if_required()
                self._arm("head", self._limits.head_seconds)
            else:
                self._idle()

    def timeout_keep_alive_handler(self) -> None:
        """It has idled for long enough."""
        if self._is_readable():  # the next request came just now
            self.timeout_keep_alive_task = self.loop.call_later(0, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

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

    def _take_place(self) -> None:
        """A request is about to come; without a place it may only be one that asks how the server is."""
        last = len(self.places) >= self._limits.max_connections
        if last:
            self._unsure = b""
        else:
            self.places.add(self)
        if last != self.app_state.get("last", False):
            self.app_state = {**self.app_state, "last": last}

    def _idle(self) -> None:
        self.places.discard(self)
        self._idles = True
        self._spare_from = self.loop.time() + _SPARE_IDLE_SECONDS

    def _is_full(self) -> bool:
        return len(self.connections) > most_open(self._limits)

    def _close_a_spare_one(self) -> bool:
        now = self.loop.time()
        open_ = [(c._spare_from, c) for c in self.connections if isinstance(c, LimitedProtocol) and c._spare_from]
        spare = [entry for entry in open_ if entry[0] <= now]
        for _, connection in sorted(spare, key=lambda entry: entry[0]):
            if not connection._is_readable():
                connection._spare_from = None
                connection.transport.close()
                return True
        return False

    def _is_readable(self) -> bool:
        """Whether something has come that was not read yet: a busy loop is late, and the client is not to blame."""
        if not self.transport.is_reading() or not hasattr(select, "poll"):  # Windows has none
            return False
        look = select.poll()  # not select(): it takes no file above 1,023
        look.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(look.poll(0))

    def _may_ask(self, begun: bytes) -> bool:
        """Whether a request may go on that begins like this, on a connection too many; if it may not, it is told."""
        if len(self.places) < self._limits.max_connections:  # another one has gone
            self._take_place()
            return True
        if _PROBE.match(begun):
            return True
        if b"\n" in begun or len(begun) > _LONGEST_PROBE:
            self._refuse(self._too_many())
        return False

    def _too_many(self) -> ApiError:
        message = f"more than {self._limits.max_connections} connections ask something; try again later"
        return ApiError(503, "too_many_connections", message, retry_after=_RETRY_AFTER)

    def _arm(self, name: str, seconds: float) -> None:
        ends = {"head": self._head_is_late, "linger": self.transport.close, "send": self.transport.abort}
        self._disarm(name)
        self._timers[name] = self.loop.call_later(seconds, ends[name])

    def _disarm(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _head_is_late(self) -> None:
        if self._unsure or self.conn.trailing_data[0]:
            self._refuse(ApiError(408, "head_timeout", "the request's head did not arrive in time"))
        elif self._is_readable():
            self._arm("head", 0)
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        self.service.metrics.rejected.labels(error.code).inc()
        self._refused = True
        self.places.discard(self)
        self._disarm("head")
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # an answer that has begun cannot become another one
            return
        self.transport.write(plain_answer(error))
        if self._is_full() or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()
            self._arm("linger", _LINGER_SECONDS)
            self._spare_from = self.loop.time() + _SPARE_REFUSED_SECONDS


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
