"""The store of checkpoints: whole or absent, damaged ones passed over and named, the best one kept."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from fenlei import durable
from fenlei.artifact import sha256_of
from fenlei.errors import TrainingError
from fenlei.training import checkpoints
from fenlei.training.checkpoints import MANIFEST, CheckpointStore


def write(store, step, macro_f1=None, content=b"weights", needed=None, **more):
    dev = None if macro_f1 is None else {"macro_f1": macro_f1, "log_loss": 1.0}
    with store.writing(step, needed) as folder:
        (folder / "adapter_model.safetensors").write_bytes(content)
        (folder / "state.json").write_text("{}")
        return store.publish(folder, step, dev, **more)


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run" / "checkpoints", keep=2)


def names(store: CheckpointStore) -> list[str]:
    return sorted(p.name for p in store.folder.iterdir())


def test_what_was_published_is_read_back(store):
    write(store, 5, 0.5, engine={"micro_batch_tokens": 512}, dev_due=True)
    (found,) = CheckpointStore(store.folder, 2).list()
    assert (found.step, found.dev, found.dev_due) == (5, {"macro_f1": 0.5, "log_loss": 1.0}, True)
    assert found.engine == {"micro_batch_tokens": 512}
    assert found.files == ("adapter_model.safetensors", "state.json")
    assert names(store) == ["step-00000005"], "nothing but the checkpoint is left"


def test_the_newest_and_the_best_are_kept(store):
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.2)):
        write(store, step, score)
    assert [c.step for c in store.list()] == [2, 4, 5]
    assert (store.best().step, store.latest().step) == (2, 5)
    assert names(store) == ["step-00000002", "step-00000004", "step-00000005"]


DAMAGE = {
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-2]),
    "one bit": lambda f: f.write_bytes(bytes([f.read_bytes()[0] ^ 1]) + f.read_bytes()[1:]),
    "other score": lambda f: f.write_text(f.read_text().replace("0.25", "0.75") + " " * (f.name != MANIFEST)),
    "gone": lambda f: f.unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "state.json", MANIFEST])
def test_a_damaged_checkpoint_is_passed_over_and_named(store, name, how):
    write(store, 1)
    write(store, 2, 0.25)
    DAMAGE[how](store.folder / "step-00000002" / name)
    assert store.latest().step == 1
    (reason,) = store.damaged()
    assert "step-00000002" in reason
    assert name in reason


def test_without_the_hashes_a_flipped_bit_goes_unseen(store, monkeypatch):
    """Negative control."""
    monkeypatch.setattr(checkpoints, "_digest", lambda file: "")
    write(store, 1)
    DAMAGE["one bit"](store.folder / "step-00000001" / "adapter_model.safetensors")
    assert store.latest().step == 1


def test_a_renamed_checkpoint_is_not_another_step(store):
    write(store, 1)
    os.replace(store.folder / "step-00000001", store.folder / "step-00000009")
    assert store.latest() is None
    assert "belongs to step 1" in store.damaged()[0]


def test_a_manifest_cannot_point_outside(store, tmp_path):
    manifest = write(store, 1).path / MANIFEST
    (tmp_path / "secret.json").write_text("{}")
    content = json.loads(manifest.read_text())
    content["files"]["../../../secret.json"] = {"size": 2, "sha256": sha256_of(tmp_path / "secret.json")}
    del content["sha256"]
    content["sha256"] = checkpoints._content_digest(content)
    manifest.write_text(json.dumps(content))
    assert store.latest() is None
    assert "lists ../../../secret.json" in store.damaged()[0]


def test_only_json_and_safetensors_are_published(store):
    with store.writing(1) as folder:
        (folder / "optimizer.pt").write_bytes(b"x")
        with pytest.raises(TrainingError, match=r"optimizer\.pt.*JSON and safetensors only"):
            store.publish(folder, 1, None)
    assert store.list() == []


def test_checkpoints_of_the_first_format_are_refused_with_a_reason(store):
    old = store.folder / "step-00000001"
    old.mkdir(parents=True)
    (old / "optimizer.pt").write_bytes(b"x")
    (old / MANIFEST).write_text(json.dumps({"step": 1, "dev": None, "files": {"optimizer.pt": 1}}))
    assert store.list() == []
    assert "an earlier fenlei and holds pickles" in store.damaged()[0]
    (old / MANIFEST).write_text(json.dumps({"format": 99}))
    assert "pip install -U fenlei" in store.damaged()[0]


class Stop(BaseException):
    pass


def operations_of(monkeypatch, at: int = -1) -> list[str]:
    """Counts renames and removals; raises before the one numbered ``at``, after which nothing is done any more."""
    done: list[str] = []

    def counted(kind, call):
        def wrapped(*args, **kwargs):
            if 0 <= at <= len(done):
                raise Stop
            done.append(f"{kind} {Path(args[0]).name}")
            return call(*args, **kwargs)

        return wrapped

    for kind in ("replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, kind, counted(kind, getattr(os, kind)))
    return done


def test_publishing_a_step_again_never_leaves_a_moment_without_it(store, monkeypatch):
    write(store, 1, 0.1)
    write(store, 2, 0.2, b"old")
    with monkeypatch.context() as patch:
        done = operations_of(patch)
        write(store, 2, 0.2, b"old")
    assert len([d for d in done if d.startswith("replace")]) >= 4
    for at in range(len(done)):
        with monkeypatch.context() as patch:
            operations_of(patch, at)
            with pytest.raises(Stop):
                write(store, 2, 0.2, b"new")
        survivor = CheckpointStore(store.folder, 2).latest()
        assert survivor.step == 2
        assert (survivor.path / "adapter_model.safetensors").read_bytes() in (b"old", b"new")
        CheckpointStore(store.folder, 2).tidy()
        assert [c.step for c in store.list()] == [1, 2]
        write(store, 2, 0.2, b"old")
        assert names(store) == ["step-00000001", "step-00000002"]


def test_removing_the_old_one_first_would_leave_such_a_moment(store, monkeypatch):
    """Negative control."""

    def naive(source, target):
        durable.remove_folder(target)
        os.replace(source, target)

    monkeypatch.setattr(checkpoints, "replace_folder", naive)
    write(store, 2)
    lost = 0
    for at in range(20):
        with monkeypatch.context() as patch:
            operations_of(patch, at)
            try:
                write(store, 2)
            except Stop:
                pass
        lost += CheckpointStore(store.folder, 2).latest() is None
        write(store, 2)
    assert lost


def test_a_damaged_checkpoint_is_replaced_and_what_stood_aside_is_used_until_then(store):
    write(store, 2, content=b"good")
    target = store.folder / "step-00000002"
    os.replace(target, durable.aside(target))
    assert store.latest().path == durable.aside(target), "a crash between the two renames"
    target.mkdir()
    assert store.latest().path == durable.aside(target)
    store.tidy()
    assert store.latest().path == target
    os.replace(target, durable.aside(target))
    target.mkdir()
    write(store, 2, content=b"newer")
    assert names(store) == ["step-00000002"]
    assert (store.latest().path / "adapter_model.safetensors").read_bytes() == b"newer"


def test_what_a_crash_left_is_swept(store):
    for step in (1, 2, 3):
        write(store, step)
    for name in (".staging/checkpoint-4", ".step-00000001.removed", ".step-00000002.old"):
        (store.folder / name).mkdir(parents=True)
        (store.folder / name / "x.json").write_text("{}")
    store.tidy()
    assert names(store) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_is_missing(store, monkeypatch, number):
    write(store, 1)

    def full(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError) as caught:
        write(store, 2, needed=52_400_000)
    for words in (os.strerror(number), str(store.folder), "52.4 MB", "are free there", "step-00000001", "--resume"):
        assert words in str(caught.value)
    assert [c.step for c in store.list()] == [1]
    assert names(store) == ["step-00000001"]


def test_what_cannot_be_forced_to_disk_is_not_published(store, monkeypatch):
    """The name of the folder itself, which may be new: a fault of the disk must come before the one rename."""
    write(store, 1)
    forced = checkpoints.fsync

    def full(path):
        if path == store.folder.parent:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        forced(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "fsync", full)
        with pytest.raises(TrainingError, match="step-00000001"):
            write(store, 2)
    assert [c.step for c in store.list()] == [1]
    write(store, 2)
    assert [c.step for c in store.list()] == [1, 2]


def test_an_error_that_is_no_full_disk_stays_itself(store):
    with pytest.raises(PermissionError), store.writing(1):
        raise PermissionError(errno.EACCES, "no")
    assert names(store) == []


def test_nothing_is_published_when_the_record_cannot_be_forced_to_disk(store):
    write(store, 1)

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    store.before_publish = full
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: No space left"):
        write(store, 2)
    assert [c.step for c in store.list()] == [1]


def test_pruning_that_fails_is_no_reason_to_stop(store, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "no")

    write(store, 1)
    write(store, 2)
    monkeypatch.setattr(checkpoints, "remove_folder", refuse)
    write(store, 3)
    assert [c.step for c in store.list()] == [1, 2, 3]
