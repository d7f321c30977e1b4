"""How often rows are seen."""

from __future__ import annotations

from collections import Counter

from fenlei import TextClassifier
from fenlei.artifact import read_artifact
from fenlei.training.dataset import TrainingSet, oversampled_order
from fenlei.training.resume import ResumableTrainer
from tests.training.test_run import deeper


def test_oversampling():
    labels = ["a"] * 100 + ["b"] * 4
    order = oversampled_order(labels, 0.5, seed=0)
    assert sum(labels[i] == "a" for i in order) == 100
    assert sum(labels[i] == "b" for i in order) == 20  # 4 * (100 / 4) ** 0.5
    assert oversampled_order(labels, 0.0, seed=0) == list(range(104))
    assert sum(labels[i] == "b" for i in oversampled_order(labels, 1.0, seed=0)) == 100
    assert order == oversampled_order(labels, 0.5, seed=0)


def test_rows_behind_a_fraction_take_turns():
    labels = ["a"] * 10 + ["b"] * 6  # 10 of b an epoch: once each, and four of them twice
    epochs = [oversampled_order(labels, 1.0, 0, epoch) for epoch in range(3)]
    assert {len(order) for order in epochs} == {20}
    counts = Counter(i for order in epochs for i in order if labels[i] == "b")
    assert set(counts.values()) == {5}
    assert len({tuple(order) for order in epochs}) > 1


def test_an_epoch_has_its_own_rows_also_after_a_resume(tmp_path, train_file, tiny_settings, monkeypatch):
    """A run that goes on in the second one ends as the whole one does."""
    lines = train_file.read_text("utf-8").split("\n")
    train_file.write_text("\n".join([*lines[:6], lines[8]]) + "\n", encoding="utf-8")  # 4, 2 and 1 rows
    train = {"epochs": 2, "batch_size": 4, "oversample": 0.5, "save_steps": 1, "keep_checkpoints": 9}
    settings = deeper(tiny_settings, train=train, evaluation={"ladder": []})
    told, begin_epoch = [], TrainingSet.begin_epoch

    def noted(self, epoch):
        begin_epoch(self, epoch)
        told.append((epoch, tuple(self.order)))

    monkeypatch.setattr(TrainingSet, "begin_epoch", noted)
    steps = TextClassifier(config=settings).fit(train_file, out=tmp_path / "whole" / "run").result.steps
    (first, one), (second, other) = told
    assert (first, second) == (0, 1)
    assert one != other
    save = ResumableTrainer._save_checkpoint

    def save_and_die(self, *args):
        save(self, *args)
        if self.state.global_step == steps - 1:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(ResumableTrainer, "_save_checkpoint", save_and_die)
        try:
            TextClassifier(config=settings).fit(train_file, out=tmp_path / "cut" / "run")
        except RuntimeError:
            pass
    TextClassifier(config=settings).fit(train_file, out=tmp_path / "cut" / "run", resume=True)
    whole, cut = (read_artifact(tmp_path / name / "run").manifest["files"] for name in ("whole", "cut"))
    assert whole == cut
