"""Kinds of adapters, which layers get one, and training without one."""

from __future__ import annotations

import copy

import pytest
import torch

from fenlei.config import LoraConfig, ModelConfig, RunConfig, TrainConfig
from fenlei.errors import ConfigError, ModelError
from fenlei.modeling import full, pissa
from fenlei.modeling.adapter import add_adapter, finish_training
from fenlei.modeling.layers import chosen_layers, decoder_layers
from fenlei.modeling.loading import load_model, parameter_count

IDS = torch.arange(4, 68).reshape(2, 32)


@pytest.fixture
def half_model(tiny_folder):
    return load_model(tiny_folder, ModelConfig(dtype="bfloat16", device="cpu"))


def trained_names(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def train(model, steps=5, lr=1e-2) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        out = model(input_ids=IDS, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(out[:, :-1].float().flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# ---- settings


@pytest.mark.parametrize("text", ["last:0", "5", "8-3", "-8", "last:-1", "1-2,5-6", ""])
def test_layers_that_are_no_range(text):
    with pytest.raises(ConfigError, match=r"lora.*expected a range such as 12-23, or last:8"):
        RunConfig.build({"lora": {"layers": text}})


def test_layers_by_override():
    assert RunConfig.build(overrides=["lora.layers=12-23"]).lora.layers == "12-23"
    assert RunConfig.build(overrides=["lora.layers=last:8"]).lora.layers == "last:8"
    assert RunConfig.build(overrides=["lora.layers=null"]).lora.layers is None


def test_learning_rate_depends_on_the_method_only_where_it_was_not_set():
    assert RunConfig.build(overrides=["lora.method=full"]).train.learning_rate == 2e-5
    assert RunConfig(lora=LoraConfig(method="full")).train.learning_rate == 2e-5
    assert RunConfig.build(overrides=["lora.method=full", "train.learning_rate=2e-4"]).train.learning_rate == 2e-4
    assert RunConfig.build(overrides=["lora.method=dora"]).train.learning_rate == TrainConfig().learning_rate
    # what is written down stays when it is read again
    config = RunConfig.build(overrides=["lora.method=full", "train.epochs=3"])
    assert config.train.epochs == 3
    assert RunConfig.build(config.model_dump()) == config
    assert config.with_values({"out": "x"}).train.learning_rate == 2e-5


def test_settings_that_do_not_go_together():
    with pytest.raises(ConfigError, match=r"^train\.weight_decay.*pissa"):
        RunConfig.build(overrides=["lora.method=pissa", "train.weight_decay=0.1"])
    with pytest.raises(ConfigError, match="full cannot train in float16"):
        RunConfig.build(overrides=["lora.method=full", "model.dtype=float16"])
    with pytest.raises(ConfigError, match=r"lora\.method.*'lora', 'rslora', 'dora', 'pissa' or 'full'"):
        RunConfig.build(overrides=["lora.method=qlora"])


# ---- which layers


def test_chosen_layers():
    assert chosen_layers("12-13", 24) == [12, 13]
    assert chosen_layers("0-0", 1) == [0]
    assert chosen_layers("last:3", 24) == [21, 22, 23]
    for text in ("20-24", "last:25"):
        with pytest.raises(ModelError, match=r"the model has 24 layers, numbered 0 to 23"):
            chosen_layers(text, 24)


def test_layers_of_another_architecture():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=32))
    name, stack = decoder_layers(model)
    assert (name, len(stack)) == ("h", 3)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "pissa"])
def test_an_adapter_on_the_last_layer_only(tiny_model, method):
    model = add_adapter(tiny_model, LoraConfig(method=method, layers="last:1"), 0)
    names = trained_names(model)
    assert names
    assert all(".layers.1." in name and "lora_" in name for name in names)


def test_all_layers_by_default(tiny_model):
    names = trained_names(add_adapter(tiny_model, LoraConfig(), 0))
    assert {0, 1} == {int(name.split(".layers.")[1].split(".")[0]) for name in names}


def test_the_number_of_layers_is_named(tiny_model):
    with pytest.raises(ModelError, match=r"lora\.layers='2-3': the model has 2 layers, numbered 0 to 1"):
        add_adapter(tiny_model, LoraConfig(layers="2-3"), 0)
    with pytest.raises(ModelError, match="2 layers"):
        add_adapter(tiny_model, LoraConfig(method="full", layers="last:3"), 0)


