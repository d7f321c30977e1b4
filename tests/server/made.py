"""Classifier folders on the tiny model, with adapters of random numbers that clearly change its answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from fenlei.artifact import TOKENIZER, write_artifact
from fenlei.config import RunConfig
from fenlei.data import Example, LabelSet
from fenlei.modeling.adapter import add_adapter, finish_training, save_weights
from fenlei.modeling.loading import load_model, load_tokenizer
from fenlei.modeling.sources import resolve
from fenlei.prompting import PromptEncoder
from fenlei.training.run import prompt_record

NEWS = ("体育", "财经", "科技")
MOOD = ("正面", "负面", "正面偏中性", "中性")  # one is the beginning of another, so trees are scored
WORDS = "国足今晚迎战韩国队主场球迷高呼加油股市大涨基金经理看好银行 Sports Space"
ON_CPU = ("model.device=cpu", "model.offline=true")


def build(
    out: Path,
    base: Path,
    labels: tuple[str, ...],
    *,
    seed: int,
    dtype: str = "float32",
    calibration: dict[str, Any] | None = None,
    size: float = 0.3,
    max_length: int = 256,
    **lora: Any,
) -> Path:
    """Writes a classifier folder.

    Args:
        out: the folder to write.
        base: the base model's folder.
        labels: its labels.
        seed: of the adapter.
        dtype: number format of the base model.
        calibration: content of calibration.json.
        size: of the adapter's random numbers.
        max_length: most tokens of a prompt.
        **lora: settings of the group ``lora``.
    """
    import torch

    model_values = {"spec": str(base), "dtype": dtype, "device": "cpu"}
    config = RunConfig.build({"model": model_values, "prompt": {"max_length": max_length}, "lora": lora})
    tokenizer = load_tokenizer(base, config.model)
    encoder = PromptEncoder(tokenizer, config.prompt, LabelSet(labels))
    model = add_adapter(load_model(base, config.model), config.lora, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "magnitude" in name or (config.lora.method == "full" and "proj" in name):
            weight.data += (
                torch.randn(weight.shape, generator=generator).to(weight.dtype) * size * weight.std().clamp(min=0.2)
            )
    finish_training(model)

    def save(folder: Path) -> None:
        save_weights(model, folder)
        tokenizer.save_pretrained(str(folder / TOKENIZER))

    found = resolve(str(base))
    base_model = {"spec": str(base), "source": "folder", "revision": None, "dtype": dtype, "path": str(base)}
    return write_artifact(
        out,
        labels=encoder.labels.to_dict(),
        prompt=prompt_record(config, encoder),
        calibration=calibration or {"method": "none", "temperature": 1.0},
        base_model={**base_model, "sha256": found.weights_sha256()},
        save_weights=save,
    )


def examples(count: int, seed: int = 0, longest: int = 60) -> list[Example]:
    """Rows of random words."""
    draw = random.Random(seed)
    return [Example("".join(draw.choices(WORDS, k=draw.randrange(1, longest)))) for _ in range(count)]
