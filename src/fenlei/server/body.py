"""From the bytes of a request to a JSON value: size, time and depth are checked before anything is parsed.

A body is in memory until its request is answered, as bytes and as what became of them. So the bytes of all requests
together are bounded, too.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from fenlei.data.tables import clean_values
from fenlei.server.errors import ApiError, short
from fenlei.server.settings import Limits

# larger bodies are parsed in another thread, so that the server goes on answering
_PARSE_APART = 32_768
_MOST_DIGITS = 100
# arrays and objects of a body: small ones take thirty times the memory of their text
_MOST_NESTED = 100_000
_RETRY_AFTER = 1.0
_NO_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class BodyBudget:
    """Bytes of request bodies in memory, of all requests together.

    Args:
        most: how many there may be. A body that is alone is taken whatever its size.

    Attributes:
        held: how many there are.
    """

    def __init__(self, most: int) -> None:
        self.held, self._most = 0, most

    def take(self, count: int, own: int) -> None:
        """So many more bytes have come, for a body of which ``own`` bytes are there already.

        Raises:
            ApiError: they are too many.
        """
        if self.held > own and self.held + count > self._most:
            message = "the server holds as many request bodies as it may; try again later"
            raise ApiError(429, "too_many_bodies", message, retry_after=_RETRY_AFTER)
        self.held += count

    def free(self, count: int) -> None:
        """So many bytes are of no use any more."""
        self.held -= count


class CheckedRequest(Request):
    """A request whose body cannot be too large, too slow, too deep or no strict JSON."""

    held = 0

    def hold(self, count: int) -> None:
        """So many more bytes of the body have come.

        Raises:
            ApiError: by :class:`BodyBudget`.
        """
        self.app.state.service.bodies.take(count, self.held)
        self.held += count

    def let_go(self) -> None:
        """Nobody needs the body any more."""
        self.app.state.service.bodies.free(self.held)
        self.held = 0

    async def body(self) -> bytes:
        """The body as bytes.

        Raises:
            ApiError: it is no JSON by its own account, too large, too slow, or the client went away.
        """
        if not hasattr(self, "_body"):
            _check_headers(self)
            limits: Limits = self.app.state.service.settings.limits
            try:
                self._body = await asyncio.wait_for(_collect(self, limits.max_body_bytes), limits.body_seconds)
            except asyncio.TimeoutError:
                message = f"the body did not arrive within {limits.body_seconds:g} seconds"
                raise ApiError(408, "body_timeout", message) from None
        return self._body

    async def json(self) -> Any:
        """The body as a JSON value.

        Raises:
            ApiError: as :func:`parse_json`.
        """
        if not hasattr(self, "_json"):
            body = await self.body()
            depth = self.app.state.service.settings.limits.max_json_depth
            if len(body) > _PARSE_APART:
                self._json = await asyncio.to_thread(parse_json, body, depth)
            else:
                self._json = parse_json(body, depth)
        return self._json


class CheckedRoute(APIRoute):
    """A route whose handler gets a :class:`CheckedRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind ours."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            own = CheckedRequest(request.scope, request.receive)
            try:
                return await handle(own)
            finally:
                own.let_go()

        return checked


def parse_json(body: bytes, most_depth: int) -> Any:
    """Strict JSON: UTF-8, no key twice, no NaN, no infinity, nothing nested deeper than so many levels.

    Halves of surrogate pairs become U+FFFD, as everywhere in fenlei.

    Raises:
        ApiError: what is wrong and where; nothing of the body is repeated but a key.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not UTF-8 (byte {error.start})") from None
    if is_deeper(body, most_depth):
        raise ApiError(422, "json_too_deep", f"the body is nested deeper than {most_depth} levels")
    if body.count(b"[") + body.count(b"{") > _MOST_NESTED and _brackets(body).count(b"[") > _MOST_NESTED:
        raise ApiError(422, "json_too_large", f"the body holds more than {_MOST_NESTED} arrays and objects")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error.msg} ({where})") from None
    return clean_values(value) if _SURROGATE.search(text) else value


def is_deeper(body: bytes, most: int) -> bool:
    """Whether arrays and objects are nested deeper than ``most``; in time linear in the body, without recursion."""
    left = _brackets(body)
    for _ in range(most):
        inner = left.replace(b"[]", b"")  # one level less, everywhere
        if inner == left:
            break
        left = inner
    else:
        return bool(left)
    # brackets that do not match are the parser's to report, if it can walk down to them
    depth = 0
    for c in left:
        depth += 1 if c == ord("[") else -1
        if depth > most:
            return True
    return False


def _brackets(body: bytes) -> bytes:
    """The brackets that stand in no string, all of one kind."""
    outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    return b"".join(outside).translate(_ONE_KIND, _NO_BRACKETS)


def _check_headers(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "send JSON, with the header Content-Type: application/json")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise ApiError(415, "unsupported_content_encoding", "send the body as it is, without Content-Encoding")


async def _collect(request: CheckedRequest, most: int) -> bytes:
    too_large = ApiError(413, "body_too_large", f"the body is larger than {most} bytes")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > most):
        raise too_large
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "client_closed", "the client went away")
        piece = message.get("body", b"")
        if len(body) + len(piece) > most:  # whatever Content-Length says
            raise too_large
        request.hold(len(piece))
        body += piece
        if not message.get("more_body", False):
            return bytes(body)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ApiError(400, "duplicate_key", f"the key {short(twice, 60)!r} stands twice in one object")
    return values


def _constant(name: str) -> Any:
    raise ApiError(400, "invalid_json", f"the body is not JSON: {name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ApiError(400, "invalid_json", "the body holds a number that is too large")
    return number


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ApiError(400, "invalid_json", f"the body holds an integer of more than {_MOST_DIGITS} digits")
    return int(digits)