# ---- kinds of adapters


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "pissa"])
def test_a_fresh_adapter_changes_nothing_and_is_float32(half_model, method):
    before = logits(half_model).float()
    weights = {name: p.clone() for name, p in half_model.named_parameters()}
    model = add_adapter(half_model, LoraConfig(method=method, dropout=0.0), 0)
    assert logits(model).float() == pytest.approx(before, abs=0.05 * float(before.abs().max()))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    kept = {name.replace("base_layer.", ""): p for name, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(kept[name], weight) for name, weight in weights.items())


def test_the_scale_of_rslora(tiny_model):
    model = add_adapter(tiny_model, LoraConfig(method="rslora", r=16, alpha=16), 0)
    scales = {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}
    assert scales == {4.0}  # alpha / sqrt(r); plain LoRA would have 1.0


def test_dora_trains_magnitudes(tiny_model):
    names = trained_names(add_adapter(tiny_model, LoraConfig(method="dora"), 0))
    assert sum("lora_magnitude_vector" in name for name in names) == 14


# ---- PiSSA


def test_pissa_begins_exactly_as_the_model(tiny_model):
    before = logits(tiny_model)
    model = add_adapter(tiny_model, LoraConfig(method="pissa", r=4), 0)
    assert logits(model) == pytest.approx(before, abs=1e-4)
    module = next(m for m in model.modules() if hasattr(m, "lora_A"))
    assert module.lora_A["default"].weight[:4].norm() > 0.1, "and yet not from 0"


def test_pissa_takes_the_principal_part():
    torch.manual_seed(1)
    weight = torch.randn(40, 24) @ torch.diag(0.7 ** torch.arange(24.0)) @ torch.randn(24, 24)
    a, b = pissa.principal_part(weight, 5, 2.0)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    assert 2.0 * b @ a == pytest.approx((u[:, :5] * s[:5]) @ v[:5], abs=1e-3 * float(s[0]))
    assert a.norm(dim=1) == pytest.approx(b.norm(dim=0), rel=1e-4)


