"""Finds out within seconds whether a server can be reached, before a library with long timeouts is asked."""

from __future__ import annotations

import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass

CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class Host:
    """Where to connect to, and the name the user knows it by."""

    name: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.name} ({self.host}:{self.port})" if self.name else f"{self.host}:{self.port}"


def host_of(url: str, name: str = "") -> Host | None:
    """The host behind an http(s) URL, or the proxy that the environment sets for it; None for another kind of URL."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname):
        through = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if through.hostname:
            label = f"{name or parts.hostname} through the proxy"
            return Host(label, through.hostname, through.port or 8080)
    try:
        port = parts.port
    except ValueError:
        return None
    return Host(name, parts.hostname, port or (443 if parts.scheme == "https" else 80))


def reachable(hosts: Iterable[Host], seconds: float = CONNECT_SECONDS) -> set[Host]:
    """Those of the hosts that accept a TCP connection in time; all are tried at once.

    Args:
        hosts: what to try.
        seconds: the limit for all together, name look-up included.
    """
    wanted = list(hosts)
    found: set[Host] = set()

    def connect(host: Host) -> None:
        try:
            socket.create_connection((host.host, host.port), timeout=seconds).close()
        except (OSError, UnicodeError):  # UnicodeError: no possible host name
            return
        found.add(host)

    # Daemon threads: a name look-up cannot be interrupted, and must not hold up the answer.
    threads = [threading.Thread(target=connect, args=(host,), daemon=True) for host in wanted]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return set(found)
