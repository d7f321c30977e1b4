"""The base of a group of settings, and the groups that :mod:`fenlei.config` has no room for."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Signal = Literal["max_probability", "entropy", "answer_likelihood", "label_likelihood"]
Method = Literal["none", "temperature", "bias"]


class Part(BaseModel):
    """A group of settings: frozen, no unknown keys, the docstring under a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CalibrationConfig(Part):
    """How probabilities are corrected on dev rows, and when the classifier declines to answer."""

    method: Method = "temperature"
    """`temperature`: scores are divided by one number fitted on dev; `bias`: and one number a label is added, where
    each label has 10 dev rows; `none`: the model's own probabilities."""
    signal: Signal = "label_likelihood"
    """What a row's confidence is: `label_likelihood` (probability of this very answer among all that the model could
    say: low also where no candidate fits), `max_probability` (among the candidates), `entropy`, or `answer_likelihood`
    (how much the model wants to answer with a candidate at all)."""
    target_precision: float | None = Field(default=None, gt=0.0, le=1.0)
    """Abstain from as few rows as leave this share of right answers among the answered dev rows."""
    target_coverage: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Abstain from the least confident rows so that this share of the dev rows is answered."""
    threshold: float | None = None
    """Abstain below this confidence; when a classifier is loaded, in place of its own threshold (null: never)."""
    min_rows: int = Field(default=20, ge=2)
    """With fewer dev rows nothing is fitted."""

    @model_validator(mode="after")
    def _one_rule(self) -> CalibrationConfig:
        rules = ("target_precision", "target_coverage", "threshold")
        given = [name for name in rules if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one, or none to answer every row")
        return self


class SpeedConfig(Part):
    """What makes training fast. Each switch leaves the mathematics as it is; they exist for measuring."""

    packed: bool = True
    """Rows of a forward pass one after the other, without padding; off: padded side by side."""
    share_prefix: bool = True
    """What the rows of a forward pass have in common at their beginning is computed once."""
    fused_lora: bool = True
    """One product for adapters that share their input; less is stored for the backward pass."""
    fused_norm: bool = True
    """The same for normalisation layers."""
    last_layer: bool = True
    """The last layer's MLP at answer positions only."""
    allocator: bool = True
    """Freed memory is kept for the next step instead of being given back to the system (Linux, CPU)."""
    adapter_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the adapter's products over bfloat16 weights; `auto`: bfloat16 where the device computes in it,
    else float32. The adapter's weights and their updates are float32 in any case."""
    attention: Literal["auto", "flash", "sdpa"] = "auto"
    """On a GPU: `flash`: FlashAttention on packed rows (torch 2.13 or package flash-attn), `auto`: if it can be had."""
    kernels: Literal["auto", "liger", "torch"] = "auto"
    """On a GPU, and with `fused_norm`: `liger`: the package liger-kernel for norms, positions and activation."""

    @model_validator(mode="after")
    def _asked_for_what_is_used(self) -> SpeedConfig:
        if self.attention == "flash" and not self.packed:
            raise ValueError("speed.attention=flash is for packed rows; set speed.packed=true or speed.attention=auto")
        if self.kernels == "liger" and not self.fused_norm:
            raise ValueError("speed.kernels=liger replaces norms too; set speed.fused_norm=true or speed.kernels=auto")
        return self


class ReportConfig(Part):
    """What the report cannot measure."""

    hourly_price: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Price of an hour of this machine: the report then says what a million texts cost, on a machine that does nothing
    else and at the speed that was measured; null: no price."""
    currency: str = Field(default="", max_length=12)
    """What the price is in, e.g. `CNY`."""

    @model_validator(mode="after")
    def _a_currency_of_something(self) -> ReportConfig:
        if self.currency and self.hourly_price is None:
            raise ValueError("report.currency without a price says nothing; set report.hourly_price too")
        return self


class EvaluationConfig(Part):
    """What the tuned model is compared with at the end of a run."""

    ladder: tuple[Literal["majority", "tfidf", "zero_shot", "few_shot"], ...] = (
        "majority",
        "tfidf",
        "zero_shot",
        "few_shot",
    )
    """Baselines on the test rows (dev rows without a test set): the most frequent class, TF-IDF with a linear model,
    the model before tuning without and with solved examples in its prompt; `[]` for none."""
    ladder_rows: int | None = Field(default=200, ge=2)
    """Most rows that the model before tuning is asked, drawn by chance; fewer, or none, after a short training (each of
    the two costs 4 % of it at most); null: all rows, whatever it costs."""
    few_shot: int = Field(default=2, ge=1)
    """Solved examples a label in the few-shot prompt, if they fit into `few_shot_tokens`."""
    few_shot_tokens: int = Field(default=2048, ge=64)
    """Most tokens of all solved examples; they come on top of prompt.max_length."""
    bootstrap: int = Field(default=1000, ge=100)
    """Bootstrap samples of the ladder's confidence intervals."""
