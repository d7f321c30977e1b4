"""Answers that are errors: one shape everywhere, the one that OpenAI's clients know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_LONGEST = 300


class ApiError(HTTPException):
    """An answer other than 2xx.

    Args:
        status: HTTP status.
        code: what happened, as a word that programs can compare.
        message: what happened, for people; cut where it is long, because part of it may come from the request.
        param: the field of the request that is wrong.
        retry_after: seconds after which the same request may succeed.
        headers: more headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        more = dict(headers or {})
        if retry_after is not None:
            more["Retry-After"] = str(max(1, math.ceil(retry_after)))
        super().__init__(status, detail=code, headers=more)
        self.code = code
        self.message = short(message, _LONGEST)
        self.param = None if param is None else short(param, 80)

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = _TYPES.get(self.status_code) or ("server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer itself."""
        return JSONResponse(self.body(), self.status_code, dict(self.headers or {}))


def short(text: str, most: int) -> str:
    """At most so many characters of a text, none of which breaks a line or cannot be encoded."""
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    plain = "".join(c if c.isprintable() else "·" for c in cut)
    return plain.encode("utf-8", "backslashreplace").decode("utf-8")
