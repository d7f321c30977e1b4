"""Memory of a forward and backward pass on a CPU, before the first one.

Linux promises more memory than there is and kills the process when it is used: nothing in here could catch that, and a
run that goes on would be killed again. An estimate can only warn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fenlei.modeling.memory import checkpoints_activations
from fenlei.training.dataset import TrainingRow

_MEMORY, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# Stored for each token of a layer: so many numbers as wide as the hidden state, and as the MLP is. Checked against
# the peak of 384-token rows in docs/benchmarks.md, where it comes out a little too high.
_HIDDEN, _INTERMEDIATE = 10, 4


def pass_bytes(model: Any, longest: int, tokens: int) -> int:
    """About what a pass stores for its backward pass, beside the weights.

    Args:
        model: the model, on its device.
        longest: tokens of the longest row: its attention probabilities are stored, for each head and layer.
        tokens: most tokens of a pass.
    """
    config = model.config.get_text_config()
    size = model.get_input_embeddings().weight.element_size()
    hidden, intermediate = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    tokens, rows = max(tokens, longest), max(1, tokens // longest)
    linear = tokens * (_HIDDEN * hidden + _INTERMEDIATE * intermediate) * size
    attention = rows * config.num_attention_heads * longest**2 // 2 * size
    layers = int(config.num_hidden_layers)
    if checkpoints_activations(model):
        return linear + attention + layers * tokens * hidden * size
    return layers * (linear + attention)


def available_bytes() -> int | None:
    """Memory that this process may still take: of the machine, or of its container where that is less (Linux)."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text("utf-8").split("\n") if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        return None
    try:
        found.append(int((_GROUP / "memory.max").read_text()) - int((_GROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no container, or no limit ("max")
    return min(found)


def memory_warning(model: Any, rows: Sequence[TrainingRow], tokens: int) -> str | None:
    """What to say before the first step; None where the memory should do, or nothing is known."""
    free, longest = available_bytes(), max(len(row.input_ids) for row in rows)
    needed = pass_bytes(model, longest, tokens)
    if free is None or needed <= free or next(model.parameters()).device.type != "cpu":
        return None
    less = "lower prompt.max_length"
    if not checkpoints_activations(model):
        less = f"go on with --resume train.gradient_checkpointing=true, or start with it; or {less}"
    return (
        f"a step may take about {needed / 1e9:.1f} GB of memory beside the weights (rows of up to {longest} tokens, "
        f"{tokens} a forward pass) and {free / 1e9:.1f} GB are free. Should the system kill the process: {less}"
    )
