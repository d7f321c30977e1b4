"""Classifiers are added and removed while the server runs; only with ``--admin``."""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from fenlei.errors import ArtifactError, ConfigError, FenleiError
from fenlei.server.body import CheckedRoute
from fenlei.server.errors import ApiError
from fenlei.server.models import UnknownModel
from fenlei.server.openapi import errors
from fenlei.server.routes_models import describe_model
from fenlei.server.schemas import AddModel, Deleted, ModelInfo
from fenlei.server.service import Service

router = APIRouter(route_class=CheckedRoute)


@router.post(
    "/v1/admin/models",
    response_model=ModelInfo,
    status_code=201,
    responses=errors(400, 403, 408, 409, 413, 415, 422, 429, 503),
    summary="Add a classifier",
    operation_id="add_model",
    tags=["admin"],
)
async def add(request: Request, body: AddModel) -> Response:
    """Loads a classifier from a folder under --admin-root; the others go on answering."""
    service: Service = request.app.state.service
    root = service.settings.admin_root
    assert root is not None, "the route is there with --admin only, and that needs a root"
    if body.name in service.models.names():
        raise ApiError(409, "model_exists", f"{body.name!r} is taken: choose another name, or remove it first")
    folder = inside(root, body.path)
    try:
        # not given up when the client goes away: half a classifier would be worse
        loading = asyncio.get_running_loop().run_in_executor(service.loading, service.models.add, body.name, folder)
        served = await asyncio.shield(loading)
    except ConfigError as error:
        raise ApiError(409, "model_conflict", _without(str(error), root)) from None
    except ArtifactError as error:
        raise ApiError(422, "not_a_classifier", _without(str(error), root), param="path") from None
    except (FenleiError, OSError) as error:
        raise ApiError(422, "cannot_load", _without(str(error), root), param="path") from None
    return JSONResponse(describe_model(served), 201)


@router.delete(
    "/v1/admin/models/{name}",
    response_model=Deleted,
    responses=errors(404, 409, 503),
    summary="Remove a classifier",
    operation_id="remove_model",
    tags=["admin"],
)
async def remove(request: Request, name: str) -> Response:
    """Takes a classifier out; requests that it has accepted are still answered."""
    service: Service = request.app.state.service
    try:
        await asyncio.to_thread(service.models.remove, name)
    except UnknownModel as error:
        raise ApiError(404, "model_not_found", str(error), param="name") from None
    except FenleiError as error:
        raise ApiError(409, "model_conflict", str(error)) from None
    return JSONResponse({"id": name, "object": "model", "deleted": True})


def inside(root: Path, path: str) -> Path:
    """The folder at ``path`` under ``root``, links followed.

    Raises:
        ApiError: it does not lie there, by its wording or by what its links lead to.
    """
    refused = ApiError(403, "path_not_allowed", "the path must lead to a folder under --admin-root", param="path")
    parts = PurePosixPath(path)
    odd = not path.isprintable() or set(path) & set('\\:*?"<>|%') or any(len(p.encode()) > 255 for p in parts.parts)
    if odd or parts.is_absolute() or ".." in parts.parts:
        raise refused
    real = root.resolve()
    try:
        found = (real / parts).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links
        raise refused from None
    # a link that is left leads in a circle
    if found == real or not found.is_relative_to(real) or found.is_symlink():
        raise refused
    return found


def _without(message: str, root: Path) -> str:
    """A message without the place of the root on this machine."""
    return message.replace(f"{root.resolve()}/", "").replace(f"{root}/", "")
