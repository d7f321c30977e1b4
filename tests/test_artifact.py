from __future__ import annotations

import json

import pytest

from fenlei.artifact import MANIFEST, read_artifact, write_artifact, write_json
from fenlei.errors import ArtifactError


def write(path, weights=b"w", fail=False):
    def save(folder):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(weights)
        if fail:
            raise OSError("No space left on device")

    parts = {"labels": {"names": ["a"]}, "prompt": {}, "calibration": {"temperature": 1.0}}
    return write_artifact(path, **parts, base_model={"spec": "x"}, save_weights=save)


def test_whole_or_absent(tmp_path):
    with pytest.raises(ArtifactError, match="No space left"):
        write(tmp_path / "c", fail=True)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_earlier_classifier(tmp_path):
    write(tmp_path / "c", b"first")
    with pytest.raises(ArtifactError):
        write(tmp_path / "c", b"second", fail=True)
    artifact = read_artifact(tmp_path / "c")
    assert (artifact.path / "adapter" / "adapter_model.safetensors").read_bytes() == b"first"
    write(tmp_path / "c", b"second")
    assert (artifact.path / "adapter" / "adapter_model.safetensors").read_bytes() == b"second"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not a classifier folder"):
        write(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_run_folder_leads_to_its_classifier(tmp_path):
    write(tmp_path / "run" / "classifier")
    assert read_artifact(tmp_path / "run").path == tmp_path / "run" / "classifier"


def test_newer_format_is_refused(tmp_path):
    folder = write(tmp_path / "c")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(ArtifactError, match="format version 99"):
        read_artifact(folder)


def test_a_manifest_cannot_point_outside(tmp_path):
    folder = write(tmp_path / "c")
    manifest = json.loads((folder / MANIFEST).read_text())
    (tmp_path / "secret").write_text("x")
    manifest["files"]["../secret"] = "0"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"\.\./secret is missing"):
        read_artifact(folder)


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
