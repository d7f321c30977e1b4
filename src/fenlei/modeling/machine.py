"""What of a machine the last digits of a score depend on."""

from __future__ import annotations

import platform
from pathlib import Path

from fenlei.config import ModelConfig
from fenlei.modeling.loading import pick_device


def machine_of(config: ModelConfig) -> dict[str, str | int]:
    """The device, and for a CPU how many threads share a sum; keys as the user knows them.

    Raises:
        ModelError: this machine has no such device.
    """
    import torch

    device = pick_device(config)
    if device.type == "cuda":
        return {"the device": f"{device} ({torch.cuda.get_device_name(device)})"}
    found: dict[str, str | int] = {"the device": f"{device} ({processor_name()})"}
    if device.type == "cpu":
        # which of its instructions torch's kernels use; a variable of the environment can say so, too
        found["the CPU's capability"] = torch.backends.cpu.get_cpu_capability()
        found["the number of threads (OMP_NUM_THREADS)"] = torch.get_num_threads()
    return found


def processor_name() -> str:
    """The processor's model's name, which the standard library does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, "") or platform.processor() or platform.machine()
