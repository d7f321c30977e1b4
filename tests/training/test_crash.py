"""A run that is killed, or whose disk fills up, at any instant: nothing saved is lost, and the run that goes on ends as
if nothing had happened: same weights, same losses, same rows in the same order, same record, same files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs fork and /proc (Linux)")
ROOT = Path(__file__).parent.parent.parent

# two steps, a checkpoint after each, one kept: the second one prunes the first
SHORT = {"max_steps": 2, "save_steps": 1, "keep_checkpoints": 1, "logging_steps": 2}
# two epochs of three steps each (four, four and one row) with dropout; scored and saved at every second step
LONG = {"epochs": 2, "save_steps": 1, "eval_steps": 2, "keep_checkpoints": 1, "logging_steps": 4}
BEFORE_PUBLISHING = r"os.rename checkpoints/step-0000000[2-6]$"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder in memory, where there is one, with the smallest model; fsync costs nothing there."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else tmp_path_factory.mktemp("crash")))
    yield make_workshop(folder)
    shutil.rmtree(folder)


def make_workshop(folder: Path) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.conftest import SENTENCES, make_tokenizer

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder / "model", safe_serialization=True)
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": t, "category": list(SENTENCES), "output": k} for k, texts in SENTENCES.items() for t in texts]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return folder


def job(workshop: Path, name: str, train: dict, dev: float = 0.0, **how) -> dict:
    settings = {
        "model": {"spec": str(workshop / "model"), "dtype": "float32", "device": "cpu"},
        "data": {"dev_fraction": dev},
        "prompt": {"max_length": 256},
        "lora": {"r": 2, "alpha": 32, "dropout": 0.1},
        "train": {"batch_size": 4, "learning_rate": 1e-2, "warmup_fraction": 0.0, "oversample": 0.0, **train},
        "tracking": {"trackers": []},
    }
    return {"work": str(workshop / name), "train": str(workshop / "train.jsonl"), "settings": settings, **how}


def run_jobs(jobs: dict) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.crash_runs"],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(workshop):
    """All quick jobs in one process: importing torch takes longer than most of them."""
    jobs = {
        "kill": job(workshop, "kill", SHORT, do="kill", only=r"os.rename|removed|metrics", stride=4),
        "in place": job(workshop, "in-place", SHORT, do="kill", only="checkpoints/step-00000002/", naive=True),
        "exact": job(workshop, "exact", LONG, 0.25, do="kill", only=BEFORE_PUBLISHING),
        # every row alone: the second, third and fourth forward pass of each step that has them
        "mid-step": job(
            workshop, "mid-step", {**LONG, "micro_batch_tokens": 16}, 0.25, do="kill", only=r"^pass [2-4]$"
        ),
        "report": job(workshop, "report", SHORT, 0.25, do="kill", only=r"^opened (predictions|report)/\.(dev|index)\."),
        "random": job(workshop, "random", LONG, 0.25, do="random", kills=4),
        "full": job(workshop, "full", SHORT, 0.25, do="full", stride=5, only=r"^fsync \.$"),
    }
    for part in ("random", "optimizer", "loss", "order", "record"):
        # step 3 follows a checkpoint within an epoch; at step 4 there are lines in the record that step 3 has not
        only = BEFORE_PUBLISHING.replace("[2-6]", "4" if part == "record" else "3")
        jobs[f"without {part}"] = job(workshop, f"no-{part}", LONG, 0.25, do="kill", only=only, withhold=part)
    return run_jobs(jobs)


def test_killed_at_every_kind_of_operation(found):
    result = found["kill"]
    assert result["failures"] == {}
    assert len(result["done"]) > 35
    kinds = {op.split()[0] for op in result["operations"]}
    assert {"open", "write", "fsync", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "tensors"} <= kinds


def test_checkpoints_written_where_they_are_looked_for_would_be_lost(found):
    """Negative control."""
    failures = found["in place"]["failures"]
    assert any(text.startswith("damaged: ") for text in failures.values())


def test_mid_epoch_at_its_edge_and_between_two_log_lines(found):
    result = found["exact"]
    assert result["failures"] == {}
    assert len(result["done"]) == 5, "each of the checkpoints but the first was to be published"
    record = result["reference"]["record"]
    assert [line["step"] for line in record if line["event"] == "train"] == [1, 4]
    assert [line["step"] for line in record if line["event"] == "dev"][:3] == [2, 4, 6]
    steps = result["reference"]["steps"]
    assert len(steps) == 6
    assert len({rows for rows, _ in steps.values()}) == 6, "the data order is not one batch over and over"


@pytest.mark.parametrize(
    ("part", "differs"),
    [("random", "weights"), ("optimizer", "weights"), ("order", "steps"), ("loss", "record"), ("record", "record")],
)
def test_whatever_is_withheld_is_missed(found, part, differs):
    """Negative controls: each part of the state is needed."""
    (text,) = found[f"without {part}"]["failures"].values()
    assert f"'{differs}': [" in text


def test_killed_while_the_report_is_written(found):
    result = found["report"]
    assert result["failures"] == {}
    written = {re.sub(r"\.\d+\.", ".", result["operations"][at]) for at in result["done"]}
    assert {"opened predictions/.dev.jsonl.tmp", "opened report/.dev.json.tmp"} <= written


def test_killed_between_the_forward_passes_of_a_step(found):
    result = found["mid-step"]
    assert result["failures"] == {}
    assert len(result["done"]) == 12, "three places in each of the four steps of four rows"


def test_killed_at_random(found):
    assert found["random"]["failures"] == {}
    assert len(found["random"]["places"]) >= 4


def test_nothing_is_written_where_it_is_looked_for(found):
    """Files whose bytes Python's own file objects write cannot be cut in the middle here; none is ever found half."""
    operations = {op for job in ("kill", "exact") for op in found[job]["operations"]}
    opened = {op.split()[1] for op in operations if op.split()[0] in ("open", "tensors")}
    hidden = {name for name in opened if any(part.startswith(".") for part in name.split("/"))}
    assert len(hidden) > 20
    assert {re.sub(r"\d+", "N", name) for name in opened - hidden} <= {"metrics.jsonl"}


