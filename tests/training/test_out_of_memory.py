"""Memory runs out within a run: smaller forward passes, the same training, and no second time after a resume."""

from __future__ import annotations

import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from fenlei import TextClassifier
from fenlei.modeling.memory import checkpoints_activations
from fenlei.training.engine import TrainingEngine
from tests.training.test_run import deeper
from tests.training.test_signals import at_call, course, finish, lines, stopped, store_of

STEPS, SHORT_FROM, INTERRUPTED_AT = 6, 3, 5
NUMBERS = ("step", "loss", "grad_norm", "learning_rate")
# tokens that a pass may hold, and what is said at last. Four rows are some 290 tokens, two behind what all begin with
# are 114, one is 30 to 45
FEWER_ROWS, TWICE = 110, 10
SAID = {
    FEWER_ROWS: "out of memory: {micro_batch_tokens} tokens a forward pass from now on; batch and loss stay",
    TWICE: "out of memory: activations are computed twice from now on instead of being stored",
}


class Memory:
    """From a step on, a forward pass of more than ``limit`` tokens fails at its end: gradients and drawn numbers stay.

    Where activations are computed twice, every pass fits.
    """

    def __init__(self, patch: pytest.MonkeyPatch, limit: float = math.inf, short_from: int = SHORT_FROM) -> None:
        self.failures, self.rows, self.passes = 0, [], []
        step, forward = TrainingEngine.step, TrainingEngine._forward_backward

        def noted(engine, rows):
            self.rows.append([row.input_ids for row in rows])
            self.passes.append(0)
            return step(engine, rows)

        def limited(engine, batch, *rest):
            loss, fits = forward(engine, batch, *rest), batch.input_ids.numel() <= limit
            if len(self.rows) >= short_from and not fits and not checkpoints_activations(engine.model):
                self.failures += 1
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")
            self.passes[-1] += 1
            return loss

        patch.setattr(TrainingEngine, "step", noted)
        patch.setattr(TrainingEngine, "_forward_backward", limited)


@pytest.fixture
def settings(tiny_settings):
    return deeper(tiny_settings, train={"epochs": 2, "logging_steps": 1})


@pytest.fixture
def with_dropout(settings):
    """Every pass draws random numbers: other passes give other weights."""
    return deeper(settings, lora={"dropout": 0.1})


def train(settings: dict, train_file: Path, run: Path, limit: float = math.inf) -> Memory:
    with pytest.MonkeyPatch.context() as patch:
        memory = Memory(patch, limit)
        TextClassifier(config=settings).fit(train_file, out=run)
    return memory


_interrupted: dict[int, tuple[Path, Path]] = {}


@pytest.fixture
def interrupted(tmp_path, train_file, with_dropout):
    """By limit: a copy of the run that was interrupted after it had run short, and the one that nobody interrupted."""

    def copy(limit: int, to: Path) -> Path:
        if limit not in _interrupted:
            run, whole = _interrupted[limit] = (tmp_path / "interrupted", tmp_path / "whole")
            assert train(with_dropout, train_file, whole, limit).failures
            with pytest.MonkeyPatch.context() as patch:
                memory = Memory(patch, limit)
                at_call(patch, TrainingEngine, "step", INTERRUPTED_AT, signal.SIGTERM)
                stopped(with_dropout, train_file, run)
            assert memory.failures
            assert store_of(run).latest().step == INTERRUPTED_AT
        run, whole = _interrupted[limit]
        shutil.copytree(run, to)
        return whole

    return copy


@pytest.mark.parametrize("limit", SAID)
def test_rows_and_losses_stay(tmp_path, train_file, settings, capsys, limit):
    whole, short = tmp_path / "whole", tmp_path / "short"
    enough = train(settings, train_file, whole)
    assert "out of memory" not in capsys.readouterr().err
    memory = train(settings, train_file, short, limit)
    said = " ".join(capsys.readouterr().err.split())
    assert SAID[limit].format(**store_of(short).latest().engine) in said
    assert memory.failures
    assert (enough.passes, memory.passes) == ([1] * STEPS, [1, 1, 4, 4, 4, 4])
    assert [len(rows) for rows in memory.rows] == [4] * STEPS
    assert memory.rows == enough.rows
    logged = [[[line[key] for key in NUMBERS] for line in lines(run, "train")] for run in (short, whole)]
    assert len(logged[0]) == STEPS
    assert np.array(logged[0]) == pytest.approx(np.array(logged[1]), rel=1e-5)


@pytest.mark.parametrize("limit", SAID)
def test_it_does_not_run_out_again_after_a_resume(tmp_path, train_file, with_dropout, interrupted, capsys, limit):
    run = tmp_path / "run"
    whole = interrupted(limit, run)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        memory = Memory(patch, limit, short_from=1)
        assert finish(with_dropout, train_file, run) == course(whole)
    assert memory.failures == 0
    assert "out of memory" not in capsys.readouterr().err
    assert store_of(run).latest().engine == store_of(whole).latest().engine


def test_without_what_was_found_it_would(tmp_path, train_file, with_dropout, interrupted, monkeypatch):
    """Negative control: memory that is still short fails again; with enough of it, other passes give other weights."""
    short, enough, created = tmp_path / "short", tmp_path / "enough", TrainingEngine.__init__
    whole = interrupted(FEWER_ROWS, short)
    shutil.copytree(short, enough)
    monkeypatch.setattr(
        TrainingEngine, "__init__", lambda self, m, c, pad, state=None, **more: created(self, m, c, pad, None, **more)
    )
    with pytest.MonkeyPatch.context() as patch:
        memory = Memory(patch, FEWER_ROWS, short_from=1)
        finish(with_dropout, train_file, short)
    assert memory.failures
    assert finish(with_dropout, train_file, enough) != course(whole)
