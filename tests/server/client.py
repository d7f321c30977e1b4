"""A server in this process, without a socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient

from fenlei.server.app import create_app
from fenlei.server.batcher import BatchLimits
from fenlei.server.models import Models
from fenlei.server.service import Service
from fenlei.server.settings import Limits, ServeSettings
from tests.server.fake import fake_models

LOCAL = "http://127.0.0.1:8000"


@contextmanager
def opened(
    models: Models | None = None,
    *,
    batch: BatchLimits | None = None,
    limits: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[TestClient]:
    """A client of a server with fake classifiers, or with those that are given.

    Args:
        models: the classifiers.
        batch: the batcher's limits.
        limits: values of :class:`Limits`.
        **settings: values of :class:`ServeSettings`.
    """
    app = create_app(models or fake_models(), ServeSettings(**settings, limits=Limits(**(limits or {}))), batch)
    with TestClient(app, base_url=LOCAL) as client:
        yield client


def service_of(client: TestClient) -> Service:
    """What stands behind the routes of a client's server."""
    return client.app.state.service  # type: ignore[attr-defined]


def said(answer: Any) -> str:
    """The code of an error."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return str(error["code"])
