"""Specs, plain folders, GGUF files and the commands: every mistake is one message with what to do."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fenlei.cli.models import app
from fenlei.errors import ModelError
from fenlei.modeling.sources import needs_remote_code, resolve
from fenlei.modeling.sources.cache import HashMemo, ModelCache, size_text
from fenlei.modeling.sources.folder import check_model_folder
from fenlei.modeling.sources.spec import parse_spec
from tests.modeling.sources.tiny import sha256


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision"),
    [
        ("Qwen/Qwen1.5-7B-Chat", "hub", "Qwen/Qwen1.5-7B-Chat", None),
        ("qwen/Qwen1.5-7B-Chat@v1", "hub", "qwen/Qwen1.5-7B-Chat", "v1"),
        ("ms:Qwen/Qwen3-8B", "modelscope", "Qwen/Qwen3-8B", None),
        ("hf:Qwen/Qwen3-8B@refs/pr/1", "huggingface", "Qwen/Qwen3-8B", "refs/pr/1"),
        ("  smollm2-135m ", "builtin", "smollm2-135m", None),
    ],
)
def test_forms(text, kind, name, revision):
    spec = parse_spec(text)
    assert (spec.kind, spec.name, spec.revision) == (kind, name, revision)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found nothing"),
        ("   ", "found nothing"),
        ("a\x00b", "control characters"),
        ("x" * 5000, "too long"),
        ("smolm2-135m", "did you mean 'smollm2-135m'"),
        ("qwen2.5-coder", "did you mean 'qwen2.5-coder-"),
        ("Qwen2.5-Coder-0.5B", "did you mean 'qwen2.5-coder-0.5b'"),
        ("ms:Qwen", "expected ORG/NAME"),
        ("ms:", "expected ORG/NAME"),
        ("hf:../etc", "expected ORG/NAME"),
        ("hf:a/b/c", "expected ORG/NAME"),
        ("hf:a/b..c", "expected ORG/NAME"),
        ("hf:a/b@", "after @"),
        ("hf:a/b@../../x", "after @"),
        ("hf:a/b@$(touch x)", "after @"),
        ("https://huggingface.co/a/b", "for a hub write"),
        ("./nowhere", "does not exist"),
        ("nowhere.gguf", "does not exist"),
        ("~nobody-of-that-name/x", "does not exist"),
        ("a/b/c", "does not exist"),
        ("$(touch x)", "unknown name"),
        ("中文", "unknown name"),
        ("-rf", "unknown name"),
    ],
)
def test_mistakes(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message.replace("$", r"\$").replace("(", r"\(")) as error:
        resolve(text, cache_dir=tmp_path / "cache", show_progress=False)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []  # not even a cache folder


def test_nearest_path(tmp_path, monkeypatch):
    (tmp_path / "models" / "qwen-tuned").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"did you mean .*models/qwen-tuned"):
        parse_spec("./models/qwen-tund")
    with pytest.raises(ModelError, match=r"did you mean .*models\?"):
        parse_spec("./modles/qwen-tuned")


def test_folder(model_folder, tmp_path):
    found = resolve(str(model_folder), cache_dir=tmp_path / "c")
    assert (found.path, found.source, found.revision) == (model_folder, "folder", None)
    assert found.weights_sha256() == {"model.safetensors": sha256((model_folder / "model.safetensors").read_bytes())}


def test_relative_folder_becomes_absolute(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    assert resolve("./model", cache_dir=tmp_path / "c").path == model_folder
    assert resolve("model", cache_dir=tmp_path / "c").path == model_folder


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def sharded(weight_map):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def adapter(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), "expected a model folder"),
        (write("config.json", b"{"), "cannot be read as JSON"),
        (write("config.json", b"\xff\xfe"), "cannot be read as JSON"),
        (write("config.json", b"[1]"), "expected a JSON object"),
        (write("config.json", b"[" * 100_000), "cannot be read as JSON"),
        (write("config.json", b"{}"), "model_type"),
        (remove("tokenizer.json"), "the tokenizer is missing"),
        (remove("model.safetensors"), "found none"),
        (cut, "cut short"),
        (write("model.safetensors", b""), "not a whole safetensors file"),
        (write("model.safetensors", b"\xff" * 100), "not a whole safetensors file"),
        (only_pickle, r"pytorch_model\.bin, a pickle"),
        (sharded({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}), "1 of 2"),
        (sharded({"a": "../secret.safetensors"}), "beside it"),
        (sharded({"a": "x.bin"}), "beside it"),
        (sharded({"a": 3}), "beside it"),
        (sharded({}), "weight_map"),
        (adapter, "this is an adapter"),
    ],
)
def test_folders_that_are_not_whole(change, message, model_folder, tmp_path):
    change(model_folder)
    with pytest.raises(ModelError, match=message):
        resolve(str(model_folder), cache_dir=tmp_path / "c")


def test_whole_shards_pass(model_folder):
    sharded({"a": "model-00001-of-00002.safetensors"})(model_folder)
    check_model_folder(model_folder)


def test_other_files_and_folders(tmp_path, tiny_gguf):
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ModelError, match="give its folder"):
        resolve(str(tmp_path / "a.safetensors"))
    shutil.copy(tiny_gguf, tmp_path / "x.gguf")
    with pytest.raises(ModelError, match=r"did you mean the file .*x\.gguf"):
        resolve(str(tmp_path))
    (tmp_path / "run" / "classifier").mkdir(parents=True)
    with pytest.raises(ModelError, match="trained classifier"):
        resolve(str(tmp_path / "run"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_needs_remote_code(file, model_folder):
    assert not needs_remote_code(model_folder)
    values = json.loads((model_folder / file).read_text())
    (model_folder / file).write_text(json.dumps({**values, "auto_map": {"AutoTokenizer": ["x.Y", None]}}))
    assert needs_remote_code(model_folder)


def test_gguf_file_is_converted_once_by_its_content(tiny_gguf, tmp_path, monkeypatch):
    copy = tmp_path / "mine.gguf"
    shutil.copy(tiny_gguf, copy)
    first = resolve(str(copy), cache_dir=tmp_path / "c", show_progress=False)
    assert first.source == "gguf"
    from fenlei.modeling.sources import gguf_convert

    monkeypatch.setattr(gguf_convert, "convert_gguf", lambda *_, **__: pytest.fail("converted twice"))
    (tmp_path / "elsewhere").mkdir()
    other = shutil.copy(tiny_gguf, tmp_path / "elsewhere" / "renamed.GGUF")
    assert resolve(str(other), cache_dir=tmp_path / "c", show_progress=False, offline=True).path == first.path
    assert list(first.weights_sha256()) == ["model.safetensors"]


def test_changed_gguf_file_is_another_model(tiny_gguf, tmp_path):
    file = tmp_path / "m.gguf"
    shutil.copy(tiny_gguf, file)
    first = resolve(str(file), cache_dir=tmp_path / "c", show_progress=False)
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    assert resolve(str(file), cache_dir=tmp_path / "c", show_progress=False).path != first.path


def test_damaged_gguf_file_leaves_nothing(tmp_path, tiny_gguf):
    file = tmp_path / "m.gguf"
    file.write_bytes(tiny_gguf.read_bytes()[:5000])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        resolve(str(file), cache_dir=tmp_path / "c", show_progress=False)
    assert not (tmp_path / "c").exists()


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    from fenlei.modeling.sources import cache

    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    memo = HashMemo(tmp_path / "c")
    read = []
    real = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda path, advance=None: read.append(path) or real(path, advance))
    assert memo.sha256(file) == memo.sha256(file) == sha256(b"one")
    assert len(read) == 1
    file.write_bytes(b"three")
    assert HashMemo(tmp_path / "c").sha256(file) == sha256(b"three")
    (tmp_path / "c" / "sha256.json").write_text("[broken")
    assert memo.sha256(file) == sha256(b"three")


def test_cache_that_is_a_file_or_cannot_be_written(tmp_path, tiny_gguf):
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="expected a folder"):
        resolve(str(tiny_gguf), cache_dir=tmp_path / "file")
    with pytest.raises(ModelError, match="cannot be written"):
        ModelCache(tmp_path / "file" / "below").staging("x")


def test_sizes_for_people():
    assert [size_text(n) for n in (5, 5_000, 491_400_064, 1_117_320_768)] == ["5 bytes", "5.0 kB", "491 MB", "1.1 GB"]


# -- commands ------------------------------------------------------------------------------------------------------
def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_path_prints_only_the_folder(tiny_gguf, tmp_path):
    done = run("path", tiny_gguf, "--cache-dir", tmp_path / "c")
    assert done.exit_code == 0
    assert done.stdout == f"{next((tmp_path / 'c' / 'models').iterdir())}\n"
    assert "converting" in done.stderr


def test_pull_and_list(tiny_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert "not fetched" in run("list", "--cache-dir", tmp_path / "c").stdout
    assert not (tmp_path / "c").exists()
    done = run("pull", tiny_gguf, "--cache-dir", tmp_path / "c", "--offline")
    assert "is ready" in done.stdout
    listed = run("list", "--cache-dir", tmp_path / "c").stdout
    assert str(tiny_gguf) in listed
    assert "smollm2-135m" in listed
    assert "Apache-2.0" in listed


@pytest.mark.parametrize(
    "arguments",
    [("pull", "no-such"), ("path", ""), ("pull", "smollm2-135m", "--offline"), ("list", "--cache-dir", "FILE")],
)
def test_mistakes_at_the_command_line(arguments, tmp_path):
    (tmp_path / "file").touch()
    arguments = [str(tmp_path / "file") if a == "FILE" else a for a in arguments]
    if "--cache-dir" not in arguments:
        arguments += ["--cache-dir", tmp_path / "c"]
    done = run(*arguments)
    assert isinstance(done.exception, ModelError)
    assert done.exception.exit_code == 2
    assert done.stdout == ""
    assert not (tmp_path / "c" / "models").exists()


def test_start_up_imports_nothing_heavy():
    script = (
        "import sys, fenlei.modeling.sources as s, fenlei.cli.models; s.needs_remote_code('.');"
        "from fenlei.modeling.sources.spec import parse_spec; parse_spec('smollm2-135m');"
        "heavy = {'torch', 'transformers', 'modelscope', 'huggingface_hub', 'numpy', 'gguf', 'filelock'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_builtin_names_do_not_import_the_hubs_libraries(tmp_path):
    script = (
        "import sys; from fenlei.modeling.sources import resolve\n"
        "try: resolve('smollm2-135m', cache_dir=sys.argv[1], offline=True)\n"
        "except Exception as e: assert 'offline' in str(e), e\n"
        "assert not {'modelscope', 'huggingface_hub', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
