"""Health, metrics, the API's description and the pages."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from fenlei.server.assets import Asset, assets, docs, playground
from fenlei.server.errors import ApiError
from fenlei.server.openapi import errors
from fenlei.server.schemas import Health
from fenlei.server.service import RETRY_AFTER, Service

router = APIRouter()


@router.get(
    "/health/live",
    response_model=Health,
    responses=errors(),
    summary="Is the process alive?",
    operation_id="live",
    tags=["operation"],
)
async def live() -> Response:
    """Always 200: while classifiers are loaded, while they work, and while the server shuts down."""
    return JSONResponse({"status": "live"})


@router.get(
    "/health/ready",
    response_model=Health,
    responses=errors(503),
    summary="Does it take requests?",
    operation_id="ready",
    tags=["operation"],
)
async def ready(request: Request) -> Response:
    """200 while requests are taken; 503 while loading, while shutting down, and when the model fails on every text."""
    service: Service = request.app.state.service
    if service.phase != "ready":
        raise ApiError(503, service.phase, f"the server is {service.phase}", retry_after=RETRY_AFTER)
    if not service.works():
        raise ApiError(503, "model_failed", "the model fails on every text; see the log", retry_after=RETRY_AFTER)
    return JSONResponse({"status": "ready"})


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors()},
    summary="Metrics for Prometheus",
    operation_id="metrics",
    tags=["operation"],
)
async def metrics(request: Request) -> Response:
    """Requests, texts, tokens, times, queue, memory."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    """What this API takes and gives."""
    return JSONResponse(request.app.openapi())


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The playground."""
    return _send(playground())


@router.get("/docs", include_in_schema=False)
async def api_docs() -> Response:
    """Swagger UI."""
    return _send(docs())


@router.get("/assets/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    """A part of a page. The name is looked up among those that are there; it never becomes a path."""
    found = assets().get(name)
    if found is None:
        raise ApiError(404, "not_found", "no such file")
    return _send(found)


def _send(asset: Asset) -> Response:
    return Response(asset.content, media_type=asset.media_type)
