"""``POST /v1/chat/completions`` and ``POST /v1/completions``, as OpenAI's clients speak them.

The model's answer is a label, so it counts as one token whose alternatives are the other labels: ``logprobs`` are the
logarithms of the probabilities that ``/v1/classify`` gives. A streamed answer has everything in its first chunk.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from fenlei.modeling.prediction import Prediction
from fenlei.server.body import CheckedRoute
from fenlei.server.errors import ApiError
from fenlei.server.openapi import errors
from fenlei.server.routes_classify import ranked
from fenlei.server.schemas_openai import ChatRequest, ChatResponse, Common, CompletionRequest, CompletionResponse
from fenlei.server.service import Answered, Asked, Service

router = APIRouter(route_class=CheckedRoute)
# what OpenAI sends for a probability that is 0
_NEVER = -9999.0
_ERRORS = errors(400, 404, 408, 413, 415, 422, 429, 503)
_EVENT = {
    "type": "object",
    "description": "With `stream`: an event a chunk; its data is a JSON object, that of the last event is `[DONE]`.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
_EVENTS: dict[str, Any] = {"content": {"text/event-stream": {"schema": _EVENT}}}


@router.post(
    "/v1/chat/completions",
    response_model=ChatResponse,
    responses={200: _EVENTS, **_ERRORS},
    summary="Classify the last user message",
    operation_id="chat_completions",
    tags=["OpenAI"],
)
async def chat(request: Request, body: ChatRequest) -> Response:
    """The label of the last user message's text, as the answer of a chat model."""
    text = next((message.text for message in reversed(body.messages) if message.role == "user"), None)
    if text is None:
        raise ApiError(422, "no_user_message", "messages: none has the role user", param="messages")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(422, "invalid_request", "top_logprobs goes with logprobs: true", param="top_logprobs")
    answered = await _ask(request, body, [text])
    prediction = answered.predictions[0]
    logprobs = _chat_logprobs(prediction, body.top_logprobs or 0) if body.logprobs else None
    frame = _frame("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", answered)
    rest = {"logprobs": logprobs, "fenlei": _verdict(prediction)}
    message = {"role": "assistant", "content": prediction.label, "refusal": None}
    if not body.stream:
        choice = {"index": 0, "message": message, "finish_reason": "stop", **rest}
        return JSONResponse({**frame, "choices": [choice], "usage": _usage(answered)})
    last: dict[str, Any] = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    choices = [[{"index": 0, "delta": message, "finish_reason": None, **rest}], [last]]
    return _stream(frame, choices, body, answered)


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses={200: _EVENTS, **_ERRORS},
    summary="Classify prompts",
    operation_id="completions",
    tags=["OpenAI"],
)
async def completions(request: Request, body: CompletionRequest) -> Response:
    """The label of each prompt, as the completion of a language model."""
    answered = await _ask(request, body, [body.prompt] if isinstance(body.prompt, str) else body.prompt)
    frame = _frame("cmpl", "text_completion", answered)
    choices = [
        {
            "index": index,
            "text": prediction.label,
            "logprobs": None if body.logprobs is None else _text_logprobs(prediction, body.logprobs),
            "finish_reason": "stop",
            "fenlei": _verdict(prediction),
        }
        for index, prediction in enumerate(answered.predictions)
    ]
    if body.stream:
        return _stream(frame, [choices], body, answered)
    return JSONResponse({**frame, "choices": choices, "usage": _usage(answered)})


async def _ask(request: Request, body: Common, texts: list[str]) -> Answered:
    service: Service = request.app.state.service
    how = {"threshold": body.threshold} if "threshold" in body.model_fields_set else {}
    return await service.classify(request, Asked(body.model, texts, body.candidates, how))


def _frame(kind: str, name: str, answered: Answered) -> dict[str, Any]:
    identity = f"{kind}-{uuid.uuid4().hex}"
    return {"id": identity, "object": name, "created": int(time.time()), "model": answered.served.name}


def _stream(
    frame: dict[str, Any], choices: Iterable[list[dict[str, Any]]], body: Common, answered: Answered
) -> Response:
    """Server-sent events in one piece: the label was not made word by word."""
    chunks = [{**frame, "choices": some} for some in choices]
    if body.stream_options is not None and body.stream_options.include_usage:
        chunks = [{**chunk, "usage": None} for chunk in chunks]
        chunks.append({**frame, "choices": [], "usage": _usage(answered)})
    return Response("".join(_events(chunks)), media_type="text/event-stream; charset=utf-8")


def _events(chunks: list[dict[str, Any]]) -> Iterator[str]:
    for chunk in chunks:
        yield f"data: {json.dumps(chunk, ensure_ascii=False, allow_nan=False)}\n\n"
    yield "data: [DONE]\n\n"


def _usage(answered: Answered) -> dict[str, int]:
    asked, said = answered.tokens, len(answered.predictions)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _verdict(prediction: Prediction) -> dict[str, Any]:
    return {
        "probability": prediction.probability,
        "confidence": prediction.confidence,
        "abstained": prediction.abstained,
        "truncated": prediction.truncated,
    }


def _chat_logprobs(prediction: Prediction, top: int) -> dict[str, Any]:
    alternatives = [_token(label, p) for label, p in ranked(prediction)[:top]]
    answer = {**_token(prediction.label, prediction.probability), "top_logprobs": alternatives}
    return {"content": [answer], "refusal": None}


def _token(label: str, probability: float) -> dict[str, Any]:
    return {"token": label, "logprob": _log(probability), "bytes": list(label.encode("utf-8", "replace"))}


def _text_logprobs(prediction: Prediction, top: int) -> dict[str, Any]:
    return {
        "tokens": [prediction.label],
        "token_logprobs": [_log(prediction.probability)],
        "top_logprobs": [{label: _log(p) for label, p in ranked(prediction)[:top]}],
        "text_offset": [0],
    }


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else _NEVER
