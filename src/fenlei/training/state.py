"""What a run must find again to go on exactly: optimizer, learning rate, random numbers, and the loss not yet logged.

Tensors go to safetensors, the rest to JSON: nothing that is read back can run code. Averages of the optimizer are kept
under their parameters' names; its settings are not kept, because those of the resumed run count (a changed learning
rate or weight decay takes effect).

    optimizer.safetensors   exp_avg/<parameter>, exp_avg_sq/<parameter>, step/<parameter>
    random.safetensors      torch, numpy, cuda.0, ..., mps
    state.json              learning rate schedule, what the generators hold beside tensors, loss
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenlei.artifact import read_json
from fenlei.durable import write_json
from fenlei.errors import ArtifactError

if TYPE_CHECKING:
    import torch

OPTIMIZER = "optimizer.safetensors"
RANDOM = "random.safetensors"
STATE = "state.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class LossSum:
    """The loss between two log lines: a line that follows a resume then shows the same mean.

    Attributes:
        since_log: sum over the steps since the last log line.
        logged: sum over all steps that were logged.
        last_logged: step of the last log line.
    """

    since_log: float
    logged: float
    last_logged: int


@dataclass(frozen=True)
class RandomState:
    """State of every random number generator that training may draw from.

    Attributes:
        tensors: the generators' tensors, uint8 or int64.
        python: state of :mod:`random`: version, integers, next Gaussian.
        numpy: position and next Gaussian of numpy's global generator; its integers are in ``tensors``.
    """

    tensors: dict[str, torch.Tensor]
    python: tuple[Any, ...]
    numpy: dict[str, Any]

    @classmethod
    def take(cls) -> RandomState:
        """As it is now."""
        import numpy as np
        import torch

        name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
        integers = np.asarray(keys).astype(np.int64)  # safetensors and torch have no full support for uint32
        tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(integers)}
        if torch.cuda.is_available():
            tensors.update({f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
        if torch.backends.mps.is_available():
            tensors["mps"] = torch.mps.get_rng_state()
        numpy = {"name": name, "position": int(position), "has_gauss": int(has_gauss), "gauss": float(gauss)}
        return cls(tensors, random.getstate(), numpy)

    def restore(self) -> None:
        """Sets all generators; those of GPUs that are not there are left out."""
        import numpy as np
        import torch

        version, integers, gauss = self.python
        random.setstate((version, tuple(integers), gauss))
        n = self.numpy
        keys = self.tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state((n["name"], keys, n["position"], n["has_gauss"], n["gauss"]))
        torch.set_rng_state(self.tensors["torch"])
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            if (state := self.tensors.get(f"cuda.{i}")) is not None:
                torch.cuda.set_rng_state(state, i)
        if "mps" in self.tensors and torch.backends.mps.is_available():
            torch.mps.set_rng_state(self.tensors["mps"])


@dataclass(frozen=True)
class RunState:
    """What :func:`read_state` found.

    Attributes:
        scheduler: steps of the learning rate schedule: ``last_epoch`` and ``step_count``.
        random: the generators.
        loss: the loss not yet logged.
        optimizer: what the optimizer keeps (``exp_avg``, ...) by parameter name.
    """

    scheduler: dict[str, int]
    random: RandomState
    loss: LossSum
    optimizer: dict[str, dict[str, torch.Tensor]]


def write_state(
    folder: Path, *, model: Any, optimizer: Any, scheduler: Any, loss: LossSum, random: RandomState | None = None
) -> None:
    """Writes the three files of this module.

    Args:
        folder: the checkpoint in the making.
        model: names the parameters.
        optimizer: whose per-parameter state is all tensors, such as AdamW.
        scheduler: a ``LambdaLR``, as transformers makes them.
        loss: see :class:`LossSum`.
        random: the generators that go with the weights; by default as they are now.
    """
    from safetensors.torch import save_file

    now = random or RandomState.take()
    save_file(_optimizer_tensors(model, optimizer), folder / OPTIMIZER)
    save_file({name: tensor.contiguous() for name, tensor in now.tensors.items()}, folder / RANDOM)
    content = {
        "scheduler": {"last_epoch": scheduler.last_epoch, "step_count": scheduler._step_count},
        "random": {"python": now.python, "numpy": now.numpy},
        "loss": loss.__dict__,
    }
    write_json(folder / STATE, content)


def read_state(folder: Path) -> RunState:
    """Reads what :func:`write_state` wrote; no other file is opened.

    Raises:
        ArtifactError: a file is missing, damaged, or is something else.
    """
    content = read_json(folder / STATE)
    flat = read_tensors(folder / OPTIMIZER)
    tensors = read_tensors(folder / RANDOM)
    try:
        scheduler = {name: int(content["scheduler"][name]) for name in ("last_epoch", "step_count")}
        found = RandomState(tensors, tuple(content["random"]["python"]), content["random"]["numpy"])
        loss = LossSum(**content["loss"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / STATE}: damaged: {error!r}") from None
    optimizer: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in flat.items():
        kind, _, name = key.partition("/")
        optimizer.setdefault(name, {})[kind] = tensor
    return RunState(scheduler, found, loss, optimizer)


def restore_optimizer(state: RunState, *, model: Any, optimizer: Any, folder: Path) -> None:
    """Gives a fresh optimizer its averages back; its settings stay those of this run.

    Raises:
        ArtifactError: the state belongs to other parameters.
    """
    optimizer = _inner(optimizer)
    names = _parameter_names(model, optimizer)
    unknown = sorted(set(state.optimizer) - set(names))
    if unknown:
        raise ArtifactError(f"{folder / OPTIMIZER}: belongs to another model: it has no parameter {unknown[0]}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        for kind, tensor in state.optimizer.get(name, {}).items():
            if tensor.dim() and tensor.shape != parameter.shape:
                raise ArtifactError(
                    f"{folder / OPTIMIZER}: {kind} of {name} has shape {tuple(tensor.shape)}, "
                    f"the parameter {tuple(parameter.shape)}"
                )
    kept = {i: dict(state.optimizer[name]) for i, name in enumerate(names) if name in state.optimizer}
    optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_scheduler(state: RunState, scheduler: Any) -> None:
    """Moves a fresh ``LambdaLR`` to where the run was; base rates and shape stay those of this run."""
    scheduler.last_epoch = state.scheduler["last_epoch"]
    scheduler._step_count = state.scheduler["step_count"]
    rates = [
        base * shape(scheduler.last_epoch) for base, shape in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def restore_weights(model: Any, folder: Path, files: Iterable[str]) -> None:
    """Gives a model the weights of a checkpoint: its adapter, or all of them where there is no adapter.

    Args:
        model: the model that trains.
        folder: the checkpoint.
        files: the files of the checkpoint.

    Raises:
        ArtifactError: the weights are missing or belong to another model.
    """
    if not hasattr(model, "peft_config"):
        _restore_whole_model(model, folder, files)
        return
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if ADAPTER_WEIGHTS not in files:
        raise ArtifactError(f"{folder}: has no {ADAPTER_WEIGHTS}")
    weights = read_tensors(folder / ADAPTER_WEIGHTS)
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model).items()}
    _require_same(folder / ADAPTER_WEIGHTS, expected, {name: tensor.shape for name, tensor in weights.items()})
    set_peft_model_state_dict(model, weights)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a safetensors file.

    Raises:
        ArtifactError: it is missing or is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as safetensors: {error}") from None


def _restore_whole_model(model: Any, folder: Path, files: Iterable[str]) -> None:
    import torch

    shards = sorted(name for name in files if name.startswith("model") and name.endswith(".safetensors"))
    held = dict(model.named_parameters())  # weights that are tied occur once here, and once in the files
    own = model.state_dict()
    seen: set[str] = set()
    for shard in shards:
        weights = read_tensors(folder / shard)
        known = {name: own[name].shape for name in weights if name in own}
        _require_same(folder / shard, known, {name: tensor.shape for name, tensor in weights.items()})
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)
        seen.update(weights)
    if missing := sorted(set(held) - seen):
        raise ArtifactError(f"{folder}: lacks weights of the model, e.g. {missing[0]}")


def _require_same(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise ArtifactError(
                f"{path}: belongs to another model: {name} has shape {_shape(found.get(name))}, "
                f"the model expects {_shape(expected.get(name))}"
            )


def _shape(shape: Any) -> str:
    return "none" if shape is None else str(tuple(shape))


def _optimizer_tensors(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    import torch

    optimizer = _inner(optimizer)
    names = _parameter_names(model, optimizer)
    tensors = {}
    for index, kept in optimizer.state_dict()["state"].items():
        for kind, value in kept.items():
            # a copy of its own for each: safetensors refuses tensors that share memory
            tensor = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value)
            tensors[f"{kind}/{names[index]}"] = tensor.contiguous()
    return tensors


def _parameter_names(model: Any, optimizer: Any) -> list[str]:
    """Names of the parameters in the optimizer's own order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _inner(optimizer: Any) -> Any:
    """The optimizer itself, where accelerate has wrapped it."""
    return getattr(optimizer, "optimizer", optimizer)
