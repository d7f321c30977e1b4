from __future__ import annotations

import importlib
import json
import socket
import time

import pytest

from fenlei.config import DataConfig
from fenlei.data import hub, read_examples
from fenlei.errors import DataError

datasets = pytest.importorskip("datasets")
ROWS = {"train": ["甲", "乙"], "validation": ["丙"], "test": ["丁"]}


def modelscope_module():
    # `modelscope.hub` shows the function under this module's name, so the dotted path does not lead here
    return importlib.import_module("modelscope.hub.snapshot_download")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms-cache"))
    # the library reads the variable once a process; an earlier test may have made it do so
    monkeypatch.setattr("modelscope_hub.config._default_config", None)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture
def folder(tmp_path):
    """A repository as a hub gives it: files named for their splits."""
    path = tmp_path / "repo"
    path.mkdir()
    for split, texts in ROWS.items():
        lines = (json.dumps({"text": t, "category": ["a", "b"], "output": "a"}, ensure_ascii=False) for t in texts)
        (path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def parquet_folder(tmp_path):
    """Parquet with class names: only `datasets` knows that 0 means `neg`."""
    path = tmp_path / "parquet-repo"
    path.mkdir()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    for split, texts in ROWS.items():
        values = {"text": texts, "label": [1] * len(texts)}
        datasets.Dataset.from_dict(values, features=features).to_parquet(path / f"{split}-00000-of-00001.parquet")
    return path


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda url: True)


def texts(source, role="train", **settings):
    result = read_examples(source, DataConfig(**settings), role=role, need_label=role != "predict")
    return [e.text for e in result.examples], result


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("ms:a/b", ("ms", "a/b")),
        ("hf:a/b", ("hf", "a/b")),
        ("hf:squad", ("hf", "squad")),
        ("no-such-org/name", ("ms hf", "no-such-org/name")),
        ("no-such-folder/train.jsonl", None),
        ("./no-such-org/name", None),
        ("train.jsonl", None),
        ("a/b/c", None),
        ("~/x", None),
    ],
)
def test_what_counts_as_an_id(source, found):
    assert hub.hub_id(source) == found


def test_a_path_that_exists_is_no_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.hub_id("org/name") is None
    assert hub.hub_id("org/nmae") is None  # a slip in a path is not looked up on the network
    assert hub.hub_id("ms:org/name") == ("ms", "org/name")


def test_modelscope_through_its_library(folder, online, monkeypatch):
    calls = []

    def snapshot_download(**kwargs):
        calls.append(kwargs)
        return str(folder)

    monkeypatch.setattr(modelscope_module(), "snapshot_download", snapshot_download)
    assert texts("ms:org/name")[0] == ROWS["train"]
    assert calls == [{"repo_id": "org/name", "repo_type": "dataset", "local_files_only": False}]
    assert texts("ms:org/name", "dev")[0] == ROWS["validation"]
    found, result = texts("org/name", "test")
    assert found == ROWS["test"]
    assert result.examples[0].source == "ms:org/name/test.jsonl:1"
    assert texts("ms:org/name", "predict")[0] == ROWS["test"]
    assert texts("ms:org/name", split="validation")[0] == ROWS["validation"]


def test_modelscope_parquet_keeps_class_names(parquet_folder, online, monkeypatch):
    monkeypatch.setattr(modelscope_module(), "snapshot_download", lambda **kwargs: str(parquet_folder))
    found, result = texts("ms:org/name")
    assert found == ROWS["train"]
    assert {e.label for e in result.examples} == {"pos"}
    assert result.examples[1].source == "ms:org/name/train:2"


def test_hugging_face_through_load_dataset(parquet_folder, online, monkeypatch):
    real, calls = datasets.load_dataset, []

    def load_dataset(path, **kwargs):
        calls.append((path, kwargs))
        return real(str(parquet_folder), **kwargs)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert texts("hf:org/name")[0] == ROWS["train"]
    assert calls == [("org/name", {"split": "train"})]
    assert texts("hf:org/name", "dev")[0] == ROWS["validation"]
    assert texts("hf:org/name", split="train[:1]")[0] == ["甲"]
    for _, kwargs in calls:
        assert not kwargs.get("trust_remote_code")


