"""``GET /v1/models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from fenlei.server.models import Served
from fenlei.server.openapi import errors
from fenlei.server.schemas import ModelInfo, ModelList
from fenlei.server.service import Service

router = APIRouter()


@router.get(
    "/v1/models",
    response_model=ModelList,
    responses=errors(503),
    summary="List the classifiers",
    operation_id="list_models",
    tags=["models"],
)
async def models(request: Request) -> Response:
    """All classifiers; the first one answers requests that name none."""
    service: Service = request.app.state.service
    return JSONResponse(
        {"object": "list", "data": [describe_model(service.get(name)) for name in service.models.names()]}
    )


@router.get(
    "/v1/models/{name}",
    response_model=ModelInfo,
    responses=errors(404, 503),
    summary="Describe a classifier",
    operation_id="get_model",
    tags=["models"],
)
async def model(request: Request, name: str) -> Response:
    """One classifier."""
    service: Service = request.app.state.service
    return JSONResponse(describe_model(service.get(name)))


def describe_model(served: Served) -> dict[str, Any]:
    """A classifier as it is listed."""
    classifier = served.classifier
    base = classifier.manifest.get("base_model") or {}
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "fenlei",
        "labels": list(classifier.labels.names),
        "threshold": classifier.calibration.threshold,
        "signal": classifier.calibration.signal,
        "base_model": _shown_name(base),
    }


def _shown_name(base: dict[str, Any]) -> str | None:
    """What a base model is called; where it lies on this machine is nobody's business."""
    spec = base.get("spec")
    return Path(spec).name if spec and base.get("source") in ("folder", "gguf") else spec
