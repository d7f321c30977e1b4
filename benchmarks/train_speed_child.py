"""One measured process: builds its trainer, then runs one optimizer step each time its parent says so.

    python train_speed_child.py job.json

The two talk in lines. The parent writes `step` or `end`; the child answers with one JSON object a line: `ready`, `step`
(seconds, peak memory), `end` (losses). A step is timed from the parent's word to the end of the optimizer step, so
that loading the step's rows, clipping and the optimizer are in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from train_speed_job import Job

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # always this checkout, installed or not

_MATRIX_SECONDS = 0.15
_MATRIX_TOKENS = {"cpu": 512, "cuda": 8192}


class Talk(Protocol):
    """The two directions of the line to the parent."""

    def send(self, **message: Any) -> None: ...
    def receive(self) -> str: ...


class StdioTalk:
    """Over stdin and stdout; whatever libraries print goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def receive(self) -> str:
        """The parent's next word; `end` when the parent is gone."""
        return sys.stdin.readline().strip() or "end"


class Ended(Exception):
    """The parent wants no (more) step."""


class Clock:
    """Waits for the parent's word, times what follows, and reports it.

    Args:
        talk: the line to the parent.
        device: `cpu` or `cuda`: work on a GPU is waited for before the clock is read.
    """

    def __init__(self, talk: Talk, device: str) -> None:
        self.talk, self.device = talk, device
        self._started = 0.0

    def wait(self) -> bool:
        """Blocks until the parent speaks; whether it wants a step."""
        if self.talk.receive() != "step":
            return False
        self._synchronize()
        self._started = time.perf_counter()
        return True

    def stop(self, **more: Any) -> None:
        """Ends the step and reports it."""
        self._synchronize()
        self.talk.send(event="step", seconds=time.perf_counter() - self._started, **self.memory(), **more)

    def forget(self) -> None:
        """Peak memory on the GPU is that of the steps, not of a trial before them."""
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, int]:
        """Bytes: the process now and at its peak so far, and the peak on the GPU."""
        found = {"now": status_bytes("VmRSS"), "peak": peak_memory()}
        if self.device == "cuda":
            import torch

            found["gpu_peak"] = torch.cuda.max_memory_allocated()
            found["gpu_reserved"] = torch.cuda.max_memory_reserved()
        return found

    def _synchronize(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def peak_memory() -> int:
    """Most resident memory of this process so far, in bytes."""
    if found := status_bytes("VmHWM"):
        return found
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def status_bytes(field: str) -> int:
    """A figure of Linux's `/proc/self/status`; 0 elsewhere."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").split("\n"):
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run_trainer(job: Job, talk: Talk) -> None:
    """Trains under the parent's control."""
    from train_speed_recipes import build
    from transformers import TrainerCallback

    clock, losses = Clock(talk, job.device), []

    class Pace(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.forget()
            engine: dict[str, Any] = getattr(trainer, "engine_state", dict)()
            talk.send(event="ready", adapter=adapter_sha256(trainer.model), engine=engine, **clock.memory())
            if not clock.wait():
                raise Ended

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.stop()
            if not clock.wait():
                control.should_training_stop = True

    trainer = build(job, Pace())
    try:
        trainer.train()
    except Ended:
        pass
    talk.send(event="end", losses=losses)


def adapter_sha256(model: Any) -> str:
    """Of the trained weights: equal in two processes that begin at the same adapter."""
    import torch

    digest = hashlib.sha256()
    for _, weight in sorted((n.replace("module.", ""), p) for n, p in model.named_parameters() if p.requires_grad):
        digest.update(weight.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def run_matrix(job: Job, talk: Talk, dtype: str = "bfloat16") -> None:
    """The rate of plain matrix products of the model's own shapes: what a step could reach at most."""
    import torch

    clock, kind = Clock(talk, job.device), getattr(torch, dtype)
    tokens = job.settings.get("tokens") or _MATRIX_TOKENS[job.device]
    pairs = {}
    for inside, outside in dict.fromkeys(map(tuple, job.model.products.values())):
        x = torch.randn(tokens, inside).to(job.device, kind)
        weight = torch.randn(outside, inside).to(job.device, kind)
        pairs[f"{tokens}x{inside} @ {inside}x{outside}"] = (x, weight)
    name = torch.cuda.get_device_name() if job.device == "cuda" else ""
    talk.send(event="ready", device_name=name, threads=torch.get_num_threads(), **versions(), **clock.memory())
    while clock.wait():
        clock.stop(rates={key: _rate(*pair) for key, pair in pairs.items()})
    talk.send(event="end", losses=[])


def _rate(x: Any, weight: Any) -> float:
    """Median operations a second of x @ weight.T."""
    import torch

    operations = 2 * x.shape[0] * weight.numel()
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < _MATRIX_SECONDS or len(times) < 3:
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return operations / statistics.median(times)


def versions() -> dict[str, str]:
    import accelerate
    import peft
    import torch
    import transformers

    return {m.__name__: str(m.__version__) for m in (torch, transformers, peft, accelerate)}


def main() -> None:
    talk = StdioTalk()
    job = Job.read(Path(sys.argv[1]))
    if job.method == "matrix":
        run_matrix(job, talk, job.dtype)
    else:
        run_trainer(job, talk)


if __name__ == "__main__":
    main()
