"""``fenlei serve``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
# options whose name is not that of their field
_FIELDS = {"allowed_host": "allowed_hosts", "max_queue_seconds": "max_queue_s", "queue_timeout": "queue_timeout_s"}
_NAMED = re.compile(r"([A-Za-z0-9._-]{1,64})=(.+)", re.DOTALL)


def serve(
    context: typer.Context,
    runs: list[str] = typer.Argument(
        ..., metavar="[NAME=]RUN...", help="Run folders or classifier folders; the first one answers by default."
    ),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on; any but this machine's needs a key."),
    port: int = typer.Option(8000, "--port", min=0, max=65535, help="Port; 0 takes a free one."),
    model: str | None = typer.Option(None, "--model", metavar="SPEC", help="Where the base model is now."),
    settings: list[str] | None = typer.Option(
        None, "--set", metavar="KEY=VALUE", help="e.g. model.device=cpu, calibration.threshold=0.8; repeatable."
    ),
    offline: bool = typer.Option(False, "--offline", help="Never touch the network for models."),
    api_key_file: Path | None = typer.Option(
        None, "--api-key-file", metavar="FILE", help="API keys, one a line; requests need one of them."
    ),
    no_auth: bool = typer.Option(False, "--no-auth", help="No key, though other machines can reach the server."),
    allowed_host: list[str] | None = typer.Option(
        None, "--allowed-host", metavar="NAME", help="A name the server goes by (Host header); repeatable; *: any."
    ),
    admin: bool = typer.Option(False, "--admin", help="Let requests with a key add and remove classifiers."),
    admin_root: Path | None = typer.Option(
        None, "--admin-root", metavar="DIR", help="Folder that classifiers may be added from."
    ),
    access_log: bool = typer.Option(True, "--access-log/--no-access-log", help="A line a request, never its content."),
    max_body_bytes: int = typer.Option(2_000_000, "--max-body-bytes", min=1000, help="Most bytes of a request body."),
    max_held_bytes: int = typer.Option(64_000_000, "--max-held-bytes", min=1000, help="Most bytes of all bodies."),
    max_texts: int = typer.Option(256, "--max-texts", min=1, help="Most texts in a request."),
    max_text_chars: int = typer.Option(1_000_000, "--max-text-chars", min=1, help="Most characters of a text."),
    max_json_depth: int = typer.Option(32, "--max-json-depth", min=4, max=200, help="Deepest nesting of a body."),
    max_connections: int = typer.Option(256, "--max-connections", min=1, help="Most connections that ask at one time."),
    idle_seconds: float = typer.Option(75.0, "--idle-seconds", help="Time a connection stays open without a request."),
    head_seconds: float = typer.Option(15.0, "--head-seconds", help="Time for a request's head to arrive."),
    body_seconds: float = typer.Option(30.0, "--body-seconds", help="Time for a request's body to arrive."),
    send_seconds: float = typer.Option(30.0, "--send-seconds", help="Time that a client may leave an answer unread."),
    drain_seconds: float = typer.Option(30.0, "--drain-seconds", help="Time to finish requests after SIGTERM."),
    max_queue_texts: int = typer.Option(4096, "--max-queue-texts", min=1, help="Most texts that wait."),
    max_queue_tokens: int = typer.Option(1 << 20, "--max-queue-tokens", min=1, help="Most tokens that wait."),
    max_queue_seconds: float = typer.Option(
        4.0, "--max-queue-seconds", min=0, help="Refuse what would wait longer than this; 0: only the limits above."
    ),
    queue_timeout: float = typer.Option(30.0, "--queue-timeout", help="Give up what has waited for this many seconds."),
    batch_tokens: int | None = typer.Option(None, "--batch-tokens", min=16, help="Most tokens in a forward pass."),
    max_wait_ms: float = typer.Option(0.0, "--max-wait-ms", help="How long an idle model waits for more texts."),
) -> None:
    """Serve classifiers over HTTP: /v1/classify, OpenAI's chat and completions, a page to try them, metrics.

    Exit code 0 after SIGTERM or Ctrl-C when every accepted request was answered; a second signal ends at once.
    """
    from fenlei.artifact import find_classifier
    from fenlei.config import RunConfig

    _need_packages()
    named = [_named(run) for run in runs]
    for _, folder in named:
        find_classifier(folder)
    overrides = [*(settings or ()), *(["model.offline=true"] if offline else [])]
    RunConfig.build({}, overrides=overrides)  # a misspelt setting is told before the port is taken
    _serve(named, context.params, model, overrides)


def _serve(
    runs: list[tuple[str | None, Path]], options: dict[str, Any], model: str | None, overrides: list[str]
) -> None:
    from fenlei.cli.common import quiet_libraries
    from fenlei.server import run
    from fenlei.server.batcher import BatchLimits
    from fenlei.server.settings import Limits, ServeSettings

    given = {_FIELDS.get(name, name): value for name, value in options.items()}
    given["allowed_hosts"] = tuple(given["allowed_hosts"] or ())
    given["max_queue_s"] = given["max_queue_s"] or None
    given["limits"] = _checked(Limits, given)
    checked, batch = _checked(ServeSettings, given), _checked(BatchLimits, given)
    checked.check()
    code = run.serve(runs, checked, batch, model=model, overrides=overrides, prepare=quiet_libraries)
    run.finish(code)


def _checked(kind: Any, given: dict[str, Any]) -> Any:
    """Settings from those of the options that belong to them; what does not fit is told by the name of its option."""
    from pydantic import ValidationError

    from fenlei.errors import ConfigError

    try:
        return kind(**{name: given[name] for name in kind.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1]) if first["loc"] else ""
        option = {field: option for option, field in _FIELDS.items()}.get(name, name)
        where = f"--{option.replace('_', '-')}: " if option else ""
        raise ConfigError(f"{where}{str(first['msg']).removeprefix('Value error, ')}") from None


def _named(run: str) -> tuple[str | None, Path]:
    """(name, folder) of ``NAME=RUN``, or (None, folder) of ``RUN``; a folder that is there is never split."""
    found = _NAMED.fullmatch(run)
    if found is None or Path(run).exists():
        return None, Path(run)
    return found[1], Path(found[2])


def _need_packages() -> None:
    from importlib.util import find_spec

    from fenlei.errors import need_extra

    for package in _PACKAGES:
        if find_spec(package) is None:
            raise need_extra(package, "serve")
