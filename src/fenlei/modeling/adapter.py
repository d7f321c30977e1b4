"""What is trained on a base model, by ``lora.method``: an adapter through PEFT, or the weights themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenlei.artifact import ADAPTER, MODEL
from fenlei.config import LoraConfig
from fenlei.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_adapter(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel | PreTrainedModel:
    """Puts a fresh adapter on a frozen model; with ``lora.method=full`` the weights themselves become trainable.

    Whatever trains is float32. Over bfloat16 weights, float32 adapters are as fast or faster than bfloat16 ones on the
    CPUs measured, and their small updates are not rounded away.

    Raises:
        ModelError: none of ``target_modules`` exists in the model, it has no such layers, or the method does not go
            with it (see :mod:`fenlei.modeling.full` and :mod:`fenlei.modeling.pissa`).
    """
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model

    from fenlei.modeling.full import train_weights
    from fenlei.modeling.pissa import start_from_principal_part

    if config.method == "full":
        return train_weights(model, config.layers)
    # a model that also reads pictures: nothing flows through that part here, so an adapter there would stay empty
    towers = {part for name, _ in model.named_modules() for part in name.split(".") if "vision" in part}
    layers = _layers(model, config)
    _require_targets(model, config)
    torch.manual_seed(seed)
    # PiSSA's adapter holds its start as a frozen second half; alpha / r stays what it is
    share = 2 if config.method == "pissa" else 1
    adapter = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=share * config.r,
        lora_alpha=share * config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        exclude_modules=rf".*\b({'|'.join(sorted(towers))})\b.*" if towers else None,
        use_rslora=config.method == "rslora",
        use_dora=config.method == "dora",
        **layers,
    )
    try:
        tuned = get_peft_model(model, adapter, autocast_adapter_dtype=True)
    except ValueError as error:
        raise ModelError(f"lora: the adapter does not fit this model: {_first_line(error)}") from error
    if config.method == "pissa":
        start_from_principal_part(tuned, config.r, config.alpha / config.r)
    return tuned


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Puts a saved adapter on its base model, for inference.

    Raises:
        ArtifactError: the adapter is damaged or belongs to another architecture.
    """
    from peft import PeftModel

    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ArtifactError(f"{folder}: no adapter_model.safetensors; is this a classifier folder?")
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False, local_files_only=True).eval()
    except Exception as error:
        raise ArtifactError(f"{folder}: the adapter does not load onto its base model: {_first_line(error)}") from error


def finish_training(model: PeftModel | PreTrainedModel) -> None:
    """After the last step: from here on the model is what :func:`save_weights` saves, and computes as after loading."""
    from fenlei.modeling.full import finish_weights
    from fenlei.modeling.fuse import unfuse

    unfuse(model)
    if not hasattr(model, "peft_config"):
        finish_weights(model)


def save_weights(model: PeftModel | PreTrainedModel, folder: Path) -> None:
    """Writes ``adapter/``, or ``model/`` with the whole model, into a classifier folder: safetensors and JSON."""
    target = folder / (ADAPTER if hasattr(model, "peft_config") else MODEL)
    model.save_pretrained(str(target), safe_serialization=True)
    (target / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _layers(model: Any, config: LoraConfig) -> dict[str, Any]:
    from fenlei.modeling.layers import chosen_layers, decoder_layers

    if config.layers is None:
        return {}
    name, stack = decoder_layers(model)
    return {"layers_to_transform": chosen_layers(config.layers, len(stack)), "layers_pattern": name}


def _require_targets(model: Any, config: LoraConfig) -> None:
    import torch

    linear = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    unknown = [name for name in config.target_modules if name not in linear]
    if unknown:
        raise ModelError(
            f"lora.target_modules: {', '.join(unknown)} not in this model; its linear layers are "
            f"{', '.join(sorted(linear))}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
