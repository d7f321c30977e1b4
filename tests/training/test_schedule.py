"""The learning rate: transformers' schedules, but for a warm-up whose first step trains."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from transformers import TrainerControl, TrainerState, get_scheduler

from fenlei import TextClassifier
from fenlei.config import RunConfig, TrainConfig
from fenlei.training.callbacks import Schedule
from fenlei.training.schedule import learning_rates
from fenlei.training.trainer import ClassifierTrainer, training_arguments
from tests.training.test_run import deeper

NAMES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def rates_of(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("shape", NAMES)
@pytest.mark.parametrize(("steps", "warm_up"), [(1, 0), (7, 0), (40, 2), (3, 3)])
def test_after_the_warm_up_it_is_transformers_schedule_to_the_bit(shape, steps, warm_up):
    theirs = rates_of(lambda o: get_scheduler(NAMES[shape], o, warm_up, steps), steps)
    ours = rates_of(lambda o: learning_rates(o, steps=steps, warm_up=warm_up, shape=shape), steps)
    assert ours[warm_up:] == theirs[warm_up:]
    assert ours[:warm_up] == pytest.approx([3e-4 * (step + 1) / (warm_up + 1) for step in range(warm_up)])
    if warm_up:
        assert theirs[0] == 0.0, "what the warm-up here is for"


def trainer_rates(tmp_path, steps: int, **train) -> list[float]:
    """As the trainer makes them from a configuration, as shares of the peak."""
    config = RunConfig.build({"train": train})

    class Bare(ClassifierTrainer):
        def __init__(self):
            self.args, self.lr_scheduler = training_arguments(config, tmp_path, torch.device("cpu")), None

    found = rates_of(lambda optimizer: Bare().create_scheduler(steps, optimizer), steps)
    return [rate / 3e-4 for rate in found]


def test_what_the_settings_say(tmp_path):
    assert trainer_rates(tmp_path, 1) == pytest.approx([0.5]), "a run of one step trains"
    assert trainer_rates(tmp_path, 2) == pytest.approx([0.5, 1.0])
    assert trainer_rates(tmp_path, 4, scheduler="constant", warmup_fraction=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    long = trainer_rates(tmp_path, 100)
    warm_up = math.ceil(100 * TrainConfig().warmup_fraction)
    assert long.index(max(long)) == warm_up
    assert all(0 < low < high for low, high in pairwise(long[: warm_up + 1]))
    assert all(low < high for high, low in pairwise(long[warm_up:]))


@pytest.mark.parametrize(
    ("steps_per_epoch", "dev_rows", "expected"),
    [(8, 10, 8), (240, 400, 100), (1125, 2000, 500), (50, 2000, 50), (1125, 0, 0)],
)
def test_scoring_a_large_dev_set_takes_about_a_tenth_of_the_time(steps_per_epoch, dev_rows, expected):
    """By the number of rows, not by the clock: the same command scores at the same steps."""
    schedule, scored = Schedule(TrainConfig(), steps_per_epoch, dev_rows), []
    for step in range(1, 1500):
        control = schedule.on_step_end(None, TrainerState(global_step=step, max_steps=10_000), TrainerControl())
        scored += [step] * control.should_evaluate
    assert scored == (list(range(expected, 1500, expected)) if expected else [])
    assert Schedule(TrainConfig(eval_steps=7), steps_per_epoch, 2000)._eval_steps == 7


def test_one_step_changes_the_adapter(tmp_path, train_file, tiny_settings):
    from safetensors.torch import load_file

    settings = deeper(tiny_settings, train={"max_steps": 1}, evaluation={"ladder": []})
    classifier = TextClassifier(config=settings).fit(train_file, out=tmp_path / "run")
    weights = load_file(classifier.result.classifier_dir / "adapter" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
