"""The ASGI application: routes, what stands around them, and how its errors look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fenlei import __version__
from fenlei.server import routes_admin, routes_classify, routes_models, routes_openai, routes_system
from fenlei.server.batcher import BatchLimits
from fenlei.server.envelope import Envelope, Gate
from fenlei.server.errors import ApiError, short
from fenlei.server.models import Models
from fenlei.server.openapi import describe
from fenlei.server.security import Guard
from fenlei.server.service import Service
from fenlei.server.settings import ServeSettings

_STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}
# no exporter is made and nothing is recorded, whatever OTEL_* variables say
_NO_TELEMETRY: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)


def create_app(models: Models | None, settings: ServeSettings, batch: BatchLimits | None = None) -> FastAPI:
    """The application; ``app.state.service`` is what stands behind its routes.

    Args:
        models: the classifiers. None: they come later, by ``app.state.service.open(models)``; until then requests to
            them get 503.
        settings: names, keys and limits.
        batch: limits of the batcher.

    Raises:
        ConfigError: settings contradict each other, or the key file is no key file.
    """
    settings.check()
    service = Service(settings, batch)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if models is not None:
            await service.open(models)
        yield
        if service.phase != "draining":
            await service.close(settings.limits.drain_seconds)

    app = FastAPI(
        title="fenlei",
        version=__version__,
        summary="Text classifiers with the probability of each label.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.state.service = service
    parts = [routes_classify, routes_openai, routes_models, routes_system]  # they are tried in this order
    for part in [*parts, *([routes_admin] if settings.admin else [])]:
        app.include_router(part.router)
    describe(app, settings, with_key=bool(service.keys))
    app.add_middleware(Gate, service=service)
    app.add_middleware(Guard, settings=settings, keys=service.keys)
    app.add_middleware(Envelope, service=service)
    _handle_errors(app, service)
    return app


def _handle_errors(app: FastAPI, service: Service) -> None:
    def answer(error: ApiError) -> Response:
        service.metrics.rejected.labels(error.code).inc()
        return error.response()

    async def ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer(error)

    async def framework(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _STATUS_CODES.get(error.status_code, "invalid_request")
        message = "no such route" if error.status_code == 404 else f"{error.detail}"
        return answer(ApiError(error.status_code, code, message, headers=error.headers))

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(invalid_request(error.errors()))

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)


def invalid_request(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's errors, in words, without the value that it is about."""
    first = errors[0]
    place = [part for part in first["loc"] if part not in ("body", "path", "query")]
    param = ".".join(str(part) for part in place) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field"
    elif not place and first["type"] in ("missing", "model_attributes_type", "model_type", "dict_type"):
        message = "expected a JSON object as body"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    said = f"{short(param, 80)}: {message}{more}" if param else f"{message}{more}"
    return ApiError(422, "invalid_request", said, param=param)
