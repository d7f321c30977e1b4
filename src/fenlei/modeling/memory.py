"""Memory: what is stored, what is computed again, what is given back, and whether it ran out."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_LARGEST = 2**31 - 1
_DEFAULTS = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 * 1024}
# as CUDA, its libraries, and the allocators of the CPU say it
_RAN_OUT = ("out of memory", "not enough memory", "can't allocate memory", "cublas_status_alloc_failed")


def keep_freed_memory() -> bool:
    """Tells glibc's malloc not to give large blocks back to the system after each use.

    By default it maps tensors above a threshold on their own and unmaps them when freed, so that every step pays a
    page fault for each 4 KiB that it touches.

    Returns:
        Whether it was done: only glibc knows the calls.
    """
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def give_memory_back() -> None:
    """Undoes :func:`keep_freed_memory`, and gives the system what was kept: a notebook or server lives on."""
    if (libc := _glibc()) is not None:
        for name, value in _DEFAULTS.items():
            libc.mallopt(name, value)
        libc.malloc_trim(0)


def trim_memory() -> None:
    """Gives the system what is free between the blocks in use; nothing where malloc is not glibc's.

    Passes of ever other sizes do not quite fit into what the ones before them left, so that the memory of a process
    which goes on for days would rise a little now and then. It takes 3 to 16 ms with a model of 0.5B parameters; the
    next pass pays for the pages that it touches again.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library with glibc's calls, or None: musl and other systems do not have them."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError):
        return None


def checkpoint_activations(model: Any) -> None:
    """From now on a layer's activations are computed again in the backward pass instead of being stored."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # renamed in transformers 5.2x; the old name warns there
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    base.enable_input_require_grads()


def checkpoints_activations(model: Any) -> bool:
    """Whether a model computes activations again."""
    return any(getattr(m, "gradient_checkpointing", False) is True for m in model.modules())


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that there was not enough memory, on a GPU or on the CPU."""
    if isinstance(error, MemoryError):
        return True
    # torch's own kind is a RuntimeError, too, whatever it says
    text = f"{type(error).__name__}: {error}".lower().replace("outofmemory", "out of memory")
    return isinstance(error, RuntimeError) and any(words in text for words in _RAN_OUT)
