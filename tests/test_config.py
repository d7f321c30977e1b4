from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from fenlei.config import RunConfig
from fenlei.errors import ConfigError


def test_tutorial_preset_has_every_value_of_its_script():
    config = RunConfig.build({"preset": "tutorial"})
    assert config.model.spec == "Qwen/Qwen1.5-7B-Chat"
    assert config.model.dtype == "bfloat16"
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (8, 32, 0.1)
    assert set(config.lora.target_modules) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    train = config.train
    assert (train.micro_batch_size, train.batch_size) == (4, 16), "batch 4, accumulation 4"
    assert (train.epochs, train.learning_rate, train.scheduler, train.warmup_fraction) == (3, 1e-4, "linear", 0)
    assert (train.logging_steps, train.save_steps, train.gradient_checkpointing) == (10, 100, True)
    assert (train.weight_decay, train.max_grad_norm, train.oversample) == (0, 1, 0)
    assert (config.prompt.preset, config.prompt.max_length) == ("tutorial-zh", 384)
    assert config.tracking.trackers == ("swanlab",)
    assert config.tracking.project == "hf-visualization"


def test_tutorial_preset_reaches_the_trainer(tmp_path):
    import torch

    from fenlei.training.trainer import training_arguments

    args = training_arguments(RunConfig.build({"preset": "tutorial"}), tmp_path, torch.device("cpu"))
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (16, 1), "the engine divides it"
    assert (args.num_train_epochs, args.learning_rate, args.logging_steps) == (3, 1e-4, 10)
    assert args.lr_scheduler_type == "linear"
    assert args.logging_nan_inf_filter is False


def test_own_values_win_over_the_preset_and_overrides_over_both():
    config = RunConfig.build({"preset": "tutorial", "train": {"epochs": 1}}, overrides=["train.epochs=2", "lora.r=4"])
    assert config.train.epochs == 2
    assert config.lora.r == 4
    assert config.lora.alpha == 32


def test_yaml_round_trip(tmp_path):
    config = RunConfig.build({"preset": "tutorial", "data": {"aliases": {"体育新闻": "体育"}}, "out": "runs/甲"})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert RunConfig.load(path) == config
    assert set(yaml.safe_load(config.to_yaml())) == set(RunConfig.model_fields)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rat=1", r"unknown setting 'train.learning_rat'; did you mean 'train.learning_rate'\?"),
        ("learning_rate=1", "did you mean 'train.learning_rate'"),
        ("train.epochs=many", "train.epochs.*'many'"),
        ("train.epochs=0", "train.epochs.*greater than 0"),
        ("prompt.truncation=middle", "prompt.truncation.*'head', 'tail' or 'head_tail'"),
        ("prompt.user=x", "only with prompt.preset=custom"),
        ("train", "key=value"),
        ("=1", "key=value"),
        ("out.x=1", "out"),
        ("train.epochs=[", "train.epochs: cannot read"),
        ("preset=[a]", "preset: expected one of default, tutorial"),
        ("train.max_steps=0", "train.max_steps"),
        ("report.hourly_price=0", "report.hourly_price.*greater than 0"),
        ("report.hourly_price=.inf", "report.hourly_price.*finite"),
        ("report.currency=CNY", "report.currency without a price.*report.hourly_price"),
    ],
)
def test_faults_name_the_key_and_the_fix(override, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig.build({"out": "x"}, overrides=[override])


def test_text_settings_stay_the_text_that_was_typed():
    config = RunConfig.build(
        overrides=[
            "prompt.preset=custom", "prompt.user={{ text }}: {{ candidates }}", "data.labels=[yes, no, 0]",
            "data.text_column=1", "data.aliases={on: yes}",
        ]
    )  # fmt: skip
    assert config.prompt.user == "{{ text }}: {{ candidates }}"
    assert config.data.labels == ("yes", "no", "0")
    assert config.data.text_column == "1"
    assert config.data.aliases == {"on": "yes"}
    assert RunConfig.build({"data": {"train": "x"}}, overrides=["data.train=null"]).data.train is None


def test_an_empty_group_is_no_setting():
    assert RunConfig.build({"data": None}, overrides=["train.epochs=1"]).train.epochs == 1


def test_frozen():
    with pytest.raises(ValidationError):
        RunConfig.build().train.epochs = 5


@pytest.mark.parametrize("content", ["- a list", "a: [", "\xff"])
def test_bad_yaml_names_the_file(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        RunConfig.load(path)
