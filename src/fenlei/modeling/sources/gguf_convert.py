"""Turns a GGUF file into a folder with safetensors weights in bfloat16, a configuration and a tokenizer.

Llama, Qwen2 and Qwen3 are converted tensor by tensor, so that memory stays near the size of one shard. Other
architectures go through transformers' GGUF reader.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError
from fenlei.modeling.sources.gguf_file import GgufFile, TensorEntry, read_gguf
from fenlei.modeling.sources.gguf_names import hf_name, model_config, row_order
from fenlei.modeling.sources.gguf_tokenizer import build_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

Advance = Callable[[int], None]
"""Told how many more bytes of the GGUF file were converted."""

DIRECT = ("llama", "qwen2", "qwen3")
SHARD_BYTES = 2_000_000_000
_CHUNK_VALUES = 8 * 2**20
# Two quantised copies of one matrix differ by their rounding: 1 % (8 bits) to 15 % (3 bits). Separately trained input
# and output embeddings differ by more than 100 %.
_TIED_ERROR = 0.3
_TIED_ROWS = 256


def convert_gguf(source: str | Path, out: str | Path, *, advance: Advance | None = None) -> None:
    """Writes ``config.json``, ``generation_config.json``, the tokenizer and the weights into ``out``.

    Args:
        source: the GGUF file; quantised tensors are expanded.
        out: an existing empty folder.
        advance: progress callback.

    Raises:
        ModelError: the file is damaged, or its architecture or tokenizer cannot be read.
    """
    out = Path(out)
    gguf = read_gguf(source)
    if gguf.architecture in DIRECT:
        _convert_directly(gguf, out, advance or (lambda _: None))
    else:
        convert_through_transformers(gguf, out)
    for file in out.glob("*.safetensors"):  # the library makes them private; give them an ordinary new file's mode
        shutil.copymode(out / "config.json", file)


def _convert_directly(gguf: GgufFile, out: Path, advance: Advance) -> None:
    config, names = _plan(gguf)
    tokenizer = build_tokenizer(gguf)
    highest = max(tokenizer.get_vocab().values())
    if highest >= config.vocab_size:
        raise ModelError(f"{gguf.path}: token {highest} has no row in {config.vocab_size} embeddings; fetch it again")
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    _write_weights(gguf, config, names, out, advance)
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _save_generation_config(tokenizer, out)


def _plan(gguf: GgufFile) -> tuple[PretrainedConfig, dict[str, TensorEntry]]:
    """Configuration and renamed tensors, proven to fit each other."""
    tied = _is_tied(gguf)
    try:
        config = model_config(gguf, tied=tied)
        names = _renamed(gguf, tied)
        _check_against_model(gguf, config, names)
    except ModelError:
        raise
    except Exception as error:  # transformers checks a configuration's numbers with kinds of its own
        raise ModelError(
            f"{gguf.path}: the numbers in this GGUF file make no model ({_first_line(error)}); fetch it again"
        ) from None
    return config, names


def converted_bytes(source: str | Path) -> int:
    """Bytes of disk space that the converted weights and tokenizer take, at most.

    Raises:
        ModelError: the file is damaged.
    """
    return 2 * sum(math.prod(entry.shape) for entry in read_gguf(source).tensors.values()) + 50_000_000


def _renamed(gguf: GgufFile, tied: bool) -> dict[str, TensorEntry]:
    """Hugging Face's tensor names -> tensors; of a tied pair the more precise copy is kept."""
    renamed: dict[str, TensorEntry] = {}
    for name, entry in gguf.tensors.items():
        if name == "output.weight" or (name == "rope_freqs.weight" and gguf.architecture == "llama"):
            continue
        renamed[hf_name(gguf, name)] = entry
    output = gguf.tensors.get("output.weight")
    if output is not None and not tied:
        renamed["lm_head.weight"] = output
    elif output is not None and output.nbytes > gguf.tensors["token_embd.weight"].nbytes:
        renamed["model.embed_tokens.weight"] = output
    return renamed


