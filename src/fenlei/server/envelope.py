"""What stands around every request: headers of the answer, a line in the log, a place in the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fenlei.server.errors import ApiError
from fenlei.server.security import SECURITY_HEADERS
from fenlei.server.service import Service

access_log = logging.getLogger("fenlei.access")
error_log = logging.getLogger("fenlei.server")

ROUTES = (
    "/", "/docs", "/openapi.json", "/health/live", "/health/ready", "/metrics", "/v1/classify",
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/admin/models",
)  # fmt: skip
_BELOW = {
    "/v1/models/": "/v1/models/{name}",
    "/v1/admin/models/": "/v1/admin/models/{name}",
    "/assets/": "/assets/{name}",
}
_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
# how long the rest of a body is read of which nobody wants to know
_LINGER_SECONDS = 2.0
_MORE_HEADERS = tuple(
    (name.lower().encode(), value.encode()) for name, value in {**SECURITY_HEADERS, "Cache-Control": "no-store"}.items()
)
# what is asked of the classifiers waits until they are there
_GATED = "/v1/"


def route_of(path: str) -> str:
    """The route that a path belongs to, for logs and metrics: never a word of the request's own."""
    if path in ROUTES:
        return path
    return next((route for start, route in _BELOW.items() if path.startswith(start)), "other")


class Envelope:
    """The outermost part of the application.

    Args:
        app: the rest.
        service: counts, and says whether classifiers may be asked.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = scope.setdefault("state", {})["started"] = time.monotonic()
        status = 0
        unread = True
        # what is there for GET is there for HEAD; uvicorn leaves the body out
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                last = self._service.phase == "draining" or scope["state"].get("last", False)
                if last and unread:
                    await _drop(receiving)
                message = {**message, "headers": _with_headers(message.get("headers", ()), last)}
            await send(message)

        try:
            await self._app(inner, receiving, sending)
        except ApiError as error:
            await self.refuse(error, scope, receive, sending)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # libraries in Rust panic with what is no Exception
            _log(error)
            if not status:
                failed = ApiError(500, "internal_error", "this is a fault of the server; its log says more")
                await self.refuse(failed, scope, receive, sending)
        finally:
            self._note(scope, status, time.monotonic() - start)

    async def refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends an error and counts it."""
        self._service.metrics.rejected.labels(error.code).inc()
        await error.response()(scope, receive, send)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope["path"])
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics = self._service.metrics
        metrics.requests.labels(method, route, str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        if self._service.settings.access_log:
            client = (scope.get("client") or ("-",))[0]
            access_log.info("%s %s %s %d %.0f ms", client, method, route, status, 1000 * seconds)


class Gate:
    """Counts requests to the classifiers, and refuses them while they are not to be had."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application.

        Raises:
            ApiError: the classifiers are being loaded, or the server is shutting down.
        """
        if scope["type"] != "http" or not scope["path"].startswith(_GATED):
            await self._app(scope, receive, send)
            return
        self._service.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._service.leave()


def _with_headers(headers: Iterable[tuple[bytes, bytes]], last: bool) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with those of every answer; after the ``last`` one the connection is closed."""
    found = list(headers)
    there = {name.lower() for name, _ in found}
    more = [(name, value) for name, value in _MORE_HEADERS if name not in there]
    return [*found, *more, (b"connection", b"close")] if last and b"connection" not in there else [*found, *more]


async def _drop(receive: Receive) -> None:
    """Reads what is left of a body: a client that is cut off in the middle of it would lose the answer."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_rest(receive), _LINGER_SECONDS)


async def _rest(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


def _log(error: BaseException) -> None:
    """Where and what kind an error was; its message may hold what was sent."""
    error_log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
