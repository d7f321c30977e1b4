"""Loads tokenizer and base model from a resolved folder; nothing here touches a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenlei.config import ModelConfig
from fenlei.errors import ModelError, need_extra

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def pick_device(config: ModelConfig) -> torch.device:
    """The device that ``model.device`` names.

    Raises:
        ModelError: the name is not a device, or this machine has no such device.
    """
    import torch

    if config.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(f"model.device={config.device!r} cannot be used here ({first_line}); try auto") from None
    return device


def pick_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The number format of the base weights.

    ``auto`` is bfloat16, which every supported model was trained in, where the device computes in it, and float32
    where it would only be emulated (older laptops, GPUs before Ampere): slower and twice the memory there, but much
    faster than emulation.
    """
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = _cpu_has_bfloat16()
    else:
        native = True
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bfloat16() -> bool:
    import platform

    import torch

    if platform.machine().lower() in {"arm64", "aarch64"}:
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return bool(supported and supported())
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def load_tokenizer(folder: str | Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, with a padding token.

    Raises:
        ModelError: the folder has none that loads.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # the libraries raise many kinds; the user needs one
        raise _cannot_load("tokenizer", folder, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: str | Path, config: ModelConfig) -> PreTrainedModel:
    """The causal language model in a folder, frozen, in evaluation mode, on the configured device.

    Raises:
        ModelError: the weights cannot be loaded, do not fit the architecture, or need code of their own.
        MissingDependency: 4-bit weights are asked for, and bitsandbytes is not there.
    """
    device = pick_device(config)
    dtype = pick_dtype(config, device)
    quantized = _quantized(config, device, dtype)
    try:
        model, info = _from_pretrained(folder, config, dtype, quantized)
    except Exception as error:
        raise _cannot_load("model", folder, error) from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:  # transformers fills them with random numbers and only warns
        raise ModelError(
            f"{folder}: the weights lack {len(missing)} tensors that the architecture needs, "
            f"e.g. {', '.join(missing[:3])}; fetch the model again"
        )
    model.config.use_cache = False
    model = model.requires_grad_(False).eval()
    if not quantized:
        return model.to(device)
    for module in model.modules():  # quantizing has put it there
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # on such CPUs bitsandbytes turns weights, at the first scoring, into a form that passes no gradients on
            module.support_avx512bf16_for_cpu = False
    return model


def _quantized(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is told for 4-bit weights (Dettmers et al. 2023, arXiv:2305.14314): NF4, scales quantized too.

    The head, the embeddings and the norms stay in ``dtype``.
    """
    if config.quantization == "none":
        return {}
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise need_extra("bitsandbytes", "gpu")
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        "device_map": {"": (device.index or 0) if device.type == "cuda" else device.type},
    }


def _from_pretrained(
    folder: str | Path, config: ModelConfig, dtype: torch.dtype, quantized: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    def load(attention: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,  # other weight files are pickles, and unpickling runs code
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **quantized,
        )

    try:
        return load("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return load("eager")  # e.g. Gemma 2, whose attention caps its scores


def _cannot_load(what: str, folder: str | Path, error: Exception) -> ModelError:
    text = str(error).strip().splitlines()
    reason = text[0] if text else type(error).__name__
    hint = ""
    if "trust_remote_code" in str(error):
        hint = (
            "; this model brings its own Python code, which fenlei does not run "
            "unless you read it and set model.trust_remote_code=true"
        )
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        hint = "; the weights do not fit into memory: take a smaller model"
    return ModelError(f"{folder}: the {what} cannot be loaded: {reason}{hint}")


def parameter_count(model: Any) -> tuple[int, int]:
    """Number of parameters: (trained, all)."""
    # half of a PiSSA adapter is frozen
    trained = sum(p.numel() - getattr(p, "frozen_elements", 0) for p in model.parameters() if p.requires_grad)
    # 4-bit weights lie two in a byte
    packed = {"Params4bit": 2}
    return trained, sum(
        p.numel() * p.element_size() * n if (n := packed.get(type(p).__name__)) else p.numel()
        for p in model.parameters()
    )
