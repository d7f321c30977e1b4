"""Killed and concurrent pulls: nothing is half there, what has arrived is kept, and the work is done once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict

import pytest

from fenlei.modeling.sources import builtin, cache
from tests.modeling.sources.shelf import NAME, PARTS, whole_entries

# What a process of its own does: pull, but stop for ever (or wait) at a given place.
_DRIVER = """
import json, os, pathlib, sys, time
from fenlei.modeling.sources import builtin, cache, gguf_convert, pip_index, resolve, wheels
from fenlei.modeling.sources.builtin import BuiltinModel, Part
spec = json.loads(pathlib.Path(sys.argv[1]).read_text())
spec["parts"] = tuple(Part(**p) for p in spec["parts"])
builtin.BUILTIN[spec["name"]] = BuiltinModel(**spec)
folder, stop = pathlib.Path(sys.argv[2]), sys.argv[3]
def halt(*_):
    (folder / "reached").touch()
    time.sleep(600)
def count(part, *rest, real=wheels.download):
    with open(folder / "downloads", "a") as log: log.write(part.project + "\\n")
    real(part, *rest)
    if stop == "download" and part.project.endswith("1"): halt()
wheels.download = count
if stop == "assemble":
    real_blocks = wheels._blocks
    def blocks(wheel, part):
        for block in real_blocks(wheel, part):
            yield block[: len(block) // 2]
            halt()
    wheels._blocks = blocks
if stop == "convert":
    import safetensors.torch
    def half(tensors, path, **_):
        pathlib.Path(path).write_bytes(b"half"); halt()
    safetensors.torch.save_file = half
if stop == "manifest":
    cache.write_json = halt
if stop == "rename":
    real_replace = os.replace
    cache.os.replace = lambda a, b: halt() if "models" in str(b) else real_replace(a, b)
print(resolve(spec["name"], cache_dir=folder / "cache", show_progress=False).path)
"""


@pytest.fixture
def spec_file(shelf, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(asdict(builtin.BUILTIN[NAME])))
    return path


def start(spec_file, tmp_path, stop):
    command = [sys.executable, "-c", _DRIVER, str(spec_file), str(tmp_path), stop]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, process, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize(
    ("stop", "fetched_again"), [("download", 1), ("assemble", 0), ("convert", 0), ("manifest", 0), ("rename", 0)]
)
def test_killed_pull_leaves_nothing_half_and_goes_on(stop, fetched_again, spec_file, pull, downloads, tmp_path):
    process = start(spec_file, tmp_path, stop)
    try:
        wait_for(tmp_path / "reached", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert whole_entries(tmp_path) == []
    found = pull()  # the lock of the killed process is free
    assert (found.path / cache.MANIFEST).is_file()
    assert len(downloads) == fetched_again
    assert not list((tmp_path / "cache" / "staging").iterdir())


def test_two_processes_pull_once(spec_file, tmp_path):
    both = [start(spec_file, tmp_path, "never") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] != ""
    assert len((tmp_path / "downloads").read_text().split()) == PARTS


def test_a_waiting_process_says_so(tmp_path):
    store = cache.ModelCache(tmp_path)
    script = textwrap.dedent("""
        import sys
        from fenlei.modeling.sources.cache import ModelCache
        with ModelCache(sys.argv[1]).lock("k"):
            print("held", flush=True)
            sys.stdin.read()
    """)
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    waited = []

    def release():
        waited.append(True)
        holder.stdin.close()

    with store.lock("k", release):
        pass
    assert waited == [True]
    holder.wait()
    holder.stdout.close()
