"""Durable writes: the old content or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fenlei import durable
from fenlei.artifact import find_classifier, read_artifact
from fenlei.errors import ArtifactError
from tests.test_artifact import write


def raising(number: int):
    def call(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_names_it(tmp_path, monkeypatch, name):
    path = tmp_path / "a.json"
    durable.write_json(path, {"a": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, name, raising(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left") as caught:
            durable.write_json(path, {"a": 2})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write_some = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write_some(handle, bytes(data)[:3]))
    durable.write_text(tmp_path / "a", "国足 0123456789")
    assert (tmp_path / "a").read_text("utf-8") == "国足 0123456789"


def test_everything_below_is_forced_to_disk(tmp_path, monkeypatch):
    for name in ("a", "b/c", "b/d/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    forced, fsync = [], os.fsync

    def noted(handle):
        forced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path))
        fsync(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see which file is forced")
    monkeypatch.setattr(os, "fsync", noted)
    durable.fsync_tree(tmp_path)
    assert sorted(forced) == [".", "a", "b", "b/c", "b/d", "b/d/e"]
    assert forced[-1] == ".", "names last"


def test_a_disk_that_fails_is_noticed(tmp_path, monkeypatch):
    """Only what a file system cannot do for folders is let be."""
    (tmp_path / "a").write_text("x")
    monkeypatch.setattr(os, "fsync", raising(errno.EIO))
    for path in (tmp_path, tmp_path / "a"):
        with pytest.raises(OSError, match=r"Input/output error"):
            durable.fsync(path)
    monkeypatch.setattr(os, "fsync", raising(errno.EINVAL))
    durable.fsync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        durable.fsync(tmp_path / "a")


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("x")
    replace = os.replace

    def only_aside(source, target):
        if Path(source).name == "new":
            raise OSError(errno.EACCES, "no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", only_aside)
    with pytest.raises(PermissionError):
        durable.replace_folder(tmp_path / "new", tmp_path / "old")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]
    assert (tmp_path / "old" / "old").exists()


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize("failing", ["target", "source"])
def test_a_folder_whose_new_name_is_not_on_disk_has_changed_nothing(tmp_path, monkeypatch, replaces, failing):
    """A full disk may show at the last fsync only, when the new folder has its place already."""
    target, source = tmp_path / "place" / "folder", tmp_path / "staging" / "new"
    for folder, name in ((source, "new"), (target, "old")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    if not replaces:
        shutil.rmtree(target)
    broken = {"target": target, "source": source}[failing].parent
    forced = durable.fsync

    def full(path):
        if path == broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        forced(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            durable.replace_folder(source, target)
    assert [p.name for p in source.iterdir()] == ["new"]
    assert [p.name for p in target.parent.iterdir()] == (["folder"] if replaces else []), "nothing stands aside"
    assert not replaces or [p.name for p in target.iterdir()] == ["old"]
    durable.replace_folder(source, target)
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in target.parent.iterdir()] == ["folder"]


def test_an_old_folder_that_cannot_be_removed_is_no_failure(tmp_path, monkeypatch):
    """The new one is in place: an error here would say that nothing has changed."""
    source, target = tmp_path / "new", tmp_path / "folder"
    for folder, name in ((source, "new"), (target, "old")):
        folder.mkdir()
        (folder / name).touch()
    replace = os.replace

    def busy(path, to):
        if Path(to).name.endswith(".removed"):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        replace(path, to)

    monkeypatch.setattr(os, "replace", busy)
    durable.replace_folder(source, target)
    assert [p.name for p in target.iterdir()] == ["new"]


def test_the_names_of_new_folders_are_forced_to_disk(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(durable, "fsync", forced.append)
    durable.make_folder(tmp_path / "runs" / "new" / "run")
    assert set(forced) == {tmp_path, tmp_path / "runs", tmp_path / "runs" / "new"}
    forced.clear()
    durable.make_folder(tmp_path / "runs" / "new" / "run")
    assert forced == [tmp_path / "runs" / "new"], "its maker may have been killed before that"


def test_sweeping_takes_only_what_is_ours(tmp_path):
    for name in (".step.removed", ".hidden", "report"):
        (tmp_path / name).mkdir()
    for name in (".a.json.123.tmp", ".keep.tmp", "a.123.tmp"):
        (tmp_path / name).write_text("x")
    durable.sweep(tmp_path)
    durable.sweep(tmp_path / "absent")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", ".keep.tmp", "a.123.tmp", "report"]


def chained() -> Exception:
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as error:
            raise RuntimeError("cannot save") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (Exception("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("Error while serializing: (os error 28)"), True),
        (chained(), True),
        (OSError(errno.EACCES, "x"), False),
        (RuntimeError("(os error 2)"), False),
    ],
)
def test_a_full_disk_is_recognized_through_any_library(error, full):
    assert durable.is_disk_full(error) is full


def test_a_fault_of_the_system_is_told_from_a_mistake():
    for error in (OSError(errno.EIO, "x", "/a"), RuntimeError("I/O error: ... (os error 5)")):
        assert durable.fault_of_system(error).errno == errno.EIO
    behind = ValueError("cannot save")
    behind.__cause__ = OSError(errno.EROFS, "x")
    assert durable.fault_of_system(behind).errno == errno.EROFS
    mistake = KeyError("ours")
    mistake.__context__ = FileNotFoundError(errno.ENOENT, "handled")
    assert durable.fault_of_system(mistake) is None
    assert durable.fault_of_system(OSError("no number: of the network, say")) is None


def test_the_message_names_path_need_and_room(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "free_bytes", lambda path: 1_500_000)
    error = OSError(errno.ENOSPC, "x", str(tmp_path / "f"))
    assert durable.disk_full_message(error, tmp_path, "a checkpoint", 2_000_000_000) == (
        f"{tmp_path / 'f'}: No space left on device: a checkpoint takes about 2.0 GB, 1.5 MB are free there"
    )
    assert "there is no room for the run, 1.5 MB" in durable.disk_full_message(error, tmp_path, "the run")


def test_room_is_asked_for_where_the_folder_will_be(tmp_path):
    assert durable.free_bytes(tmp_path / "not" / "yet" / "there") > 0
    assert durable.size_of(tmp_path / "absent") == 0


def test_a_classifier_is_found_between_the_two_renames_that_replace_it(tmp_path):
    target = write(tmp_path / "run" / "classifier", b"first")
    os.replace(target, durable.aside(target))
    for path in (tmp_path / "run", target):
        assert (read_artifact(path).path / "adapter" / "adapter_model.safetensors").read_bytes() == b"first"
    write(target, b"second")
    assert find_classifier(tmp_path / "run") == target
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["classifier"]


def test_a_full_disk_under_a_classifier(tmp_path, monkeypatch):
    write(tmp_path / "c", b"first")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raising(errno.ENOSPC))
        with pytest.raises(ArtifactError, match=r"No space left.*the classifier.*are free there.*Make room"):
            write(tmp_path / "c", b"second")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c" / "adapter" / "adapter_model.safetensors").read_bytes() == b"first"


def holder(tmp_path, path) -> subprocess.Popen:
    """A process that has the lock, once it says so."""
    code = (
        "import sys, pathlib; from fenlei.durable import lock_file\n"
        "with lock_file(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "x.lock"
    process = holder(tmp_path, path)
    with pytest.raises(durable.InUse), durable.lock_file(path):
        pass
    with pytest.raises(durable.InUse), durable.locked(path):
        pass
    assert path.exists(), "the lock of another process is not taken away"
    process.kill()
    process.wait()
    assert path.exists()
    with durable.lock_file(path):
        assert path.exists()
    assert not path.exists()
    with durable.locked(tmp_path), pytest.raises(durable.InUse), durable.locked(tmp_path):
        pass


def test_a_lock_file_that_its_holder_has_just_removed_is_no_lock(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    path, lock, removed = tmp_path / "x.lock", durable._lock, []

    def too_late(file):
        handle = lock(file)
        if not removed:
            file.unlink()  # as its holder does at its end, after this process opened it
            removed.append(file)
        return handle

    monkeypatch.setattr(durable, "_lock", too_late)
    with durable.lock_file(path):
        assert path.exists(), "a new file was made and locked"
        with pytest.raises(durable.InUse), durable.lock_file(path):
            pass


def test_sweeping_one_file_leaves_the_others(tmp_path):
    for name in (".a.json.123.tmp", ".b.json.123.tmp", "a.json", ".a[1].json.7.tmp"):
        (tmp_path / name).write_text("x")
    durable.sweep_file(tmp_path / "a.json")
    durable.sweep_file(tmp_path / "a[1].json")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.json.123.tmp", "a.json"]
