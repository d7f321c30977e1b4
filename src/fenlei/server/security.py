"""Who may ask: the Host and Origin checks against pages of other sites, and the API key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fenlei.server.errors import ApiError, short
from fenlei.server.settings import LOOPBACK_NAMES, ServeSettings

# what the pages need before somebody can type a key into them, and what orchestrators ask
_OPEN = ("/", "/docs", "/openapi.json", "/health/live", "/health/ready")
_OPEN_BELOW = "/assets/"
_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104
_PORTS = {"http": 80, "https": 443}
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Lets through what comes to this server's own name, from its own pages or no page at all, with a key.

    A page of another site can make a browser send requests to ``localhost``, and by DNS rebinding even read the
    answers; then the Host header still holds the other site's name.

    Args:
        app: what is guarded.
        settings: names of the server.
        keys: API keys; without any, none is asked for.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, keys: Sequence[str]) -> None:
        self._app = app
        self._names = {name.lower().strip("[]") for name in settings.allowed_hosts}
        self._names |= {*LOOPBACK_NAMES} if settings.is_local else set()
        self._any_address = settings.host in _WILDCARDS
        if not self._any_address:
            self._names.add(settings.host.lower())
        self._digests = tuple(_digest(key) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application.

        Raises:
            ApiError: the request is not let through.
        """
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = self._check_host(headers)
            _check_origin(headers, host)
            path = scope["path"]
            if self._digests and path not in _OPEN and not path.startswith(_OPEN_BELOW):
                self._check_key(headers)
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> str:
        found = headers.getlist("host")
        if len(found) != 1:
            raise ApiError(403, "host_not_allowed", "expected one Host header")
        name = _name_of(found[0])
        # an address cannot be rebound to another site, so where the server listens on all of them any will do
        if "*" in self._names or name in self._names or (self._any_address and _is_address(name)):
            return found[0].lower()
        raise ApiError(
            403,
            "host_not_allowed",
            f"this server does not go by the name {short(name, 60)!r}; if it should, start it with --allowed-host NAME",
        )

    def _check_key(self, headers: Headers) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        # every key is compared, and digests all have one length: the time says nothing about them
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            message = "send an API key of this server, as the header Authorization: Bearer KEY"
            raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})


def _check_origin(headers: Headers, host: str) -> None:
    """A browser says which page a request comes from: only the server's own pages may ask."""
    origins = headers.getlist("origin")
    if not origins:
        return
    if len(origins) == 1 and _same_origin(origins[0].lower(), host):
        return
    raise ApiError(403, "origin_not_allowed", "requests from pages of other sites are not answered")


def _same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        own = urlsplit(f"//{host}")
        usual = _PORTS.get(parts.scheme)
        # behind a proxy that speaks TLS the server does not know its own scheme, so its name and port decide
        return (
            usual is not None
            and parts.hostname is not None
            and ((parts.hostname, parts.port or usual) == (own.hostname, own.port or usual))
        )
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """A Host header without its port; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if not set(host) & set("/@?#\\ ") else ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
