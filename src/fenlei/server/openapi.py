"""``/openapi.json``: complete, with the limits that are in force."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from fenlei.server.schemas import ErrorResponse
from fenlei.server.settings import ServeSettings

_WHAT = {
    400: "The body is no strict JSON.",
    401: "No API key of this server.",
    403: "Another site's Host or Origin, or a path outside the folder that is allowed.",
    404: "No such classifier.",
    408: "The body did not arrive in time.",
    409: "It contradicts what is there.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "A field is wrong, or a limit is exceeded.",
    429: "The queue is full, the request waited too long in it, or too many bodies are in memory.",
    500: "A fault of the server.",
    503: "The classifiers are being loaded, the server is shutting down, or the model failed.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its description; every route can answer 403."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({403, *statuses}):
        found[status] = {"model": ErrorResponse, "description": _WHAT[status]}
        if status in (429, 503):
            found[status]["headers"] = _RETRY_AFTER
    return found


def describe(app: FastAPI, settings: ServeSettings, *, with_key: bool) -> None:
    """Replaces FastAPI's description by one with the limits, the key and no answer that cannot come.

    Args:
        app: all its routes are there.
        settings: the limits.
        with_key: whether an API key is asked for.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            _add_limits(schema, settings)
            _own_errors_only(schema)
            if with_key:
                _add_key(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_limits(schema: dict[str, Any], settings: ServeSettings) -> None:
    limits = settings.limits
    parts = schema["components"]["schemas"]
    asked = parts["ClassifyRequest"]["properties"]
    asked["text"]["maxLength"] = limits.max_text_chars
    asked["texts"]["maxItems"] = limits.max_texts
    asked["texts"]["items"]["maxLength"] = limits.max_text_chars
    parts["ChatRequest"]["properties"]["messages"]["description"] += (
        f" That one may have {limits.max_text_chars} characters at most."
    )
    for way in parts["CompletionRequest"]["properties"]["prompt"]["anyOf"]:
        if way["type"] == "array":
            way["maxItems"] = limits.max_texts
            way["items"]["maxLength"] = limits.max_text_chars
        else:
            way["maxLength"] = limits.max_text_chars


def _own_errors_only(schema: dict[str, Any]) -> None:
    """FastAPI describes its own form of a 422, which is never sent here."""
    for path in schema["paths"].values():
        for operation in path.values():
            answers = operation["responses"]
            if "HTTPValidationError" in str(answers.get("422")):
                del answers["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)


def _add_key(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    for path, operations in schema["paths"].items():
        if path.startswith("/health/"):
            continue
        for operation in operations.values():
            operation["security"] = [{"key": []}]
            operation["responses"]["401"] = {"description": _WHAT[401], "content": error}
