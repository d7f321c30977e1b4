"""Every setting of a run: typed, frozen, and complete.

The docstring under a field is its help text. A run folder's ``config.yaml`` holds the fully resolved configuration:
nothing is defaulted silently when it is read again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from fenlei.config_parts import CalibrationConfig, EvaluationConfig, Part, ReportConfig
from fenlei.config_parts import SpeedConfig as SpeedConfig
from fenlei.errors import ConfigError

PresetName = Literal["default", "tutorial"]
# the default of train.learning_rate by lora.method, where it is another one
LEARNING_RATES = {"rslora": 2e-4, "pissa": 2e-4, "full": 2e-5}
_GROUPS = (
    "data", "model", "prompt", "lora", "train", "speed", "tracking", "inference", "calibration", "evaluation", "report",
)  # fmt: skip


class DataConfig(Part):
    """Where the labelled texts are and how their columns are read."""

    train: str | None = None
    """Training data: a file, a folder, or a data set id (`ms:ORG/NAME`, `hf:ORG/NAME`)."""
    dev: str | None = None
    """Development data, used for choosing; split from train when not given."""
    test: str | None = None
    """Test data, used once, for reporting."""
    text_column: str | None = None
    """Column with the text; detected when not given."""
    label_column: str | None = None
    """Column with the label; detected when not given."""
    candidates_column: str | None = None
    """Column with the labels that a row may take; detected when not given."""
    id_column: str | None = None
    """Column with the row's own id; `id` is used when there is one."""
    candidates: Literal["row", "all"] = "row"
    """`row`: each row's own candidates where it has them; `all`: the whole label set for every row."""
    labels: tuple[str, ...] | None = None
    """The labels in the order you want; otherwise they are collected from the data in order of appearance."""
    descriptions: dict[str, str] = Field(default_factory=dict)
    """What a label means (label -> text); shown to the model by the presets `zh` and `en`."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """Other spellings in the data (spelling -> label)."""
    dev_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the training rows split off as dev set, stratified and seeded, when no dev set is given."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """`stop`: list the first bad rows and end; `skip`: write them to rejected.jsonl and go on."""
    encoding: str | None = None
    """Text encoding of the files; recognised when not given."""
    split: str | None = None
    """Split to take from a hub data set (default: train for `data.train`, validation / test for the others)."""


class ModelConfig(Part):
    """Which model is tuned, and how its weights are held."""

    spec: str = "qwen2.5-coder-0.5b"
    """Model: `ORG/NAME`, `ms:ORG/NAME[@REV]`, `hf:ORG/NAME[@REV]`, a folder, a .gguf file, or a built-in name."""
    offline: bool = False
    """Never touch the network: take the model from local caches or fail."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: a model that needs it is refused."""
    cache_dir: str | None = None
    """Where fetched and converted models are kept (default: ~/.cache/fenlei)."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the base weights; `auto` is bfloat16 where the device computes in it, else float32."""
    quantization: Literal["none", "nf4"] = "none"
    """`nf4`: base weights in 4 bits (QLoRA, with the package bitsandbytes): a third of the memory, slower."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`."""


class PromptConfig(Part):
    """How a text becomes a prompt."""

    preset: Literal["zh", "en", "tutorial-zh", "custom"] = "zh"
    """Wording of the prompt; `custom` needs `prompt.user`."""
    system: str | None = None
    """Jinja template of the system turn (`candidates`, `options`, `descriptions`); only with preset `custom`."""
    user: str | None = None
    """Jinja template of the user turn; must contain `{{ text }}` exactly once; only with preset `custom`."""
    max_length: int = Field(default=384, ge=16)
    """Most tokens of prompt and answer together; only the text is shortened to fit."""
    truncation: Literal["head", "tail", "head_tail"] = "head"
    """Which part of a text that is too long is kept."""
    answer: Literal["name", "code"] = "name"
    """What the model answers with: the label's `name`, or a `code` of one token (A, B, ...) that the prompt lists
    beside each label."""

    @model_validator(mode="after")
    def _custom_needs_user(self) -> PromptConfig:
        if self.preset == "custom" and not self.user:
            raise ValueError("preset 'custom' needs a template in prompt.user")
        if self.preset != "custom" and (self.system is not None or self.user is not None):
            raise ValueError("prompt.system and prompt.user are used only with prompt.preset=custom")
        if self.preset == "tutorial-zh" and self.answer == "code":
            # its wording is the tutorial's letter for letter and asks for the type itself: with codes it would be
            # another preset under the same name
            raise ValueError(
                "prompt.answer=code: the preset tutorial-zh has no place for codes; take prompt.preset=zh, en or custom"
            )
        return self


