"""Tiny models, GGUF files and wheels, made here; nothing comes from a network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool_call>"]
UNUSED = ["[PAD300]", "[PAD301]"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def vocabulary():
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = sorted(ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "2"), ("ä", "½"), ("ä½", "ł")]
    tokens += [a + b for a, b in merges]
    types = [1] * len(tokens) + [3] * len(SPECIAL) + [4] * len(USER_DEFINED) + [5] * len(UNUSED)
    return tokens + SPECIAL + USER_DEFINED + UNUSED, types, [" ".join(m) for m in merges]


def tiny_model(arch, *, tied=True, **more):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        arch,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(vocabulary()[0]),
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        rope_theta=10000.0,
        **({"head_dim": 32} if arch == "qwen3" else {}),
        **more,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():  # zero biases and unit norms would hide mix-ups
            if value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.3)
            value.copy_(value.to(torch.bfloat16).float())
            if "proj" in name and value.dim() == 2:
                value.mul_(4)
    return model


NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def interleaved(values, heads):
    """llama.cpp's order of query and key rows: the halves of a head alternate."""
    rows = values.shape[0]
    return values.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def write_gguf(
    path, model, *, arch=None, quant=None, output="as-is", tokens=None, extra=None, pre=None, drop=(), add=None
):
    import gguf
    from gguf.quants import quantize

    config = model.config
    arch = arch or config.model_type
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if arch == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    words, types, merges = tokens or vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre or ("smollm" if arch == "llama" else "qwen2"))
    writer.add_token_list(words)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(words.index("<|im_end|>"))
    writer.add_bos_token_id(words.index("<|endoftext|>"))
    writer.add_pad_token_id(words.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value)
    state = {k: v.float().numpy() for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    tensors = {gguf_name(k): v for k, v in state.items()}
    if output == "twice":
        tensors["output.weight"] = tensors["token_embd.weight"]
    for name, value in tensors.items():
        if name in drop:
            continue
        if arch == "llama" and ".attn_q." in name:
            value = interleaved(value, config.num_attention_heads)
        if arch == "llama" and ".attn_k." in name:
            value = interleaved(value, config.num_key_value_heads)
        kind = quant(name) if quant else None
        if kind is not None and value.ndim == 2:
            writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(value))
    for name, value in (add or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def write_wheel(folder, project, version, members):
    """A wheel that pip accepts."""
    package = project.replace("-", "_")
    path = Path(folder) / f"{package}-{version}-py3-none-any.whl"
    info = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def sha256(data):
    return hashlib.sha256(data).hexdigest()
