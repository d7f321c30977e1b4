"""Rows to classify, and classifiers to do it: a run's own, or one with an adapter of random numbers."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from predict_speed_job import Row
from train_speed_job import SHAPES

_UPDATE = 1e-4  # size of the random adapter's second matrices: it costs what it costs and changes next to nothing


def load_encoder(classifier: Path, model: Any) -> tuple[Any, Any]:
    """The prompt encoder of a classifier folder, and its tokenizer; no weights are read.

    Args:
        classifier: the folder.
        model: a ``ModelConfig``.
    """
    from fenlei.config import PromptConfig
    from fenlei.data import LabelSet
    from fenlei.modeling.loading import load_tokenizer
    from fenlei.prompting import ChatFrame, PromptEncoder

    prompt, labels = (_json(classifier / f"{name}.json") for name in ("prompt", "labels"))
    tokenizer = load_tokenizer(classifier / "tokenizer", model)
    encoder = PromptEncoder(
        tokenizer,
        PromptConfig(**prompt["prompt"]),
        LabelSet.from_dict(labels),
        prompt["candidates"],
        ChatFrame.from_dict(prompt["chat"]),
        prompt.get("codes"),
    )
    return encoder, tokenizer


def read_rows(file: Path, encoder: Any, *, seed: int) -> list[Row]:
    """All rows of a labelled file, shuffled."""
    from fenlei.config import DataConfig
    from fenlei.data import read_examples

    examples = read_examples(file, DataConfig(), role="test").examples
    random.Random(seed).shuffle(examples)
    prompts = encoder.encode_examples(examples)
    rows = []
    for example, prompt in zip(examples, prompts, strict=True):
        label = encoder.labels.canonical(example.label)
        rows.append(
            Row(
                text=example.text,
                label=label,
                answer=encoder.codes.get(label, label),
                prompt=prompt.input_ids,
                new_tokens=len(encoder.answer_ids(label)),
                candidates=list(example.candidates) if example.candidates else None,
            )
        )
    return rows


def portions_of(rows: list[Row], *, rows_per_step: int, warmup_rows: int, warmup: int, repeats: int) -> list[list[Row]]:
    """Rows step by step: all different as long as there are enough."""
    sizes = [warmup_rows] * warmup + [rows_per_step] * repeats
    portions, start = [], 0
    for size in sizes:
        portions.append([rows[(start + i) % len(rows)] for i in range(size)])
        start += size
    return portions


def fresh_classifier(out: Path, base: Path, data: Path, *, prompt: dict[str, Any], candidates: str, seed: int) -> None:
    """Writes a classifier folder with an adapter that was never trained: speed does not depend on that.

    Args:
        out: the folder to write.
        base: the base model's folder.
        data: labelled rows that the labels are taken from.
        prompt: settings of the prompt.
        candidates: `row` or `all`.
        seed: of the adapter.
    """
    import torch

    from fenlei.artifact import TOKENIZER, write_artifact
    from fenlei.config import RunConfig
    from fenlei.data import LabelSet, read_examples
    from fenlei.modeling.adapter import add_adapter, save_weights
    from fenlei.modeling.loading import load_model, load_tokenizer
    from fenlei.prompting import PromptEncoder
    from fenlei.training.run import prompt_record

    values = {"model": {"spec": str(base), "dtype": "auto", "device": "cpu"}, "prompt": prompt}
    config = RunConfig.build({**values, "data": {"candidates": candidates}})
    labels = LabelSet.from_examples(read_examples(data, config.data, role="test").examples, config.data)
    tokenizer = load_tokenizer(base, config.model)
    encoder = PromptEncoder(tokenizer, config.prompt, labels, config.data.candidates)
    model = add_adapter(load_model(base, config.model), config.lora, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0.0, _UPDATE, generator=generator)

    def save(folder: Path) -> None:
        save_weights(model, folder)
        tokenizer.save_pretrained(str(folder / TOKENIZER))

    # no hashes of the base model: it is the one that was just loaded, and 7 B of them take a minute
    base_model = {"spec": str(base), "source": "folder", "revision": None, "dtype": "auto", "path": str(base)}
    write_artifact(
        out,
        labels=labels.to_dict(),
        prompt=prompt_record(config, encoder),
        calibration={"method": "none", "temperature": 1.0},
        base_model={**base_model, "sha256": {}},
        save_weights=save,
    )


def random_model(out: Path, shape: str, tokenizer: Path, device: str) -> None:
    """Writes a model folder of the size of a real one, filled with random numbers, with a real tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=32768)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(str(out), safe_serialization=True)
    for file in tokenizer.iterdir():
        if file.is_file() and (file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges", "chat_template",
                                                     "added_tokens"))):  # fmt: skip
            shutil.copy(file, out / file.name)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