def test_a_full_disk_at_any_write(found):
    result = found["full"]
    assert result["failures"] == {}
    assert len(result["done"]) >= 12
    operations = result["operations"]
    assert any(operations[at - 1 : at + 1] == ["os.rename classifier", "fsync ."] for at in result["done"])


@pytest.mark.soak
def test_killed_at_every_single_operation(workshop):
    found = run_jobs({"all": job(workshop, "all", LONG, 0.25, do="kill", stride=1, fsync=True)})["all"]
    assert found["failures"] == {}
    assert len(found["done"]) == len(found["operations"]) > 300


@pytest.mark.soak
def test_killed_at_every_operation_and_again_while_going_on(workshop):
    found = run_jobs({"twice": job(workshop, "twice", LONG, 0.25, do="kill", stride=1, twice=True)})["twice"]
    assert found["failures"] == {}
    assert len(found["done"]) > 250


def where(place: str) -> str:
    """In what a run was killed: the part of the run, from its steps and its last operation."""
    if not place:
        return "loading"
    steps, operation = int(place.split()[0]), place.split(" ", 1)[1]
    if operation.startswith("pass"):
        return "first pass of a step" if operation == "pass 1" else "mid-accumulation"
    if steps == 0:
        return "loading"
    return {3: "epoch edge", 6: "end"}.get(steps, "mid-epoch")


@pytest.mark.soak
def test_killed_at_random_200_times(workshop):
    """With dropout, and each row in a forward pass of its own, so that a step has four of them."""
    alone = {**LONG, "micro_batch_tokens": 16}
    found = run_jobs({"random": job(workshop, "random-200", alone, 0.25, do="random", kills=200)})["random"]
    assert found["failures"] == {}
    assert len(found["places"]) >= 200
    counts = Counter(where(place) for place in found["places"])
    print(f"killed in: {dict(counts)}; runs: {len(found['done'])}")
    parts = {"loading", "first pass of a step", "mid-accumulation", "epoch edge", "mid-epoch", "end"}
    assert set(counts) == parts, "the moments are spread over the whole run"


@pytest.mark.soak
def test_a_full_disk_at_every_write(workshop):
    found = run_jobs({"full": job(workshop, "full-all", LONG, 0.25, do="full", stride=1)})
    assert found["full"]["failures"] == {}


def test_a_real_disk_that_is_full(workshop, tmp_path):
    """A small disk of its own, filled by somebody else while the run is on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        fill_a_real_disk(job(workshop, "real", LONG, 0.25), disk)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill_a_real_disk(job: dict, disk: Path) -> None:
    from fenlei import TextClassifier
    from fenlei.artifact import read_artifact
    from fenlei.errors import TrainingError
    from fenlei.training.checkpoints import CheckpointStore

    run, ballast = disk / "run", disk / "ballast"
    publish = CheckpointStore.publish

    def publish_and_fill(self, *args, **kwargs):
        checkpoint = publish(self, *args, **kwargs)
        if checkpoint.step == 3:
            free = shutil.disk_usage(disk).free
            ballast.write_bytes(b"x" * (free - 20_000))
        return checkpoint

    settings = {**job["settings"], "train": {**job["settings"]["train"], "keep_checkpoints": 3}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "publish", publish_and_fill)
        with pytest.raises(TrainingError) as caught:
            TextClassifier(config=settings).fit(job["train"], out=run)
    assert re.search(
        r"disk/run.*: No space left on device: a checkpoint takes about \d.* MB, 0\.\d MB are free there; "
        r"the last checkpoint is step-00000003\. Make room, then go on with --resume",
        str(caught.value),
    )
    assert [p.name for p in run.rglob(".*")] == []
    with pytest.raises(TrainingError, match=r"No space left for this run: it takes about .*train\.keep_checkpoints=3"):
        TextClassifier(config=settings).fit(job["train"], out=run, resume=True)
    ballast.unlink()
    assert TextClassifier(config=settings).fit(job["train"], out=run, resume=True).result.steps == 6
    read_artifact(run)
