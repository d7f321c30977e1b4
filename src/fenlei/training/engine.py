"""Forward and backward of one optimizer step: which rows go through the model together.

The loss of a step is the mean over all answer tokens of its rows, however they are divided, also after memory ran out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fenlei.config import RunConfig
from fenlei.errors import ModelError, TrainingError
from fenlei.modeling.fuse import forget, fuse
from fenlei.modeling.memory import checkpoint_activations, checkpoints_activations, keep_freed_memory, ran_out
from fenlei.modeling.packed import BlockSize, KeysAndValues, PackedState, can_pack
from fenlei.modeling.varlen import flash_kernel, segments_of
from fenlei.training.beginning import CommonBeginning
from fenlei.training.dataset import TrainingRow
from fenlei.training.microbatches import MicroBatch, packed_batch, padded_batch, shared_length, split_rows, tokens_of
from fenlei.training.number_format import adapter_dtype
from fenlei.training.packing_check import PackingCheck
from fenlei.training.space import optimizer_bytes

# three rows of 384: a tenth faster than two, in a third of the tutorial's memory (docs/benchmarks.md)
_CPU_TOKENS = 1152
_SHORTEST_BEGINNING = 16
_GPU_TOKENS = (2048, 4096, 8192, 16384)
_MOST_GPU_MEMORY = 0.85


class StepAbandoned(Exception):
    """The run is to stop and the step would take too long; weights and random numbers are as before it."""


class TrainingEngine:
    """Computes the gradients of optimizer steps.

    Args:
        model: the model to train, on its device.
        config: the settings; ``speed`` says how.
        pad_id: fills padded rows.
        state: what :meth:`state` returned before an interruption, so that a resumed run computes in the same way.
        say: gets what the user should know, e.g. that memory ran out.
        give_up: asked before every forward pass; True ends the step there.

    Attributes:
        micro_batch_tokens: most tokens in one forward pass.
        fused: how many modules were replaced by faster ones, by part.
    """

    def __init__(
        self,
        model: Any,
        config: RunConfig,
        pad_id: int,
        state: dict[str, Any] | None = None,
        say: Callable[[str], None] = lambda _: None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.config, self.pad_id = model, config, pad_id
        self.device = next(model.parameters()).device
        state = _of_this_device(state or {}, self.device)
        self._say, self._give_up = say, give_up
        self.micro_batch_tokens = int(
            state.get("micro_batch_tokens") or config.train.micro_batch_tokens or _default_tokens(self.device)
        )
        # only CUDA says how much memory a pass took and how much there is
        self._measured = self.device.type != "cuda" or config.train.micro_batch_tokens or "micro_batch_tokens" in state
        self.adapter_dtype = adapter_dtype(model, config, state.get("adapter_dtype"))
        self.packed = config.speed.packed and can_pack(model)
        # what the comparison of packed and separate rows said before an interruption counts: rounding may differ
        self._checked, self._checked_alone = "packed" in state, False
        self.packed = self.packed and state.get("packed", True)
        if config.speed.allocator and self.device.type == "cpu":
            keep_freed_memory()
        self._packing = PackedState.of(model)
        self._size = BlockSize.of(model)
        self.fused = fuse(model, config.speed, self._packing, self.adapter_dtype)
        self._flash = self._attention("sdpa" if state.get("flash") is False else config.speed.attention)
        if state.get("activation_checkpointing"):
            checkpoint_activations(self.model)

    def _attention(self, wanted: str) -> Callable[..., torch.Tensor] | None:
        """The kernel of packed rows where FlashAttention is used; says what is used.

        Raises:
            ModelError: FlashAttention is asked for and cannot be had.
        """
        if self.device.type == "cpu" and wanted != "flash":
            return None
        if not self.packed and wanted == "flash":
            raise ModelError(
                "speed.attention=flash is for packed rows, and this model's cannot be packed: take speed.attention=auto"
            )
        kernel, words = None, "the model's own (rows are padded side by side)"
        if self.packed:
            kernel, words = flash_kernel(wanted, self.device, self.model.get_input_embeddings().weight.dtype)
        self._say(f"attention: {words}; {'Liger kernels' if self.fused.get('liger') else 'kernels of torch'}")
        return kernel

    def describe(self) -> str:
        """What was chosen and decides how results are rounded, in words."""
        base = str(self.model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        own = f"; the adapter's products in {str(self.adapter_dtype).removeprefix('torch.')} (speed.adapter_dtype)"
        fused = self.fused.get("projections") or self.fused.get("mlp")
        return f"weights in {base}{own if fused else ''}"

    def state(self) -> dict[str, Any]:
        """What decides how steps are computed, for a checkpoint: JSON values only."""
        found = {
            "device": self.device.type,
            "micro_batch_tokens": self.micro_batch_tokens,
            "adapter_dtype": str(self.adapter_dtype).removeprefix("torch."),
            "activation_checkpointing": checkpoints_activations(self.model),
        }
        if self._checked or self._checked_alone:
            found.update(packed=self.packed, flash=self._flash is not None)
        return found

    def step(self, rows: Sequence[TrainingRow]) -> float:
        """Leaves the gradients of the mean loss over all answer tokens of ``rows`` in ``.grad``, which must be empty.

        When memory runs out, the step begins again with smaller forward passes: the rows, the mean and the random
        numbers stay the same.

        Returns:
            The loss.

        Raises:
            TrainingError: not even one row fits into memory.
            StepAbandoned: it was told to give up.
        """
        before = self._random_state()
        while True:
            try:
                if self.packed and not self._checked and not (self._checked_alone and len(rows) < 2):
                    self._check_packing(rows)
                return self._accumulate(rows)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else "MemoryError"
            except StepAbandoned:
                self.model.zero_grad(set_to_none=True)
                self._set_random_state(before)
                raise
            # outside of the handler, where the traceback no longer holds on to the tensors of the failed pass
            self.model.zero_grad(set_to_none=True)
            forget(self.model)
            self._set_random_state(before)
            self._shrink(rows, reason)

    def _random_state(self) -> list[torch.Tensor]:
        """Of the generators that dropout may draw from: the CPU's and, on a GPU, its own."""
        own = []
        if self.device.type == "cuda":
            own = [torch.cuda.get_rng_state(self.device)]
        elif self.device.type == "mps":
            own = [torch.mps.get_rng_state()]
        return [torch.get_rng_state(), *own]

    def _set_random_state(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        for own in states[1:]:
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(own, self.device)
            else:
                torch.mps.set_rng_state(own)

    def fit(self, rows: Sequence[TrainingRow]) -> None:
        """On an NVIDIA GPU: a dry run on the longest rows finds the largest forward pass that fits.

        Activation checkpointing is switched on when one row does not fit without.
        """
        if self._measured:
            return
        self._measured = True
        # a whole step of the longest rows: what they share is shared here too, as in any step
        longest = sorted(rows, key=lambda r: -len(r.input_ids))[: self.config.train.batch_size]
        before, stored = self._random_state(), not checkpoints_activations(self.model)
        averages = self._room_for_averages()
        self._find_largest(longest)
        if stored and checkpoints_activations(self.model):
            # what it found is one row a pass, with all activations stored; now that they are not, more fit
            self._find_largest(longest)
        del averages
        self._set_random_state(before)
        torch.cuda.empty_cache()

    def _find_largest(self, longest: Sequence[TrainingRow]) -> None:
        total = torch.cuda.get_device_properties(self.device).total_memory
        weights = torch.cuda.memory_allocated(self.device)
        for tokens in _GPU_TOKENS:
            self.micro_batch_tokens = tokens
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step(longest)
            self.model.zero_grad(set_to_none=True)
            if self.micro_batch_tokens < tokens or len(self._groups(longest)) == 1:
                break
            # the next size takes, beside the weights, at most twice as much
            more = 2 * (torch.cuda.max_memory_allocated(self.device) - weights)
            if weights + more > _MOST_GPU_MEMORY * total:
                break

    def _room_for_averages(self) -> torch.Tensor:
        """Holds what AdamW's two averages will take once the optimizer has taken its first step."""
        size = optimizer_bytes(self.model)
        try:
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        except RuntimeError as error:
            if not ran_out(error):
                raise
            raise TrainingError(
                f"out of memory: the optimizer's averages take {size / 1e9:.1f} GB beside the weights: take a smaller "
                "model, lora.method=lora instead of full, or fewer layers (lora.layers)"
            ) from error

    def _groups(self, rows: Sequence[TrainingRow], before: int = 0) -> list[list[TrainingRow]]:
        """The rows of a step by forward pass."""
        most, share = self.config.train.micro_batch_size, self.config.speed.share_prefix
        tokens = self.micro_batch_tokens
        return list(split_rows(rows, tokens, most, share=share, packed=self.packed, before=before))

    def _beginning(self, rows: Sequence[TrainingRow]) -> int:
        """How many tokens all rows begin with that are worth a pass of their own; 0: each pass computes its own.

        On a GPU a pass holds so many rows that there is little to gain.
        """
        on_cpu = self.device.type == "cpu" and self._flash is None
        if not (on_cpu and self.packed and self.config.speed.share_prefix) or checkpoints_activations(self.model):
            return 0
        shared, groups = shared_length(rows), self._groups(rows)
        if shared < _SHORTEST_BEGINNING or len(groups) < 2:
            return 0
        # rows that bring their own candidates share more within a pass than over the whole step
        more = max(shared_length(group) for group in groups)
        return shared if more < shared + _SHORTEST_BEGINNING else 0

    def _accumulate(self, rows: Sequence[TrainingRow]) -> float:
        total = sum(len(r.input_ids) - r.answer_start for r in rows)
        loss = 0.0
        self.model.train()
        shared = self._beginning(rows)
        once = CommonBeginning(self.model, self._packing, rows[0].input_ids[:shared], self._size) if shared else None
        for group in self._groups(rows, shared):
            if self._give_up():
                raise StepAbandoned
            loss += self._forward_backward(self._collate(group, shared), total, once.past if once else None)
        if once is not None:
            once.backward()
        return loss

    def _collate(self, group: Sequence[TrainingRow], before: int = 0) -> MicroBatch:
        if not self.packed:
            return padded_batch(group, self.pad_id).to(self.device)
        share = self.config.speed.share_prefix
        batch = packed_batch(group, share=share, size=self._size, before=before).to(self.device)
        if self._flash is not None and batch.layout is not None:
            batch.layout.segments = segments_of(batch.layout, self._flash)
        return batch

    def _forward_backward(self, batch: MicroBatch, total: int, past: KeysAndValues | None = None) -> float:
        if batch.layout is None:
            loss = self._losses(batch).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            with self._packing.running(batch.layout, self._kept(batch), past=past):
                loss = self._losses(batch).sum() / total
                loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _kept(self, batch: MicroBatch) -> torch.Tensor | None:
        return batch.kept if self.config.speed.last_layer else None

    def _losses(self, batch: MicroBatch) -> torch.Tensor:
        """Cross-entropy of each answer token, ``(n,)``."""
        positions = batch.layout.positions[None] if batch.layout else None
        out = self.model(
            input_ids=batch.input_ids, position_ids=positions, logits_to_keep=batch.keep, use_cache=False
        ).logits
        return torch.nn.functional.cross_entropy(out.float(), batch.targets, reduction="none")

    def _check_packing(self, rows: Sequence[TrainingRow]) -> None:
        """Compares packed with separate rows once, on the shortest rows.

        An architecture may do something unforeseen between tokens (recurrent layers, capped scores), and no list of
        models could keep up with that.
        """
        few = sorted(rows, key=lambda r: len(r.input_ids))[:2]
        flash, agree = self._flash is not None, self._agree(few)
        if flash and not agree:
            self._flash = None
            self._say("FlashAttention does not give what separate rows give; scaled_dot_product_attention is used")
            agree = self._agree(few)
        if not agree:
            self.packed = False
            self._say("this model's rows cannot be packed; they are padded side by side, which is slower")
        # a row alone, such as the last one of an epoch, says nothing about rows that must not see each other
        self._checked, self._checked_alone = len(few) == 2, True

    def _agree(self, few: Sequence[TrainingRow]) -> bool:
        training = self.model.training
        self.model.eval()
        try:
            return PackingCheck(few, self._packed_losses, self._separate_losses).passes(
                self.model,
                beginning=self._flash is None and self.device.type == "cpu",
                gradients=self._flash is not None or self.device.type != "cpu",
            )
        except Exception as error:
            if ran_out(error):
                raise
            return False  # whatever a kernel does not like, the rows can still be padded
        finally:
            self.model.train(training)

    def _separate_losses(self, rows: Sequence[TrainingRow]) -> torch.Tensor:
        return torch.cat([self._losses(padded_batch([r], self.pad_id).to(self.device)) for r in rows])

    @contextmanager
    def _packed_losses(self, rows: Sequence[TrainingRow], before: int = 0) -> Iterator[torch.Tensor]:
        """Backward passes happen within."""
        shared = rows[0].input_ids[:before]
        once = CommonBeginning(self.model, self._packing, shared, self._size) if before else None
        batch = self._collate(rows, before)
        assert batch.layout is not None
        with self._packing.running(batch.layout, self._kept(batch), past=once.past if once else None):
            yield self._losses(batch)

    def _shrink(self, rows: Sequence[TrainingRow], reason: str) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()
        # the passes as they were, with what they begin with computed before them
        before, share = self._beginning(rows), self.config.speed.share_prefix
        groups = [group for group in self._groups(rows, before) if len(group) > 1]
        longest = max(len(r.input_ids) for r in rows)
        if groups:
            used = max(tokens_of(group, share=share, packed=self.packed, before=before) for group in groups)
            self.micro_batch_tokens = max(used // 2, 1)
            self._say(
                f"out of memory: {self.micro_batch_tokens} tokens a forward pass from now on; batch and loss stay"
            )
        elif not checkpoints_activations(self.model):
            checkpoint_activations(self.model)
            self._say("out of memory: activations are computed twice from now on instead of being stored")
        else:
            raise TrainingError(
                f"out of memory with one row of {longest} tokens a forward pass ({reason}): lower prompt.max_length "
                f"(now {self.config.prompt.max_length}) or take a smaller model"
            )


def _of_this_device(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A run that goes on elsewhere finds out anew what suits the device; how its results are rounded stays."""
    if state.get("device", device.type) == device.type:
        return state
    return {"adapter_dtype": state["adapter_dtype"]}


def _default_tokens(device: torch.device) -> int:
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS[0]
