"""LoRA adapters on a frozen base model, through PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fenlei.config import LoraConfig
from fenlei.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_adapter(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """Puts a fresh adapter on a model; only the adapter is trainable, in float32.

    float32 adapters over bfloat16 weights are as fast or faster than bfloat16 ones on the CPUs measured, and their
    small updates are not rounded away.

    Raises:
        ModelError: none of ``target_modules`` exists in the model.
    """
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model

    linear = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    unknown = [name for name in config.target_modules if name not in linear]
    if unknown:
        raise ModelError(
            f"lora.target_modules: {', '.join(unknown)} not in this model; its linear layers are "
            f"{', '.join(sorted(linear))}"
        )
    torch.manual_seed(seed)
    # a model that also reads pictures: nothing flows through that part here, so an adapter there would stay empty
    towers = {part for name, _ in model.named_modules() for part in name.split(".") if "vision" in part}
    adapter = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        exclude_modules=rf".*\b({'|'.join(sorted(towers))})\b.*" if towers else None,
    )
    return get_peft_model(model, adapter, autocast_adapter_dtype=True)


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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{folder}: the adapter does not load onto its base model: {reason}") from error