def test_pissa_trains_as_in_peft(tiny_model, monkeypatch):
    """PEFT's own PiSSA forms the residual and trains on it: the losses of every step are the same.

    Both with the exact decomposition; random weights have no clear leading directions for the fast one to find.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    theirs = get_peft_model(
        copy.deepcopy(tiny_model),
        PeftLoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa", lora_dropout=0.0
        ),
    )

    def exact(weight, rank, scale):
        u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
        root = (s[:rank] / scale).sqrt()
        return root[:, None] * v[:rank], u[:, :rank] * root

    monkeypatch.setattr(pissa, "principal_part", exact)
    config = LoraConfig(method="pissa", r=4, alpha=8, target_modules=("q_proj", "down_proj"))
    ours = add_adapter(tiny_model, config, 0)
    assert train(ours) == pytest.approx(train(theirs), rel=1e-5)


def test_pissa_keeps_its_start(tiny_model, monkeypatch):
    def start(model):
        return torch.cat([m.lora_A["default"].weight[4:].flatten() for m in model.modules() if hasattr(m, "lora_A")])

    config = LoraConfig(method="pissa", r=4)
    control = add_adapter(copy.deepcopy(tiny_model), config, 0)
    model = add_adapter(tiny_model, config, 0)
    trained, _ = parameter_count(model)
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad) // 2
    before = start(model).clone()
    train(model)
    assert torch.equal(start(model), before)
    # negative control: without the guard it moves
    for p in control.parameters():
        p._backward_hooks = None
    before = start(control).clone()
    train(control)
    assert not torch.equal(start(control), before)


def test_pissa_of_too_high_a_rank(tiny_model):
    with pytest.raises(ModelError, match=r"lora\.r=33: .*k_proj has only 32 singular directions"):
        add_adapter(tiny_model, LoraConfig(method="pissa", r=33), 0)


# ---- the model's own weights


def test_full_trains_everything_in_float32(half_model):
    names = {name for name, _ in half_model.named_parameters()}
    model = add_adapter(half_model, LoraConfig(method="full"), 0)
    assert trained_names(model) == names
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert set(model.state_dict()) - {"lm_head.weight"} == names


def test_full_of_some_layers(half_model):
    model = add_adapter(half_model, LoraConfig(method="full", layers="last:1"), 0)
    assert trained_names(model) == {n for n, _ in model.named_parameters() if n.startswith("model.layers.1.")}
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = train(model, lr=1e-3)
    assert losses[-1] < losses[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trained_names(model)


def test_full_computes_as_the_rounded_model(half_model):
    """To the bit, before training and after it: what is scored is what will be saved."""
    plain = copy.deepcopy(half_model)
    model = add_adapter(half_model, LoraConfig(method="full"), 0)
    assert torch.equal(logits(model), logits(plain))
    train(model, lr=1e-3)
    in_training = logits(model)
    plain.load_state_dict(model.state_dict())  # rounds
    assert torch.equal(in_training, logits(plain))
    finish_training(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not trained_names(model)
    assert torch.equal(logits(model), in_training)
    assert type(model.model.norm) is type(plain.model.norm)


def test_steps_too_small_for_bfloat16_add_up(half_model, monkeypatch):
    """Why the weights are float32: each step is a thousandth of what bfloat16 tells apart."""

    def moved(model) -> float:
        weight = model.model.norm._parameters["weight"]
        before = weight.detach().clone()
        train(model, steps=4, lr=1e-6)
        return float((weight.detach() - before).abs().max())

    control = copy.deepcopy(half_model).requires_grad_(True)
    assert moved(add_adapter(half_model, LoraConfig(method="full"), 0)) == pytest.approx(4e-6, rel=0.1)
    assert moved(control) == 0.0, "negative control: in bfloat16 the weight of 1.0 stays 1.0"


def test_full_needs_memory(tiny_model, monkeypatch):
    weights = sum(p.numel() for p in tiny_model.parameters())
    monkeypatch.setattr(full, "free_memory", lambda device: 12 * weights - 1)
    with pytest.raises(ModelError, match=r"trains 0 M weights.*\(16 bytes each.*free on cpu\. Take lora\.method=lora"):
        add_adapter(tiny_model, LoraConfig(method="full"), 0)
    assert not trained_names(tiny_model)
    add_adapter(tiny_model, LoraConfig(method="full", layers="last:1"), 0)  # less is needed
    monkeypatch.setattr(full, "free_memory", lambda device: 12 * weights)  # 4 of the 16 are there already
    add_adapter(tiny_model, LoraConfig(method="full"), 0)


def test_free_memory_is_a_plausible_number():
    assert 10**7 < full.free_memory(torch.device("cpu")) < 10**14


def test_full_takes_no_code_of_others(tiny_model):
    kind = type("Theirs", (type(tiny_model),), {"__module__": "transformers_modules.x.modeling"})
    tiny_model.__class__ = kind
    with pytest.raises(ModelError, match="brings its own Python code"):
        add_adapter(tiny_model, LoraConfig(method="full"), 0)


def test_full_in_float16(tiny_model):
    with pytest.raises(ModelError, match="float16"):
        add_adapter(tiny_model.half(), LoraConfig(method="full"), 0)


def test_settings_that_could_not_be_saved_are_mended(tiny_model, tmp_path):
    tiny_model.generation_config.temperature = 0.5
    with pytest.raises(ValueError, match="temperature"):
        copy.deepcopy(tiny_model).save_pretrained(tmp_path / "a")
    add_adapter(tiny_model, LoraConfig(method="full"), 0).save_pretrained(tmp_path / "b")


@pytest.mark.parametrize("method", ["dora", "pissa", "full"])
def test_activations_computed_again_give_the_same_gradients(half_model, method):
    from fenlei.modeling.memory import checkpoint_activations, checkpoints_activations

    def gradients(model):
        model.train()
        out = model(input_ids=IDS, use_cache=False).logits
        torch.nn.functional.cross_entropy(out[:, :-1].float().flatten(0, 1), IDS[:, 1:].flatten()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    again = copy.deepcopy(half_model)
    checkpoint_activations(again)
    assert checkpoints_activations(again)
    assert not checkpoints_activations(half_model)
    expected = gradients(add_adapter(half_model, LoraConfig(method=method), 0))
    assert torch.equal(gradients(add_adapter(again, LoraConfig(method=method), 0)), expected)
