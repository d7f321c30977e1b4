"""A tiny Qwen2 with a byte-level tokenizer and ChatML, made from a config: no download, loads in a moment."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

# A shell that starts the tests in the background, or nohup, has them ignore these, and what they start inherits
# that: tests of signals would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# several test processes at once: each one, and what it starts, takes its part of the cores. Torch reads it at import.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "文本分类：体育、财经、科技。",
    "国足今晚迎战韩国队，主场球迷高呼加油。",
    "股市大涨，基金经理看好银行股。",
    "Sports Space Politics",
]


def make_tokenizer():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    # like Qwen's <tool_call>: an added token that is not flagged special
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tokenizer) -> Path:
    """A model folder as a hub would give it."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,  # the usual 0.02 gives logits too flat for an adapter to sharpen
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny-qwen2")
    Qwen2ForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_folder):
    from fenlei.config import ModelConfig
    from fenlei.modeling.loading import load_model

    return load_model(tiny_folder, ModelConfig(dtype="float32", device="cpu"))


SENTENCES = {
    "体育": ["国足今晚迎战韩国队", "男篮加时险胜", "乒乓球世界杯开赛", "马拉松选手冲线"],
    "财经": ["股市大涨三个百分点", "央行下调利率", "基金经理看好银行股", "公司发布财报"],
    "科技": ["新款芯片发布", "手机厂商推出折叠屏", "工程师修复软件漏洞", "机器人走进工厂"],
}


@pytest.fixture
def rows():
    """Twelve labelled rows in the tutorial's format."""
    names = list(SENTENCES)
    return [{"text": text, "category": names, "output": label} for label, texts in SENTENCES.items() for text in texts]


@pytest.fixture
def train_file(tmp_path, rows) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def tiny_settings(tiny_folder) -> dict:
    """Settings that train the tiny model in seconds."""
    return {
        "model": {"spec": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        "data": {"dev_fraction": 0.0},
        "prompt": {"max_length": 256},
        "lora": {"r": 8, "alpha": 32},
        "train": {
            "epochs": 40,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "save_steps": 1000,
            "oversample": 0.0,
        },
        "tracking": {"trackers": []},
    }
