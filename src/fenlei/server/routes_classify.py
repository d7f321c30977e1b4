"""``POST /v1/classify``."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from fenlei.modeling.prediction import Prediction
from fenlei.server.body import CheckedRoute
from fenlei.server.openapi import errors
from fenlei.server.schemas import ClassifyRequest, ClassifyResponse
from fenlei.server.service import Answered, Asked, Service

router = APIRouter(route_class=CheckedRoute)


@router.post(
    "/v1/classify",
    response_model=ClassifyResponse,
    responses=errors(400, 404, 408, 413, 415, 422, 429, 503),
    summary="Classify texts",
    operation_id="classify",
    tags=["classify"],
)
async def classify(request: Request, body: ClassifyRequest) -> Response:
    """The label of each text, with the probability of every candidate."""
    service: Service = request.app.state.service
    texts = [body.text] if body.texts is None else body.texts
    how = {"threshold": body.threshold} if "threshold" in body.model_fields_set else {}
    asked = Asked(body.model, texts, body.candidates, how)
    answered = await (service.explain if body.explain else service.classify)(request, asked)
    results = [result(prediction, body.top_k) for prediction in answered.predictions]
    if answered.explanation is not None:
        found = answered.explanation.to_dict()
        results[0]["explanation"] = {key: found[key] for key in ("runner_up", "grouped", "sentences")}
    return JSONResponse(
        {
            "model": answered.served.name,
            "results": results,
            "usage": {"texts": len(results), "tokens": answered.tokens},
            "timings": timings(request, answered),
        }
    )


def result(prediction: Prediction, top_k: int | None) -> dict[str, Any]:
    """A prediction as it is sent."""
    return {
        "label": prediction.label,
        "probability": prediction.probability,
        "confidence": prediction.confidence,
        "probabilities": dict(ranked(prediction)[:top_k]),
        "abstained": prediction.abstained,
        "truncated": prediction.truncated,
    }


def ranked(prediction: Prediction) -> list[tuple[str, float]]:
    """Labels and probabilities from high to low; the label itself is first, also among equals."""
    return sorted(prediction.probabilities.items(), key=lambda item: (-item[1], item[0] != prediction.label))


def timings(request: Request, answered: Answered) -> dict[str, float]:
    """Where the time went."""
    return {
        "queue_ms": round(1000 * answered.queue_seconds, 3),
        "score_ms": round(1000 * answered.score_seconds, 3),
        "total_ms": round(1000 * (time.monotonic() - request.state.started), 3),
    }
