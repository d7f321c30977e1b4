"""What the server is told: where it listens, who may ask, and its limits."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from fenlei.config_parts import Part
from fenlei.errors import ConfigError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_LEAST_KEY = 16
_KEY = re.compile(r"[\x21-\x7e]+")


class Limits(Part):
    """What a request may cost. Each limit is checked before the work that it bounds."""

    max_body_bytes: int = Field(default=2_000_000, ge=1_000)
    """Most bytes of a request body; counted while it arrives, before any of it is parsed."""
    max_held_bytes: int = Field(default=64_000_000, ge=1_000)
    """Most bytes of request bodies in memory, of all requests together; further ones get 429."""
    max_texts: int = Field(default=256, ge=1)
    """Most texts in one request."""
    max_text_chars: int = Field(default=1_000_000, ge=1)
    """Most characters of one text."""
    max_json_depth: int = Field(default=32, ge=4, le=200)
    """Deepest nesting of a request body."""
    max_connections: int = Field(default=256, ge=1)
    """Most connections that ask something at one time; further ones get 503. Eight times as many may be open."""
    idle_seconds: float = Field(default=75.0, gt=0)
    """Time that a connection stays open without a request: longer than clients and proxies keep theirs, so that it is
    they who close it. A server that closes it while a request is on its way leaves that request without an answer."""
    head_seconds: float = Field(default=15.0, gt=0)
    """Time in which the request line and headers must arrive, from the connection's first moment on."""
    body_seconds: float = Field(default=30.0, gt=0)
    """Time in which a request body must arrive."""
    send_seconds: float = Field(default=30.0, gt=0)
    """Time that a client may leave an answer unread."""
    drain_seconds: float = Field(default=30.0, ge=1)
    """Time in which accepted requests are finished after SIGTERM or Ctrl-C."""


class ServeSettings(Part):
    """Everything about the server that is no classifier.

    Raises:
        ConfigError: by :meth:`check`, where settings contradict each other or would let strangers in.
    """

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs `api_key_file` or `no_auth`."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """Port; 0 takes a free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Names beside the server's own that a request may come to: what stands in its Host header. `*`: any."""
    api_key_file: Path | None = None
    """File with the API keys, one a line; blank lines and lines that begin with # are left out."""
    no_auth: bool = False
    """Listen on an address that others reach, without a key."""
    admin: bool = False
    """Whether classifiers can be added and removed by request."""
    admin_root: Path | None = None
    """Folder in which classifiers must lie that are added by request."""
    access_log: bool = True
    """A line a request: time, client, method, route, status, milliseconds. Never what was sent."""
    limits: Limits = Limits()
    """What a request may cost."""

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        """An IPv6 address as it stands in a URL is that address."""
        return host[1:-1] if host.startswith("[") and host.endswith("]") else host

    @model_validator(mode="after")
    def _hosts_are_names(self) -> ServeSettings:
        for name in self.allowed_hosts:
            if name != "*" and not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", name):
                raise ValueError(f"allowed_hosts: {name!r} is no host name; give it as example.org, without http://")
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Refuses what would be open by accident.

        Raises:
            ConfigError: what is missing, and how to give it.
        """
        if self.no_auth and self.api_key_file is not None:
            raise ConfigError("--no-auth and --api-key-file exclude each other: leave one of the two out")
        if not self.is_local and self.api_key_file is None and not self.no_auth:
            raise ConfigError(
                f"--host {self.host}: other machines could reach the server. Give --api-key-file FILE (a key a line), "
                "or say --no-auth if everyone who reaches it may use it"
            )
        if self.admin and self.api_key_file is None:
            raise ConfigError("--admin: who may add and remove classifiers? Give --api-key-file FILE")
        if self.admin and self.admin_root is None:
            raise ConfigError("--admin: give --admin-root DIR, the folder that classifiers may be added from")
        if self.admin_root is not None and not self.admin:
            raise ConfigError("--admin-root goes with --admin")
        if self.admin_root is not None and not self.admin_root.is_dir():
            raise ConfigError(f"--admin-root {self.admin_root}: no such folder")

    def keys(self) -> tuple[str, ...]:
        """The API keys; none where no key is asked for.

        Raises:
            ConfigError: the file cannot be read, holds no key, or one that is too short.
        """
        if self.api_key_file is None:
            return ()
        try:
            lines = self.api_key_file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"--api-key-file {self.api_key_file}: {reason}") from error
        keys = []
        for number, line in enumerate(lines, 1):
            key = line.strip()
            if not key or key.startswith("#"):
                continue
            if len(key) < _LEAST_KEY or not _KEY.fullmatch(key):
                raise ConfigError(
                    f"--api-key-file {self.api_key_file}: line {number} is no key: expected {_LEAST_KEY} or more ASCII "
                    "characters without spaces, e.g. what `openssl rand -hex 24` prints"
                )
            keys.append(key)
        if not keys:
            raise ConfigError(f"--api-key-file {self.api_key_file}: holds no key; write one a line")
        return tuple(keys)