def _is_tied(gguf: GgufFile) -> bool:
    """Whether input and output embeddings are one matrix; some files store it twice, quantised differently."""
    embedding, output = gguf.tensors.get("token_embd.weight"), gguf.tensors.get("output.weight")
    if embedding is None:
        raise ModelError(f"{gguf.path}: the GGUF file has no token embeddings (token_embd.weight)")
    if output is None:
        return True
    if output.shape != embedding.shape:
        return False
    step = max(1, embedding.shape[0] // _TIED_ROWS)
    a = _rows(gguf, embedding, range(0, embedding.shape[0], step))
    b = _rows(gguf, output, range(0, output.shape[0], step))
    return bool((a - b).norm() <= _TIED_ERROR * b.norm())


def _rows(gguf: GgufFile, entry: TensorEntry, wanted: range) -> torch.Tensor:
    import torch

    width = entry.nbytes // entry.shape[0]
    parts = []
    with gguf.path.open("rb") as stream:
        for row in wanted:
            stream.seek(entry.offset + row * width)
            parts.append(_dequantized(gguf, entry, stream.read(width), 1))
    return torch.cat(parts)


def _dequantized(gguf: GgufFile, entry: TensorEntry, data: bytes, rows: int) -> torch.Tensor:
    """Some rows of a tensor in float32, shape (rows, columns)."""
    import numpy as np
    import torch
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    if len(data) != entry.nbytes // _row_count(entry) * rows:
        raise ModelError(f"{gguf.path}: the file ended inside the tensor {entry.name!r}; fetch it again")
    raw = np.frombuffer(data, dtype=np.uint8).reshape(rows, -1)
    kind = GGMLQuantizationType(entry.type_id)
    try:
        if kind == GGMLQuantizationType.F32:
            values = raw.view("<f4")
        elif kind == GGMLQuantizationType.F16:
            values = raw.view("<f2").astype(np.float32)
        else:
            with np.errstate(all="ignore"):  # damaged scales are reported below, with the tensor's name
                values = dequantize(raw, kind)
    except (NotImplementedError, ValueError) as error:
        raise ModelError(f"{gguf.path}: tensor {entry.name!r} of type {kind.name} cannot be read: {error}") from None
    tensor = torch.from_numpy(np.array(values, dtype=np.float32, copy=True))
    if not torch.isfinite(tensor).all():
        raise ModelError(f"{gguf.path}: the tensor {entry.name!r} holds values that are not finite; fetch it again")
    return tensor


def _row_count(entry: TensorEntry) -> int:
    return math.prod(entry.shape[:-1])


def _load(gguf: GgufFile, entry: TensorEntry, advance: Advance) -> torch.Tensor:
    """A whole tensor in bfloat16, expanded a few million values at a time."""
    import torch

    rows, columns = _row_count(entry), entry.shape[-1]
    result = torch.empty((rows, columns), dtype=torch.bfloat16)
    width = entry.nbytes // rows
    at_once = max(1, _CHUNK_VALUES // columns)
    with gguf.path.open("rb") as stream:
        stream.seek(entry.offset)
        for start in range(0, rows, at_once):
            count = min(at_once, rows - start)
            data = stream.read(count * width)
            result[start : start + count] = _dequantized(gguf, entry, data, count)
            advance(len(data))
    return result.reshape(entry.shape)


def _check_against_model(gguf: GgufFile, config: PretrainedConfig, names: dict[str, TensorEntry]) -> None:
    """Every tensor that the architecture needs is there with the right shape, and no other."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    for name, shape in wanted.items():
        if name not in names:
            raise ModelError(f"{gguf.path}: the GGUF file lacks the tensor {name}; fetch it again")
        if names[name].shape != shape:
            raise ModelError(f"{gguf.path}: {name} should have the shape {shape}, found {names[name].shape}")
    extra = sorted(set(names) - set(wanted))
    if extra:
        raise ModelError(
            f"{gguf.path}: {len(extra)} tensors do not belong to {gguf.architecture}: {', '.join(extra[:3])}"
        )


def _shards(names: dict[str, TensorEntry]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(names):
        nbytes = 2 * math.prod(names[name].shape)
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _converted(
    gguf: GgufFile, config: PretrainedConfig, names: dict[str, TensorEntry], wanted: list[str], advance: Advance
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in wanted:
        tensor = _load(gguf, names[name], advance)
        order = row_order(gguf, config, names[name].name)
        yield name, tensor if order is None else tensor[order].contiguous()


def _write_weights(
    gguf: GgufFile, config: PretrainedConfig, names: dict[str, TensorEntry], out: Path, advance: Advance
) -> None:
    from safetensors.torch import save_file

    shards = _shards(names)
    weight_map: dict[str, str] = {}
    for number, wanted in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = dict(_converted(gguf, config, names, wanted, advance))
        save_file(tensors, out / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(wanted, file))
    if len(shards) > 1:
        total = sum(2 * math.prod(entry.shape) for entry in names.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save_generation_config(tokenizer: Any, out: Path) -> None:
    from transformers import GenerationConfig

    ends = [tokenizer.eos_token_id]
    plain_end = tokenizer.get_vocab().get("<|endoftext|>")
    if plain_end is not None and plain_end not in ends:
        ends.append(plain_end)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if ends[0] is not None else None,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    ).save_pretrained(out)


def convert_through_transformers(gguf: GgufFile, out: Path) -> None:
    """The way for every architecture that transformers reads; slower, and the whole model is in memory.

    Args:
        gguf: a checked header.
        out: an existing empty folder.

    Raises:
        ModelError: transformers does not know the architecture, or the file does not fit it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    _check_plausible(gguf)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(gguf.path.parent),
            gguf_file=gguf.path.name,
            dtype=torch.bfloat16,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # the reader raises many kinds; the user needs one
        raise ModelError(
            f"{gguf.path}: the GGUF architecture {gguf.architecture!r} cannot be read ({_first_line(error)}); "
            "use the model's safetensors release instead"
        ) from None
    missing = sorted(info.get("missing_keys", ()))
    if missing:  # transformers fills them with random numbers
        raise ModelError(f"{gguf.path}: the GGUF file lacks {len(missing)} tensors, e.g. {missing[0]}; fetch it again")
    tokenizer = build_tokenizer(gguf)
    _save_plain(model, out)
    tokenizer.save_pretrained(out)


def _check_plausible(gguf: GgufFile) -> None:
    """Keeps transformers from building a giant out of a damaged number: all weights must come from this file."""
    largest = max(max(entry.shape) for entry in gguf.tensors.values())
    if gguf.count("block_count") > len(gguf.tensors) or gguf.count("embedding_length") > largest:
        raise ModelError(
            f"{gguf.path}: the GGUF file is damaged: its layers and width do not fit its {len(gguf.tensors)} tensors"
        )
    for key, value in gguf.metadata.items():
        if key.startswith(f"{gguf.architecture}.") and key.endswith(("feed_forward_length", "vocab_size")):
            if isinstance(value, int) and value > largest:
                raise ModelError(
                    f"{gguf.path}: the GGUF file is damaged: {key} is {value}, its largest tensor {largest}"
                )


def _save_plain(model: Any, out: Path) -> None:
    """Saves what the GGUF reader made as an ordinary model; it refuses to save what it still calls quantised."""
    import torch
    from safetensors.torch import save_file

    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    tied = bool(getattr(config, "tie_word_embeddings", False))
    tensors = {
        name: value.detach().contiguous().clone()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    bad = next((name for name, value in tensors.items() if not torch.isfinite(value.float()).all()), None)
    if bad is not None:
        raise ModelError(f"the tensor {bad!r} of the GGUF file holds values that are not finite; fetch it again")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(out)
    model.generation_config.save_pretrained(out)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
