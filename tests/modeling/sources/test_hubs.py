"""Hub models: complete local copies first, then a download. The libraries are real, their downloads are played."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest

from fenlei.errors import ModelError
from fenlei.modeling.sources import hubs, reach, resolve

SPEC = "Qwen/Tiny-Chat"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Neither the user's caches nor a network."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms-default"))
    # the library reads the variable once a process; an earlier test may have made it do so
    monkeypatch.setattr("modelscope_hub.config._default_config", None)
    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hf-default"))

    def no_network(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", no_network)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def in_modelscope_cache(cache, model_folder, revision="master"):
    target = cache / "modelscope" / "models" / SPEC.replace("/", "--") / "snapshots" / revision
    shutil.copytree(model_folder, target)
    return target


def in_hf_cache(cache, model_folder, commit=COMMIT, ref="main"):
    repo = cache / "huggingface" / ("models--" + SPEC.replace("/", "--"))
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
    target = repo / "snapshots" / commit
    shutil.copytree(model_folder, target)
    return target


def find(cache, spec=SPEC, **more):
    return resolve(spec, cache_dir=cache, show_progress=False, **more)


class Played:
    """Plays both hubs' listings and downloads: which were asked, for what."""

    def __init__(self, monkeypatch, model_folder, up=("modelscope", "huggingface")):
        self.calls, self.source = [], model_folder
        self.fail, self.cut, self.files = {}, False, None
        monkeypatch.setattr(
            hubs,
            "reachable",
            lambda wanted: {h for h in wanted if {"ModelScope": "modelscope"}.get(h.name, "huggingface") in up},
        )
        import huggingface_hub
        import modelscope
        from modelscope.hub.api import HubApi

        monkeypatch.setattr(HubApi, "get_model_files", lambda _, *a, **k: self.modelscope_listing(*a, **k))
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", lambda _, *a, **k: self.hf_listing(*a, **k))

        self.real = {"modelscope": modelscope.snapshot_download, "huggingface": huggingface_hub.snapshot_download}
        monkeypatch.setattr(modelscope, "snapshot_download", lambda *a, **k: self.snapshot("modelscope", *a, **k))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: self.snapshot("huggingface", *a, **k))

    def names(self):
        listed = {p.name: p.stat().st_size for p in self.source.iterdir()} if self.files is None else self.files
        return {**listed, "README.md": 10, "pytorch_model.bin": 10, "onnx/model.safetensors": 10}

    def modelscope_listing(self, name, revision=None, recursive=True):
        if "modelscope" in self.fail:
            raise self.fail["modelscope"]
        return [{"Path": name, "Size": size} for name, size in self.names().items()]

    def hf_listing(self, name, revision=None, recursive=True):
        from huggingface_hub.hf_api import RepoFile

        if "huggingface" in self.fail:
            raise self.fail["huggingface"]
        return [RepoFile(path=name, size=size, oid="x") for name, size in self.names().items()]

    def snapshot(self, key, name, *, revision=None, cache_dir=None, local_files_only=False, allow_patterns=None):
        if local_files_only:
            return self.real[key](
                name, revision=revision, cache_dir=cache_dir, local_files_only=True, allow_patterns=allow_patterns
            )
        print("the library talks on standard output")
        self.calls.append((key, name, revision, sorted(allow_patterns)))
        root = Path(cache_dir).parent
        put = in_modelscope_cache if key == "modelscope" else in_hf_cache
        for old in Path(cache_dir).rglob("snapshots"):
            shutil.rmtree(old)
        target = put(root, self.source, **({"revision": revision} if revision and key == "modelscope" else {}))
        if self.cut:
            weights = target / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-100])
        return str(target)


def test_complete_local_copies_in_order(cache, model_folder):
    theirs = in_hf_cache(cache, model_folder)
    found = find(cache, offline=True)
    assert (found.path, found.source, found.revision) == (theirs, "huggingface", COMMIT)
    ours = in_modelscope_cache(cache, model_folder)
    found = find(cache, offline=True)
    assert (found.path, found.source, found.revision) == (ours, "modelscope", "master")
    assert find(cache, f"hf:{SPEC}", offline=True).source == "huggingface"
    assert find(cache, f"hf:{SPEC}@main", offline=True).revision == COMMIT
    with pytest.raises(ModelError, match="offline"):
        find(cache, f"ms:{SPEC}@v2", offline=True)
    assert list(found.weights_sha256()) == ["model.safetensors"]


def test_an_incomplete_copy_is_passed_over(cache, model_folder):
    broken = in_modelscope_cache(cache, model_folder)
    (broken / "model.safetensors").write_bytes(b"")
    in_hf_cache(cache, model_folder)
    assert find(cache, offline=True).source == "huggingface"


