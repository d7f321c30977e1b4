"""Checks that a folder holds a whole model with safetensors weights, without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fenlei.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tekken.json",),
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_JSON_BYTES = 64 * 2**20
_MAX_HEADER_BYTES = 100 * 10**6  # the safetensors library's own limit


def check_model_folder(path: Path) -> None:
    """Checks configuration, tokenizer and every weight file.

    Args:
        path: a folder.

    Raises:
        ModelError: something is missing, cut short, or only there as a pickle.
    """
    config = _config(path)
    if "model_type" not in config:
        raise ModelError(f"{path / 'config.json'}: expected the key 'model_type'; this is not a model's configuration")
    if not _has_tokenizer(path):
        wanted = ", ".join(" + ".join(names) for names in TOKENIZER_FILES[:3])
        raise ModelError(f"{path}: the tokenizer is missing (one of {wanted}, ...); fetch the model again")
    for file in weight_files(path):
        _check_safetensors(file)


def is_complete(path: Path) -> bool:
    """Whether :func:`check_model_folder` finds nothing wrong."""
    try:
        check_model_folder(path)
    except ModelError:
        return False
    return True


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that hold the weights, all present.

    Raises:
        ModelError: there are none, or a shard of the index is missing.
    """
    if (path / SINGLE).is_file():  # what transformers takes first, too
        return [path / SINGLE]
    index = path / INDEX
    if not index.is_file():
        raise ModelError(_no_weights(path))
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: expected a 'weight_map' with the shards; fetch the model again")
    names = sorted({name if isinstance(name, str) else "" for name in weight_map.values()})
    bad = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if bad:
        raise ModelError(f"{index}: expected names of safetensors files beside it, found {bad[0]!r}")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise ModelError(
            f"{path}: {len(missing)} of {len(names)} weight files are missing, e.g. {missing[0]}; fetch the model again"
        )
    return [path / name for name in names]


def needs_remote_code(path: str | Path) -> bool:
    """Whether the model brings Python code that transformers would have to run (``auto_map``).

    Args:
        path: a model folder.
    """
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        file = Path(path) / name
        if file.is_file() and _json(file).get("auto_map"):
            return True
    return False


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if file.is_file():
        return _json(file)
    hint = ""
    if (path / "adapter_config.json").is_file():
        hint = "; this is an adapter: name the base model, or use the classifier folder that holds it as RUN"
    elif (path / "manifest.json").is_file() or (path / "classifier").is_dir():
        hint = "; this is a trained classifier: use it with fenlei predict, evaluate or serve"
    elif found := sorted(path.glob("*.gguf"))[:1]:
        hint = f"; did you mean the file {found[0]}?"
    raise ModelError(f"{path}: expected a model folder with config.json, tokenizer and safetensors, found none{hint}")


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError(f"{file}: far too large for its kind; fetch the model again")
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error}); fetch the model again") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(values).__name__}; fetch the model again")
    return values


def _has_tokenizer(path: Path) -> bool:
    if any(all((path / name).is_file() for name in names) for names in TOKENIZER_FILES):
        return True
    return any(path.glob("*.tiktoken"))


def _no_weights(path: Path) -> str:
    pickles = [file.name for pattern in PICKLES for file in sorted(path.glob(pattern)) if _is_weights(file)]
    if pickles:
        return (
            f"{path}: the weights are only there as {pickles[0]}, a pickle, and unpickling can run code; "
            "fenlei reads safetensors only: take a safetensors release of the model, or convert it where that is safe"
        )
    return f"{path}: expected weights in {SINGLE} (or shards and {INDEX}), found none; fetch the model again"


def _is_weights(file: Path) -> bool:
    return file.name not in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def _check_safetensors(file: Path) -> None:
    """Header and length only: a file that was cut short is found without reading it."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(stream.read(length))
        ends = [item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: not a whole safetensors file ({error}); fetch the model again") from None
    if size != expected:
        raise ModelError(f"{file}: cut short or damaged: expected {expected} bytes, found {size}; fetch it again")
