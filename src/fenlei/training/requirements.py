"""What cannot be trained, or not here: said before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fenlei.config import RunConfig
from fenlei.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    import torch


def require_gradients(config: RunConfig) -> None:
    """Refuses base weights whose number format loses gradients.

    Raises:
        ConfigError: float16. Its smallest number is 6e-8: gradients of an adapter fall below it and count as 0 without
            a word, unless the loss is scaled, which the engine does not do.
    """
    if config.model.dtype == "float16":
        raise ConfigError(
            "model.dtype=float16: small gradients would be lost in training; take model.dtype=bfloat16, or float32 "
            "where the device has no bfloat16 (auto chooses). A trained classifier may be used in float16"
        )


def require_one_gpu(device: torch.device) -> None:
    """Refuses a machine that the Trainer would use in its own way.

    Raises:
        TrainingError: several GPUs are visible.
    """
    import torch

    if device.type == "cuda" and (torch.cuda.device_count() > 1 or device.index):
        # the Trainer would wrap the model in nn.DataParallel, which tears packed rows apart
        raise TrainingError(
            f"{torch.cuda.device_count()} GPUs are visible and training uses one: leave model.device=auto and choose "
            f"by CUDA_VISIBLE_DEVICES={device.index or 0}"
        )