def test_bare_id_falls_back_to_hugging_face(parquet_folder, online, monkeypatch):
    def not_there(**kwargs):
        raise RuntimeError("404 no such repo")

    real = datasets.load_dataset
    monkeypatch.setattr(modelscope_module(), "snapshot_download", not_there)
    monkeypatch.setattr("datasets.load_dataset", lambda path, **kwargs: real(str(parquet_folder), **kwargs))
    assert texts("org/name")[0] == ROWS["train"]
    with pytest.raises(DataError, match=r"ms:org/name: data set not found; tried:\n  ModelScope: RuntimeError: 404"):
        texts("ms:org/name")


def test_the_split_chosen_for_training_does_not_become_the_test_set(folder, online, monkeypatch):
    monkeypatch.setattr(modelscope_module(), "snapshot_download", lambda **kwargs: str(folder))
    settings = {"train": "ms:org/name", "split": "train"}
    assert texts("ms:org/name", "train", **settings)[0] == ROWS["train"]
    assert texts("ms:org/name", "test", **settings)[0] == ROWS["test"]


def test_unknown_split_is_named(folder, online, monkeypatch):
    monkeypatch.setattr(modelscope_module(), "snapshot_download", lambda **kwargs: str(folder))
    with pytest.raises(DataError, match=r"(?s)Unknown split \"nope\".*train.*data\.split"):
        texts("ms:org/name", split="nope")


def test_repository_code_is_never_run(tmp_path, online, monkeypatch):
    repo, canary = tmp_path / "name", tmp_path / "canary"
    repo.mkdir()
    (repo / "name.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.setattr(modelscope_module(), "snapshot_download", lambda **kwargs: str(repo))
    with pytest.raises(DataError, match="not found"):
        texts("ms:org/name")
    assert not canary.exists()


def test_modelscope_cache_is_used_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda url: False)
    snapshot = tmp_path / "ms-cache" / "datasets" / "org--name" / "snapshots" / "master"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").write_text('{"text": "t", "output": "a"}\n')
    assert texts("ms:org/name")[0] == ["t"]
    assert texts("org/name")[0] == ["t"]


def test_hugging_face_cache_is_used_without_a_network(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda url: False)
    cache = tmp_path / "hub"
    commit = "0" * 40
    repo = cache / "datasets--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    folder.rename(repo / "snapshots" / commit)
    import huggingface_hub

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **kwargs: real(name, cache_dir=cache, **kwargs)
    )
    assert texts("hf:org/name")[0] == ROWS["train"]
    result = read_examples("hf:org/name", DataConfig(), role="test", offline=True)
    assert [e.text for e in result.examples] == ROWS["test"]


def test_no_network_fails_within_five_seconds(monkeypatch):
    def silent(*args, **kwargs):  # a name server that never answers, the slowest way to have no network
        time.sleep(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    started = time.perf_counter()
    with pytest.raises(DataError) as caught:
        texts("nobody/nothing")
    assert time.perf_counter() - started < 5
    message = str(caught.value)
    assert "nobody/nothing: data set not found (no hub can be reached)" in message
    assert "ModelScope's local cache: it is not there" in message
    assert "Hugging Face's local cache: it is not there" in message


def test_offline_never_connects(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    with pytest.raises(DataError, match=r"\(offline\)"):
        read_examples("nobody/nothing", DataConfig(), offline=True)
    monkeypatch.setattr(hub, "reachable", forbidden)
    with pytest.raises(DataError):
        read_examples("nobody/nothing", DataConfig(), offline=True)


def test_reachable_follows_proxy_and_mirror(monkeypatch):
    seen = []

    class Connection:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

    def connect(address, timeout):
        seen.append(address)
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080")
    monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)
    monkeypatch.delenv("MODELSCOPE_DOMAIN", raising=False)
    assert hub.reachable(hub._endpoint("hf"))
    assert hub.reachable(hub._endpoint("ms"))
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert hub.reachable(hub._endpoint("ms"))
    assert seen == [("mirror.example", 8080), ("www.modelscope.cn", 443), ("proxy.example", 3128)]


def test_saved_dataset_folder(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["t"], "label": ["a"]})
    data.save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one")[0] == ["t"]
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "many")
    found, result = texts(tmp_path / "many")
    assert found == ["t"]
    assert result.examples[0].source.endswith("many/train:1")
    with pytest.raises(DataError, match="no split test or testing; it has train"):
        texts(tmp_path / "many", "test")
