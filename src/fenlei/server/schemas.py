"""What is asked and answered: the bodies of fenlei's own routes, and what all routes share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"
# where a field may be left out but not be null
_ABSENT: Any = None
# more fields than there are: one error says so, instead of one for each
_MORE_FIELDS = 100

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
# every list says no at its first wrong item: an error takes far more memory than what it is about
Candidates = Annotated[list[Label], Field(min_length=1, max_length=10_000, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
Threshold = Annotated[float, Field(ge=-1000.0, le=1.0)]


class Body(BaseModel):
    """Something that is sent to the server: no value is turned into another type, no field is made up."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, values: Any) -> Any:
        if isinstance(values, dict) and len(values) > len(cls.model_fields) + _MORE_FIELDS:
            raise ValueError(f"{len(values)} fields; there are only {len(cls.model_fields)}")
        return values


class Answer(BaseModel):
    """Something that the server sends; here for its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _one_of_two(schema: dict[str, Any]) -> None:
    schema["oneOf"] = [{"required": ["text"]}, {"required": ["texts"]}]


class ClassifyRequest(Body):
    """Texts to classify, and how."""

    model_config = ConfigDict(json_schema_extra=_one_of_two)

    text: str = Field(default=_ABSENT, json_schema_extra=_without_default)
    """One text."""
    texts: Texts = Field(default=_ABSENT, json_schema_extra=_without_default)
    """Several texts; answered in their order."""
    model: ModelName | None = None
    """Name of the classifier; the first one when left out."""
    candidates: Candidates | None = None
    """Choose among these labels only; by default all labels of the classifier."""
    top_k: int | None = Field(default=None, ge=1, le=1_000_000)
    """Only the so many most probable labels in `probabilities`."""
    threshold: Threshold | None = None
    """Abstain below this confidence; the classifier's own threshold when left out, never when null."""
    explain: bool = False
    """Also what each sentence does to the label's probability; with one text only."""

    @model_validator(mode="after")
    def _one_or_several(self) -> ClassifyRequest:
        if ("text" in self.model_fields_set) == ("texts" in self.model_fields_set):
            raise ValueError("give either text or texts")
        if self.explain and self.texts is not None and len(self.texts) > 1:
            raise ValueError("explain goes with one text")
        return self


class SentenceEffect(Answer):
    """What leaving out one sentence does to the probability of the label."""

    start: int
    """Its first character in the text."""
    end: int
    """The character after its last one."""
    text: str
    """The sentence."""
    read: str
    """Whether the model read it: `whole`, `part` or `none`."""
    change: float
    """Change of the label's probability without it; below 0 the sentence speaks for the label."""
    runner_up_change: float | None
    """The same for the second most probable label."""
    label: str
    """The most probable label without it."""


class Explanation(Answer):
    """What each sentence does to the label."""

    runner_up: str | None
    """The second most probable label."""
    grouped: bool
    """Whether neighbouring sentences were taken together because there are many."""
    sentences: list[SentenceEffect]
    """In the order of the text."""


class Result(Answer):
    """The answer for one text."""

    label: str
    """The most probable of the candidates, also where the classifier abstains."""
    probability: float
    """Its probability."""
    confidence: float
    """What the threshold is compared with, see `signal` of the model."""
    probabilities: dict[str, float]
    """Probability of each candidate, from high to low."""
    abstained: bool
    """Whether the confidence is below the threshold: the label is not to be relied on."""
    truncated: bool
    """Whether the text was too long for the model and was shortened."""
    explanation: Explanation | None = None
    """Only with `explain`."""


class Usage(Answer):
    """What the request took."""

    texts: int
    """Number of texts."""
    tokens: int
    """Number of tokens that were read, those of the prompt included."""


class Timings(Answer):
    """Where the time went, in milliseconds."""

    queue_ms: float
    """Waiting for the model."""
    score_ms: float
    """The model's work."""
    total_ms: float
    """From the request's arrival to its answer."""


class ClassifyResponse(Answer):
    """The answers of one request."""

    model: str
    """Name of the classifier."""
    results: list[Result]
    """One a text, in the order of the texts."""
    usage: Usage
    """What the request took."""
    timings: Timings
    """Where the time went."""


class ModelInfo(Answer):
    """A classifier."""

    id: str
    """The name it is asked by."""
    object: str = "model"
    """Always `model`."""
    created: int
    """When it was loaded, in seconds since 1970."""
    owned_by: str = "fenlei"
    """Always `fenlei`."""
    labels: list[str]
    """Its labels."""
    threshold: float | None
    """It abstains below this confidence; null: never."""
    signal: str
    """What its confidence is: `max_probability`, `entropy`, `answer_likelihood` or `label_likelihood`."""
    base_model: str | None
    """The model that it was tuned from."""


class ModelList(Answer):
    """All classifiers."""

    object: str = "list"
    """Always `list`."""
    data: list[ModelInfo]
    """The classifiers; the first one answers requests that name none."""


class AddModel(Body):
    """A classifier to add."""

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    """The name it is to be asked by."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=1000)]
    """Its run folder or classifier folder, from --admin-root on."""


class Deleted(Answer):
    """A classifier was removed."""

    id: str
    """Its name."""
    object: str = "model"
    """Always `model`."""
    deleted: bool = True
    """Always true."""


class Health(Answer):
    """The server's state."""

    status: str
    """`live`; `ready`, `starting` or `draining`."""


class ErrorDetail(Answer):
    """What is wrong."""

    message: str
    """For people."""
    type: str
    """`invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or `server_error`."""
    param: str | None
    """The field that is wrong."""
    code: str
    """For programs."""


class ErrorResponse(Answer):
    """Every answer that is not 2xx."""

    error: ErrorDetail
    """What is wrong."""
