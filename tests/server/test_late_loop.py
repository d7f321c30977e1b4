"""A loop that is late blames no client: what came while it was busy is read before the connection's time is over."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest
import uvicorn
from uvicorn.server import ServerState

from fenlei.server.app import create_app
from fenlei.server.protocol import LimitedProtocol, protocol_for
from fenlei.server.settings import Limits, ServeSettings

ASK = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
SECONDS = 0.6


def answer_of(late: str) -> bytes:
    """What a client gets that asks just before its time is over, while the loop does something else.

    Args:
        late: ``head``: it has asked nothing before; ``idle``: it has had an answer.
    """

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def scenario() -> bytes:
        loop = asyncio.get_running_loop()
        limits = Limits(head_seconds=SECONDS if late == "head" else 60)
        service = create_app(None, ServeSettings(limits=limits)).state.service
        config = uvicorn.Config(app, http="h11", log_config=None, access_log=False, lifespan="off",
                                timeout_keep_alive=SECONDS if late == "idle" else 60)  # fmt: skip
        kind, state = protocol_for(service), ServerState()
        server = await loop.create_server(lambda: kind(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
        now = threading.Event()
        got = loop.run_in_executor(None, client, server.sockets[0].getsockname(), now, late)
        while not (timers := [at for at in (end_of(c, late) for c in state.connections) if at]):
            await asyncio.sleep(0.01)
        # both the second one and the connection's timer are due when the first one ends, and in the same turn of the
        # loop: what comes in the second one cannot have been read before the timer is up
        loop.call_at(timers[0] - 0.2, time.sleep, 0.3)
        loop.call_at(timers[0] - 0.1, busy, now)
        found = await got
        server.close()
        return found

    return asyncio.run(scenario())


def end_of(connection: LimitedProtocol, late: str) -> float | None:
    timer = connection._timers.get("head") if late == "head" else connection.timeout_keep_alive_task
    return timer.when() if timer is not None else None


def busy(now: threading.Event) -> None:
    now.set()
    time.sleep(0.3)


def client(address: tuple[str, int], now: threading.Event, late: str) -> bytes:
    with socket.create_connection(address, timeout=10) as connection:
        if late == "idle":
            connection.sendall(ASK)
            while not connection.recv(65_536).endswith(b"ok"):
                pass
        now.wait(10)
        connection.sendall(ASK)
        return connection.recv(65_536)


@pytest.mark.parametrize("late", ["head", "idle"])
def test_it_is_answered(late):
    assert answer_of(late).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("late", ["head", "idle"])
def test_it_would_be_cut_off(late, monkeypatch):
    """Negative control: a loop that does not look."""
    monkeypatch.setattr(LimitedProtocol, "_is_readable", lambda self: False)
    try:
        assert answer_of(late) == b""
    except ConnectionResetError:
        pass
