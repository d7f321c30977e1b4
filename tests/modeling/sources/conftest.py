"""Tiny models on disk."""

from __future__ import annotations

import pytest

from tests.modeling.sources.tiny import tiny_model, write_gguf


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
