"""One copy of a base model's weights for several models with adapters of their own.

A model is a tree of small Python objects around large tensors. :meth:`SharedBase.view` copies the tree and keeps the
tensors, so an adapter, and whatever else is put into one view, is in no other: nothing has to be switched between two
classifiers, no answer depends on who was asked before, and an adapter's memory goes with its view. A view takes a few
megabytes beside its adapter.

That holds as long as nobody writes into the weights themselves, see :func:`require_frozen_base`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from fenlei.config import ModelConfig
from fenlei.errors import ArtifactError

# settings that decide what the weights in memory are
_SAME = ("device", "quantization", "trust_remote_code")


class SharedBase:
    """A base model in memory, from which models are made that share its weights.

    Args:
        model: as :func:`fenlei.modeling.loading.load_model` gives it; from here on nobody else may change it.
        config: the settings that it was loaded with.
        sha256: hashes of its weight files, by file name.
        spec: its name, for messages.
    """

    def __init__(self, model: Any, config: ModelConfig, sha256: Mapping[str, str], spec: str) -> None:
        self.model, self.config, self.sha256, self.spec = model, config, dict(sha256), spec
        self._tokenizer: tuple[Hashable, Any, Any] = (None, None, None)

    def view(self) -> Any:
        """A model of its own on the same weights."""
        return copy.deepcopy(self.model, _kept(self.model))

    def tokenizer(self, key: Hashable) -> tuple[Any, Any]:
        """What :meth:`keep_tokenizer` kept, if that was under the same key; else (None, None)."""
        kept, tokenizer, plain = self._tokenizer
        return (tokenizer, plain) if kept == key else (None, None)

    def keep_tokenizer(self, key: Hashable, tokenizer: Any, plain: Any) -> None:
        """Keeps a tokenizer, and what an encoder made of it, for the next classifier; only the last one.

        Args:
            key: says which tokenizer it is, e.g. by the hashes of its files.
            tokenizer: itself.
            plain: see :attr:`fenlei.prompting.PromptEncoder.plain`.
        """
        self._tokenizer = (key, tokenizer, plain)

    def differing_setting(self, config: ModelConfig) -> str | None:
        """The first setting of a classifier that the weights in memory do not go with, in words; None: they do."""
        from fenlei.modeling.loading import pick_device, pick_dtype

        for name in _SAME:
            own, loaded = getattr(config, name), getattr(self.config, name)
            if own != loaded:
                return f"model.{name}={own}, not {loaded}"
        own_dtype = pick_dtype(config, pick_device(config))
        if own_dtype != self.model.dtype:
            return f"model.dtype={str(own_dtype)[6:]}, not {str(self.model.dtype)[6:]}"
        return None


def _kept(model: Any) -> dict[int, Any]:
    """What a copy of a model refers to instead of copying it, as ``copy.deepcopy`` wants it."""
    kept: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        kept[id(tensor)] = tensor
        state = getattr(tensor, "quant_state", None)  # what 4-bit weights are read with
        if state is not None:
            kept[id(state)] = state
    return kept


def require_frozen_base(folder: Path) -> None:
    """Makes sure that an adapter leaves the base weights as they are when it is loaded and used.

    Adapters that fenlei trains do, with every ``lora.method`` but ``full``: DoRA's sizes lie in the adapter, and so
    does the part of the weights that PiSSA begins with.

    Args:
        folder: the adapter's folder.

    Raises:
        ArtifactError: it writes into them, or cannot be read.
    """
    path = folder / "adapter_config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON: {error}") from None
    start = values.get("init_lora_weights", True)
    # by name: PEFT's ways to begin with a part of the weights, which is taken out of them
    if values.get("peft_type") != "LORA" or isinstance(start, str) or values.get("bias", "none") != "none":
        what = {"peft_type": values.get("peft_type"), "init_lora_weights": start, "bias": values.get("bias")}
        raise ArtifactError(
            f"{path}: this adapter may change the base model's own weights ({what}), so it cannot share them with "
            "other classifiers; give it a server of its own"
        )


def release(model: Any) -> None:
    """Undoes the circles of references in a view, so that its memory is free when the last one lets go of it."""
    from fenlei.modeling.fuse import unfuse

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # the kernels that Liger put into the model's source file are in use by the other views
    base.__dict__.pop("fenlei_liger", None)
    unfuse(model)
