"""The bodies of the routes that OpenAI's clients speak to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fenlei.server.schemas import Answer, Body, Candidates, ModelName, Texts, Threshold

_IGNORED = "Accepted and ignored: a classifier's answer is one of its labels."


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn; what else it holds is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None

    @property
    def text(self) -> str:
        """Its content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    include_usage: bool = False
    """Whether the last chunk holds the usage."""


def _ignored() -> Any:
    return Field(default=None, description=_IGNORED)


class Common(Body):
    """What both routes take."""

    model: ModelName | None = None
    """Name of the classifier; the first one when left out."""
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    """Only 1: there is one answer to a text."""
    stream: bool | None = None
    """The answer as server-sent events."""
    stream_options: StreamOptions | None = None
    """How it is streamed."""
    candidates: Candidates | None = None
    """fenlei's own: choose among these labels only."""
    threshold: Threshold | None = None
    """fenlei's own: abstain below this confidence; the classifier's when left out, never when null."""
    frequency_penalty: Any = _ignored()
    logit_bias: Any = _ignored()
    max_tokens: Any = _ignored()
    metadata: Any = _ignored()
    presence_penalty: Any = _ignored()
    seed: Any = _ignored()
    service_tier: Any = _ignored()
    stop: Any = _ignored()
    store: Any = _ignored()
    temperature: Any = _ignored()
    top_p: Any = _ignored()
    user: Any = _ignored()


class ResponseFormat(Body):
    """The form of the answer; only `text`."""

    type: Literal["text"]


class ChatRequest(Common):
    """A conversation; the text of its last user message is classified."""

    messages: list[Message] = Field(min_length=1, max_length=10_000, fail_fast=True)
    """The conversation. All but the last user message is ignored: the classifier brings its own prompt."""
    logprobs: bool | None = None
    """Whether the answer says the log-probability of its label."""
    top_logprobs: int | None = Field(default=None, ge=0, le=10_000)
    """With `logprobs`: also those of so many most probable labels."""
    response_format: ResponseFormat | None = None
    """Only `{"type": "text"}`."""
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    """Only `["text"]`."""
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """Only an empty list: a classifier calls no tools."""
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    """Only an empty list."""
    function_call: Any = _ignored()
    max_completion_tokens: Any = _ignored()
    parallel_tool_calls: Any = _ignored()
    prediction: Any = _ignored()
    prompt_cache_key: Any = _ignored()
    prompt_cache_retention: Any = _ignored()
    reasoning_effort: Any = _ignored()
    safety_identifier: Any = _ignored()
    tool_choice: Any = _ignored()
    verbosity: Any = _ignored()


class CompletionRequest(Common):
    """Texts to classify; each becomes a choice."""

    prompt: str | Texts
    """A text, or several."""
    logprobs: int | None = Field(default=None, ge=0, le=10_000)
    """The log-probabilities of so many most probable labels."""
    echo: Literal[False] | None = None
    """Only false."""
    suffix: Annotated[str, Field(max_length=0)] | None = None
    """Only empty."""
    best_of: Any = _ignored()


class TokenUsage(Answer):
    """What the request took, in tokens."""

    prompt_tokens: int
    """Tokens that were read, those of the classifier's prompt included."""
    completion_tokens: int
    """One a label."""
    total_tokens: int
    """Both."""


class TopLogprob(Answer):
    """A label's log-probability."""

    token: str
    """The label."""
    logprob: float
    """Natural logarithm of its probability."""
    bytes: list[int] | None
    """The label in UTF-8."""


class TokenLogprob(TopLogprob):
    """The answer's log-probability, and those of the most probable labels."""

    top_logprobs: list[TopLogprob]
    """From high to low."""


class ChatLogprobs(Answer):
    """Log-probabilities of the answer."""

    content: list[TokenLogprob]
    """One: the label counts as one token."""
    refusal: None = None
    """Always null."""


class Verdict(Answer):
    """What a label's probability says about it; fenlei's own."""

    probability: float
    """Probability of the label."""
    confidence: float
    """What the threshold is compared with."""
    abstained: bool
    """Whether the confidence is below the threshold: the label is not to be relied on."""
    truncated: bool
    """Whether the text was too long for the model and was shortened."""


class ChatMessage(Answer):
    """The answer as a message."""

    role: Literal["assistant"] = "assistant"
    content: str
    """The label."""
    refusal: None = None
    """Always null."""


class ChatChoice(Answer):
    """The answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop"]
    fenlei: Verdict


class ChatResponse(Answer):
    """An answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class TextLogprobs(Answer):
    """Log-probabilities of the answer."""

    tokens: list[str]
    """One: the label."""
    token_logprobs: list[float]
    """Its log-probability."""
    top_logprobs: list[dict[str, float]]
    """Those of the most probable labels."""
    text_offset: list[int]
    """Always 0."""


class TextChoice(Answer):
    """The answer to one text."""

    index: int
    text: str
    """The label."""
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop"]
    fenlei: Verdict


class CompletionResponse(Answer):
    """The answers to texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage
