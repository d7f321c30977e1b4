"""What a GGUF file calls things, and what Hugging Face calls them, for Llama, Qwen2 and Qwen3."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fenlei.errors import ModelError
from fenlei.modeling.sources.gguf_file import GgufFile

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

_FIXED = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d{1,4})\.([a-z_]+)\.(weight|bias)")
# Llama 3's rotary scaling, which a GGUF file holds only as its result, one factor a frequency.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def hf_name(gguf: GgufFile, name: str) -> str:
    """The Hugging Face name of a tensor.

    Raises:
        ModelError: the architecture has no such tensor.
    """
    if name in _FIXED:
        return _FIXED[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        raise ModelError(
            f"{gguf.path}: the tensor {name!r} is not known for the architecture {gguf.architecture!r} "
            "(a mixture of experts or another variant?); use the model's safetensors release instead"
        )
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"


def model_config(gguf: GgufFile, *, tied: bool) -> PretrainedConfig:
    """The transformers configuration of a Llama, Qwen2 or Qwen3 file.

    Args:
        gguf: a checked header.
        tied: whether input and output embeddings are one matrix.

    Raises:
        ModelError: a value is missing or out of range.
    """
    from transformers import AutoConfig

    arch = gguf.architecture
    hidden, heads = gguf.count("embedding_length"), gguf.count("attention.head_count")
    values: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": gguf.count("feed_forward_length"),
        "num_hidden_layers": gguf.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.count("attention.head_count_kv", heads),
        "max_position_embeddings": gguf.count("context_length"),
        "rms_norm_eps": _shortest(gguf.number("attention.layer_norm_rms_epsilon")),
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": tied,
        "rope_theta": _shortest(gguf.number("rope.freq_base", 10000.0)),
    }
    _check_sizes(gguf, values)
    head_dim = gguf.count("attention.key_length", hidden // heads)
    if gguf.count("rope.dimension_count", head_dim) != head_dim:
        raise ModelError(
            f"{gguf.path}: rotary positions on a part of each head are not supported for {arch!r}; "
            "use the model's safetensors release instead"
        )
    if arch != "qwen2":
        values["head_dim"] = head_dim
    if arch == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
    scaling = _rope_scaling(gguf, values)
    if scaling is not None:
        values["rope_scaling"] = scaling
    config = AutoConfig.for_model(arch, **values)
    config.architectures = [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}.get(arch, "Qwen3ForCausalLM")]
    config.dtype = "bfloat16"
    return config


def _check_sizes(gguf: GgufFile, values: dict[str, Any]) -> None:
    # Before anything is built from these numbers: a damaged one must not ask for memory without end.
    layers, heads, kv = values["num_hidden_layers"], values["num_attention_heads"], values["num_key_value_heads"]
    if layers * 9 > len(gguf.tensors):
        raise ModelError(f"{gguf.path}: {layers} layers do not fit {len(gguf.tensors)} tensors; fetch the file again")
    if heads % kv or (values["hidden_size"] % heads and gguf.architecture == "qwen2"):
        raise ModelError(
            f"{gguf.path}: {heads} heads, {kv} key-value heads and width {values['hidden_size']} do not fit together"
        )
    embedding = gguf.tensors["token_embd.weight"].shape
    if len(embedding) != 2 or embedding[1] != values["hidden_size"]:
        raise ModelError(
            f"{gguf.path}: the token embeddings should have {values['hidden_size']} columns, found shape {embedding}"
        )


def _shortest(value: float) -> float:
    """The decimal that the author wrote before it became a float32 (1e-06, not 9.999999974752427e-07)."""
    import numpy as np

    return float(str(np.float32(value)))


def _rope_scaling(gguf: GgufFile, values: dict[str, Any]) -> dict[str, Any] | None:
    kind = gguf.metadata.get(f"{gguf.architecture}.rope.scaling.type", "none")
    if gguf.architecture == "llama" and "rope_freqs.weight" in gguf.tensors:
        return _llama3_scaling(gguf, values)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{gguf.path}: expected rope scaling linear or yarn, found {kind!r}")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": float(gguf.number("rope.scaling.factor"))}
    if kind == "yarn":
        original = gguf.count("rope.scaling.original_context_length", values["max_position_embeddings"])
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3_scaling(gguf: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    """Recovers the four numbers of Llama 3's scaling from the factors, and proves that they give these factors."""
    import numpy as np
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    entry = gguf.tensors["rope_freqs.weight"]
    with gguf.path.open("rb") as stream:
        stream.seek(entry.offset)
        found = np.frombuffer(stream.read(entry.nbytes), dtype="<f4")
    head_dim = values["head_dim"]
    if found.shape != (head_dim // 2,) or not np.isfinite(found).all():
        raise ModelError(f"{gguf.path}: rope_freqs.weight should hold {head_dim // 2} finite factors; fetch it again")
    scaling = {"rope_type": "llama3", "factor": _shortest(float(found.max())), **_LLAMA3}
    config = AutoConfig.for_model("llama", **values, rope_scaling=dict(scaling))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    plain = values["rope_theta"] ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if not np.allclose(plain / scaled.double().numpy(), found, rtol=1e-2):
        raise ModelError(
            f"{gguf.path}: its rotary scaling is not Llama 3's; use the model's safetensors release instead"
        )
    return scaling


def row_order(gguf: GgufFile, config: PretrainedConfig, name: str) -> torch.Tensor | None:
    """The order that puts the rows of a query or key matrix back as Hugging Face stores them, or None.

    GGUF files of the architecture ``llama`` interleave the two halves of each head (rotary pairs side by side).
    """
    import torch

    match = _LAYER.fullmatch(name)
    if gguf.architecture != "llama" or match is None or match[2] not in ("attn_q", "attn_k"):
        return None
    heads = config.num_attention_heads if match[2] == "attn_q" else config.num_key_value_heads
    rows = torch.arange(gguf.tensors[name].shape[0])
    return rows.reshape(heads, -1, 2).transpose(1, 2).reshape(-1)
