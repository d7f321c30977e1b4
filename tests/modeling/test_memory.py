"""Memory that is free between blocks in use goes back to the system when it is asked for."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

# blocks of a size that malloc takes from its heap; every fiftieth stays, so that the heap cannot shrink by itself
FRAGMENTS = """
import ctypes, json
from fenlei.modeling.memory import trim_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
sizes = [resident()]
blocks = [libc.malloc(100_000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
sizes.append(resident())
for number, block in enumerate(blocks):
    if number % 50:
        libc.free(block)
sizes.append(resident())
trim_memory()
sizes.append(resident())
print(json.dumps(sizes))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_what_is_free_between_blocks_is_given_back():
    done = subprocess.run([sys.executable, "-c", FRAGMENTS], capture_output=True, text=True, check=True)
    before, full, freed, trimmed = json.loads(done.stdout)
    assert full - before > 190e6
    assert freed - before > 150e6, "the control: free alone does not do it"
    assert trimmed - before < 30e6