def test_without_the_check_the_incomplete_copy_would_be_taken(cache, model_folder, monkeypatch):
    """Control."""
    broken = in_modelscope_cache(cache, model_folder)
    (broken / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(hubs, "is_complete", lambda _: True)
    assert find(cache, offline=True).path == broken


def test_the_hubs_own_caches_are_used_too(cache, model_folder, tmp_path):
    folder = in_hf_cache(cache, model_folder)
    (tmp_path / "hf-default").parent.mkdir(exist_ok=True)
    shutil.move(str(cache / "huggingface"), tmp_path / "hf-default")
    found = find(cache, offline=True)
    assert found.path.name == folder.name
    assert "hf-default" in str(found.path)


def test_nothing_reachable_is_said_within_five_seconds(cache):
    start = time.monotonic()
    with pytest.raises(ModelError, match="no hub can be reached") as error:
        find(cache)
    assert time.monotonic() - start < 5
    assert "ModelScope (" in str(error.value)
    assert "Hugging Face (" in str(error.value)


def test_download_takes_only_what_is_needed(cache, model_folder, monkeypatch, capsys):
    (model_folder / "consolidated.safetensors").write_bytes(b"x")
    played = Played(monkeypatch, model_folder)
    found = find(cache)
    ((key, name, revision, files),) = played.calls
    assert (key, name, revision) == ("modelscope", SPEC, None)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(files)
    assert not {"README.md", "pytorch_model.bin", "onnx/model.safetensors", "consolidated.safetensors"} & set(files)
    assert found.source == "modelscope"
    assert capsys.readouterr().out == ""
    assert find(cache) == found
    assert len(played.calls) == 1


@pytest.mark.parametrize("spec", [f"hf:{SPEC}", f"hf:{SPEC}@main"])
def test_the_prefix_forces_a_hub(spec, cache, model_folder, monkeypatch):
    played = Played(monkeypatch, model_folder)
    assert find(cache, spec).source == "huggingface"
    assert [call[0] for call in played.calls] == ["huggingface"]


def test_one_hub_down_or_without_the_model(cache, model_folder, monkeypatch):
    played = Played(monkeypatch, model_folder, up=("huggingface",))
    assert find(cache).source == "huggingface"
    shutil.rmtree(cache)
    played = Played(monkeypatch, model_folder)
    played.fail["modelscope"] = RuntimeError("404: no such model\nmore")
    assert find(cache).source == "huggingface"
    shutil.rmtree(cache)
    played.fail["huggingface"] = RuntimeError("gated: ask for access")
    with pytest.raises(ModelError, match=r"ModelScope: 404: no such model \| Hugging Face: gated"):
        find(cache)


def test_revision_is_passed_on(cache, model_folder, monkeypatch):
    played = Played(monkeypatch, model_folder)
    found = find(cache, f"ms:{SPEC}@v1.0")
    assert (played.calls[0][2], found.revision) == ("v1.0", "v1.0")


def test_a_cut_download_is_named_and_fetched_again(cache, model_folder, monkeypatch):
    played = Played(monkeypatch, model_folder)
    played.cut = True
    with pytest.raises(ModelError, match=r"model\.safetensors.*cut short"):
        find(cache)
    with pytest.raises(ModelError, match="offline"):
        find(cache, offline=True)
    played.cut = False
    assert find(cache).path.is_dir()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": 1}, "pickle"),
        ({"tiny-q4.gguf": 1, "config.json": 1}, r"GGUF files only.*\./tiny-q4\.gguf"),
    ],
)
def test_repositories_of_no_use_are_refused_before_the_download(files, message, cache, model_folder, monkeypatch):
    played = Played(monkeypatch, model_folder)
    played.files = files
    with pytest.raises(ModelError, match=message):
        find(cache)
    assert played.calls == []


def test_disk_space_is_checked_first(cache, model_folder, monkeypatch):
    played = Played(monkeypatch, model_folder)
    played.files = {"config.json": 1, "model.safetensors": 10**15}
    with pytest.raises(ModelError, match="disk space"):
        find(cache)
    assert played.calls == []


def test_legacy_names_pass_through(cache, model_folder, monkeypatch):
    played = Played(monkeypatch, model_folder)
    monkeypatch.setattr(sys.modules[__name__], "SPEC", "qwen/Qwen1.5-7B-Chat")
    find(cache, "qwen/Qwen1.5-7B-Chat")
    assert played.calls[0][1] == "qwen/Qwen1.5-7B-Chat"


def test_existing_folder_comes_first(cache, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, tmp_path / "Qwen" / "Tiny-Chat")
    in_modelscope_cache(cache, model_folder)
    assert find(cache).source == "folder"


def test_endpoints_come_from_the_libraries_settings(monkeypatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "https://mirror.test:8443")
    host = reach.host_of(hubs.HUBS["modelscope"].endpoint(), "ModelScope")
    assert (host.host, host.port) == ("mirror.test", 8443)
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    assert "modelscope" in hubs.HUBS["modelscope"].endpoint()
    assert hubs.HUBS["huggingface"].endpoint().startswith("http")


def test_code_of_a_model_is_never_run_here(cache, model_folder, monkeypatch, tmp_path):
    from fenlei.modeling.sources import needs_remote_code

    canary = tmp_path / "canary"
    (model_folder / "modeling_x.py").write_text(f"open({str(canary)!r}, 'w')")
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}})
    )
    Played(monkeypatch, model_folder)
    found = find(cache)
    assert needs_remote_code(found.path)
    assert not canary.exists()