class LoraConfig(Part):
    """What is trained: an adapter on the frozen model, or the model's own weights."""

    method: Literal["lora", "rslora", "dora", "pissa", "full"] = "lora"
    """`lora`; `rslora`: its scale is alpha / sqrt(r), for large ranks; `dora`: size and direction of a weight apart,
    slower; `pissa`: begins as the principal part of each weight; `full`: the model's own weights, at 16 bytes of memory
    each."""
    layers: str | None = None
    """Decoder layers that are tuned: `12-23` (counted from 0, both included) or `last:8`; all when not given."""
    r: int = Field(default=8, ge=1)
    """Rank of the adapter matrices. `full` has none."""
    alpha: float = Field(default=16, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Linear layers that get an adapter."""

    @model_validator(mode="after")
    def _layers_are_a_range(self) -> LoraConfig:
        if self.layers is None or re.fullmatch(r"last:[1-9]\d*", self.layers):
            return self
        ends = re.fullmatch(r"(\d+)-(\d+)", self.layers)
        if ends is None or int(ends[1]) > int(ends[2]):
            raise ValueError(f"layers={self.layers!r}: expected a range such as 12-23, or last:8")
        return self


class TrainConfig(Part):
    """How the adapter is trained."""

    epochs: float = Field(default=2.0, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, whatever `epochs` says."""
    learning_rate: float = Field(default=4e-4, gt=0)
    """Peak learning rate; by default 2e-4 with `lora.method=rslora` or `pissa`, whose steps go further, and 2e-5 with
    `full`. Measured with a model of 0.5 B parameters (docs/benchmarks.md)."""
    batch_size: int = Field(default=16, ge=1)
    """Rows an optimizer step, over all devices."""
    micro_batch_tokens: int | None = Field(default=None, ge=16)
    """Most tokens in one forward pass, shared ones counted once; by default 1152 on CPU, and on a GPU what a dry run
    on the longest rows finds to fit. Changes memory and speed, not the result of a step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Most rows in one forward pass; by default as many as `micro_batch_tokens` allows."""
    oversample: float = Field(default=0.5, ge=0.0, le=1.0)
    """Evens out unequal classes: a class of n rows is seen (largest / n) ** oversample times an epoch. 0: off."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Weight decay of AdamW."""
    warmup_fraction: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises to its peak."""
    scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    logging_steps: int = Field(default=10, ge=1)
    """A log line every so many steps."""
    save_steps: int = Field(default=50, ge=1)
    """A checkpoint every so many steps."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many checkpoints are kept beside the best one."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Dev macro-F1 every so many steps; by default once an epoch, in a long one every 100 steps, or less often where
    the dev set is so large that scoring it would take more than about a tenth of the time."""
    early_stopping: int = Field(default=3, ge=0)
    """End after so many dev evaluations without a better macro-F1; 0 never."""
    seed: int = Field(default=42, ge=0)
    """Seed of the split, the order of rows, the adapter's start and dropout."""


class TrackingConfig(Part):
    """Where the course of a run is shown. `metrics.jsonl` in the run folder is always written."""

    trackers: tuple[Literal["swanlab", "trackio", "tensorboard"], ...] = ("swanlab",)
    """Trackers beside metrics.jsonl; `[]` for none."""
    mode: Literal["auto", "online", "local", "offline", "disabled"] = "auto"
    """SwanLab's mode. `auto`: SWANLAB_MODE, else online with a key and a network, else local, else offline."""
    project: str = "fenlei"
    """Project name."""
    experiment: str | None = None
    """Experiment name; by default the run folder's name."""


class InferenceConfig(Part):
    """How labels are scored. Apart from `answers`, nothing here changes more than the rounding of a result."""

    batch_tokens: int | None = Field(default=None, ge=16)
    """Most tokens in one forward pass, shared ones left out; by default 1024 on CPU (fastest there), 16384 on a GPU."""
    answers: Literal["decisive", "complete"] = "decisive"
    """`decisive`: a label's score is the probability that the answer begins like no other label's; `complete`: that it
    is exactly the label, a token or more of work a label."""
    strict: bool = False
    """Each row in a forward pass of its own, so that its result is the same to the bit whatever its neighbours are."""
    packed: bool = True
    """Rows of a forward pass one after the other, without padding; off: padded side by side."""
    share_prefix: bool = True
    """What prompts have in common at their beginning is computed once."""
    fused: bool = True
    """Adapter layers that share their input in one product; the last layer's MLP and the head where they are read."""
    prepacked: bool = True
    """Weights laid out once for the processor's bfloat16 instructions: a second copy, if it is at most an eighth of the
    memory; same results to the bit. Needs `fused`."""


class RunConfig(Part):
    """All settings of a run."""

    preset: PresetName = "default"
    """`tutorial` takes every value of the Qwen1.5 tutorial's script; `default` is ours, chosen by measuring."""
    out: str | None = None
    """Run folder; by default runs/<training file>-<time>."""
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    prompt: PromptConfig = Field(default_factory=PromptConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    speed: SpeedConfig = Field(default_factory=SpeedConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    @model_validator(mode="after")
    def _train_suits_method(self) -> RunConfig:
        method = self.lora.method
        if method == "pissa" and self.train.weight_decay:
            raise ValueError(
                "train.weight_decay pulls an adapter towards 0, but lora.method=pissa begins with a part of the model "
                "itself; set train.weight_decay=0"
            )
        if method in ("full", "pissa") and self.model.quantization != "none":
            raise ValueError(
                f"lora.method={method} reads and writes whole weights, not 4-bit ones; take lora, rslora or dora, or "
                "model.quantization=none"
            )
        if method == "full" and self.model.dtype == "float16":
            raise ValueError("lora.method=full cannot train in float16; set model.dtype=bfloat16 or float32")
        if method in LEARNING_RATES and "learning_rate" not in self.train.model_fields_set:
            train = self.train.model_copy(update={"learning_rate": LEARNING_RATES[method]})
            object.__setattr__(self, "train", train)  # frozen for its users; here it is still being made
        return self

    @classmethod
    def build(cls, values: Mapping[str, Any] | None = None, *, overrides: Sequence[str] = ()) -> RunConfig:
        """Merges preset < ``values`` < ``key=value`` overrides into one checked configuration.

        Args:
            values: nested settings, e.g. from a file or from command-line options.
            overrides: ``"part.field=value"`` strings; the value is read as YAML.

        Raises:
            ConfigError: an unknown key (the nearest known one is named) or a value that does not fit.
        """
        merged: dict[str, Any] = _deep_copy(values or {})
        for item in overrides:
            _apply_override(merged, item)
        preset = merged.get("preset", "default")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}; found {preset!r}")
        return cls._validated(_merge(PRESETS[preset], merged))

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> RunConfig:
        """Reads a YAML file.

        Raises:
            ConfigError: no such file, no YAML mapping, or settings that do not fit.
        """
        return cls.build(read_yaml(path), overrides=overrides)

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy with some settings changed, checked again."""
        return self._validated(_merge(self.model_dump(), _deep_copy(values)))

    def to_yaml(self) -> str:
        """The complete configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), allow_unicode=True, sort_keys=False)

    @classmethod
    def _validated(cls, values: Mapping[str, Any]) -> RunConfig:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None


