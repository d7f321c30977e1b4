"""The learning rate of each step."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Shape = Literal["linear", "cosine", "constant"]


def rate_at(step: int, *, steps: int, warm_up: int, shape: Shape) -> float:
    """The learning rate of a step as a share of its peak.

    After the warm-up it is transformers' schedule of the same name. In the warm-up, transformers begins at 0: the first
    step would compute its gradients for nothing, and a run of one step would publish an untrained model.

    Args:
        step: counted from 0.
        steps: of the whole run.
        warm_up: steps before the first one at the peak.
        shape: what comes after the warm-up.
    """
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    if shape == "constant":
        return 1.0
    falling = max(1, steps - warm_up)
    if shape == "linear":
        return max(0.0, (steps - step) / falling)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warm_up) / falling))))


def learning_rates(optimizer: Optimizer, *, steps: int, warm_up: int, shape: Shape) -> LambdaLR:
    """The schedule of a run; see :func:`rate_at`."""
    return LambdaLR(optimizer, partial(rate_at, steps=steps, warm_up=warm_up, shape=shape))
