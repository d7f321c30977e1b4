"""The server process: a socket at once, classifiers when they are loaded, and an end that loses no request."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from fenlei.errors import ConfigError
from fenlei.server.app import create_app
from fenlei.server.batcher import BatchLimits
from fenlei.server.logs import note_loop_error, set_up_logging
from fenlei.server.models import Models
from fenlei.server.protocol import LimitedProtocol, most_open, protocol_for
from fenlei.server.service import Service
from fenlei.server.settings import ServeSettings

_log = logging.getLogger("fenlei.server")
# of the time to drain, and not more than a quarter of it: for telling those who get no answer any more
_CLOSING_SECONDS = 1.0
_LOOK_SECONDS = 0.02
# open files beside the connections: weights, pages, logs
_OTHER_FILES = 256
Runs = Sequence[tuple[str | None, Path]]


def serve(
    runs: Runs,
    settings: ServeSettings,
    batch: BatchLimits,
    *,
    model: str | None = None,
    overrides: Sequence[str] = (),
    prepare: Callable[[], None] | None = None,
) -> int:
    """Serves until a signal comes.

    Args:
        runs: (name or None, run folder or classifier folder) each.
        settings: the server's.
        batch: the batcher's limits.
        model: where the base model is, if its spec no longer leads to it.
        overrides: settings of this machine for all classifiers.
        prepare: called first in the thread that loads the classifiers: for what takes time to import.

    Returns:
        The exit code: 0 when every accepted request was answered, 128 + signal when time ran out.

    Raises:
        ConfigError: settings contradict each other, or the port is taken.
        FenleiError: a classifier cannot be loaded.
    """
    app = create_app(None, settings, batch)
    service: Service = app.state.service
    listener = _listen(settings)
    set_up_logging()
    allow_open_files(most_open(settings.limits) + _OTHER_FILES)
    config = uvicorn.Config(
        app,
        http=protocol_for(service),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # who may be believed about an address is the proxy's business
        server_header=False,
        timeout_keep_alive=settings.limits.idle_seconds,  # type: ignore[arg-type]  # it takes any number
        timeout_graceful_shutdown=_closing_seconds(settings),  # type: ignore[arg-type]  # it takes any number
    )

    def load() -> Models:
        if prepare is not None:
            prepare()
        return Models.open(runs, model=model, overrides=overrides)

    server = _Server(config, service, load)
    _log.info("listening on %s", _url(settings, listener))
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(note_loop_error)
    # the loop is left as it is: waiting for its threads could take longer than there is time
    loop.run_until_complete(server.serve(sockets=[listener]))
    return server.end()


def allow_open_files(wanted: int) -> None:
    """Raises this process's own limit of open files to ``wanted``, or as far as the system lets it.

    Shells often allow 1,024, and a server that reaches it can neither take a connection to say that it is busy nor
    load a classifier.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Server(uvicorn.Server):
    """uvicorn's server, that loads classifiers after it listens, and goes on listening while it drains."""

    def __init__(self, config: uvicorn.Config, service: Service, load: Callable[[], Models]) -> None:
        super().__init__(config)
        self._service, self._load = service, load
        self._signal: int | None = None
        self._drained: bool | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tasks.append(asyncio.create_task(self._open()))

    async def on_tick(self, counter: int) -> bool:
        if self._signal is not None and len(self._tasks) < 2:
            self._tasks.append(asyncio.create_task(self._drain()))
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are answered by draining; unlike uvicorn's they are not raised again afterwards."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: no new requests, accepted ones are finished. Second: the end."""
        if self._signal is not None:
            os._exit(128 + sig)
        self._signal = sig
        self._service.phase = "draining"

    def end(self) -> int:
        """What the process ends with.

        Raises:
            FenleiError: the classifiers could not be loaded.
        """
        if self._failure is not None:
            raise self._failure
        if self._drained:
            _log.info("stopped; every accepted request was answered")
            return 0
        _log.warning("stopped; time ran out before every accepted request was answered")
        return 128 + (self._signal or signal.SIGTERM)

    async def _open(self) -> None:
        try:
            models = await _in_thread(self._load)
            await self._service.open(models)
        except BaseException as error:
            self._failure = error
            self.should_exit = True
            return
        if self._signal is None:
            _log.info("ready: %s", ", ".join(models.names()))

    async def _drain(self) -> None:
        seconds = self._service.settings.limits.drain_seconds
        _log.info("shutting down: %d requests to finish, %g seconds at most", self._service.in_flight, seconds)
        end = time.monotonic() + seconds - _closing_seconds(self._service.settings)
        try:
            done = await self._service.close(end - time.monotonic())
            self._drained = await self._sent(end) and done
        finally:
            self.should_exit = True

    async def _sent(self, end: float) -> bool:
        """Waits until clients have taken their answers, which a process that ends would cut off."""
        while any(isinstance(c, LimitedProtocol) and c.unsent for c in self.server_state.connections):
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True


def _closing_seconds(settings: ServeSettings) -> float:
    return min(_CLOSING_SECONDS, settings.limits.drain_seconds / 4)


async def _in_thread(work: Callable[[], Any]) -> Any:
    """What ``work`` returns. Its thread keeps nobody from ending: a model that is being loaded cannot be stopped."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as found:
            error = found
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop has ended
            pass

    threading.Thread(target=run, name="fenlei-load", daemon=True).start()
    return await future


def _listen(settings: ServeSettings) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, number)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; choose another --port "
            "or --host"
        ) from error
    return found


def _url(settings: ServeSettings, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}"


def finish(code: int) -> None:
    """Ends the process, whatever its threads are doing: a forward pass, or a model that is being loaded."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