# Every value of the tutorial's script; its two faults (the lost answer and the wrong end token) are not copied.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "tutorial": {
        "model": {"spec": "Qwen/Qwen1.5-7B-Chat", "dtype": "bfloat16"},
        "data": {"candidates": "row"},
        "prompt": {"preset": "tutorial-zh", "max_length": 384, "truncation": "head"},
        "lora": {"r": 8, "alpha": 32, "dropout": 0.1},
        "train": {
            "epochs": 3.0,
            "learning_rate": 1e-4,
            "batch_size": 16,
            "micro_batch_size": 4,
            "oversample": 0.0,
            "warmup_fraction": 0.0,
            "scheduler": "linear",
            "gradient_checkpointing": True,
            "logging_steps": 10,
            "save_steps": 100,
            "early_stopping": 0,
        },
        "tracking": {"trackers": ["swanlab"], "project": "hf-visualization"},
    },
}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: the file is missing, is not UTF-8 YAML, or holds no mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings as `key: value`, found {type(values).__name__}")
    return values


def _apply_override(target: dict[str, Any], item: str) -> None:
    key, sep, raw = item.partition("=")
    key = key.strip()
    if not sep or not key:
        raise ConfigError(f"expected key=value (e.g. train.learning_rate=2e-4), found {item!r}")
    try:
        value = _read_value(key, raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: cannot read the value {raw!r}: {error}") from None
    *parts, last = key.split(".")
    node = target
    for part in parts:
        child = node[part] = {} if node.get(part) is None else node[part]
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {part!r} is a value, not a group of settings")
        node = child
    node[last] = value


def _read_value(key: str, raw: str) -> Any:
    """Reads the value of an override: as YAML, but a setting that is text stays the text that was typed.

    YAML would make a mapping of a template's braces, and ``true`` of the label ``yes``.
    """
    kind = str(_annotation(key))
    if kind in ("<class 'str'>", "str | None"):
        return None if raw in ("null", "~") and kind != "<class 'str'>" else raw
    if "str" in kind and ("tuple[" in kind or "dict[" in kind):
        return None if raw in ("null", "~") else yaml.BaseLoader(raw).get_single_data()
    return yaml.safe_load(raw)


def _annotation(key: str) -> Any:
    model: Any = RunConfig
    for part in key.split("."):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return None
        model = fields[part].annotation
    return model


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        # descriptions and aliases are mappings from the user, replaced as a whole like any other value
        nested = isinstance(old, Mapping) and isinstance(value, Mapping) and key in RunConfig.model_fields
        merged[key] = _merge(old, value) if nested else value  # type: ignore[arg-type]
    return merged


def _deep_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    # a group left empty in a file (`data:`) is read as null
    given = ((k, v) for k, v in values.items() if v is not None or k not in _GROUPS)
    return {k: _deep_copy(v) if isinstance(v, Mapping) else v for k, v in given}


def _known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += _known_keys(info.annotation, f"{prefix}{name}.")
    return keys


def _nearest(key: str) -> str:
    known = _known_keys()
    found = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not found:  # a right field in the wrong group, e.g. learning_rate for train.learning_rate
        found = [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
    return f"; did you mean {found[0]!r}?" if found else ""


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown setting {key!r}{_nearest(key)}")
        elif item["type"] == "value_error":
            lines.append(f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"]))
        else:
            lines.append(f"{key}: {item['msg']}; found {item['input']!r}")
    return "\n".join(lines)
