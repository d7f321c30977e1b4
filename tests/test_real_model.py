"""Real weights and real data, kept short."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fenlei import TextClassifier
from fenlei.config import DataConfig, ModelConfig, PromptConfig
from fenlei.data import LabelSet, read_examples
from fenlei.errors import ModelError
from fenlei.modeling.loading import load_tokenizer
from fenlei.modeling.sources import resolve
from fenlei.prompting import PromptEncoder
from fenlei.training.dataset import build_training_set
from tests.data_dir import shared_data

pytestmark = pytest.mark.real_model


def folder_of(name: str):
    try:
        return resolve(name, show_progress=False)
    except (ModelError, OSError) as error:
        pytest.skip(f"{name} is not cached and cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def qwen_tokenizer():
    return load_tokenizer(folder_of("qwen2.5-coder-0.5b").path, ModelConfig())


@pytest.fixture(scope="module")
def fudan():
    path = shared_data("fudan-news/train.jsonl")
    return read_examples(path, DataConfig()).examples


def tutorial_ids(tokenizer, example, max_length=384):
    """The tutorial's process_func, told in our words: prompt + answer + pad token, then one cut."""
    user = f"文本:{example.text},类型选型:{list(example.candidates)}"
    system = "你是一个文本分类领域的专家，你会接收到一段文本和几个潜在的分类选项，请输出文本内容的正确类型"
    prompt = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(example.label, add_special_tokens=False)["input_ids"]
    labels = [-100] * len(prompt_ids) + answer + [tokenizer.pad_token_id]
    return labels[:max_length]


@pytest.mark.parametrize("candidates", ["row", "all"])
def test_all_1380_rows_keep_their_answer(qwen_tokenizer, fudan, candidates):
    labels = LabelSet.from_examples(fudan, DataConfig())
    config = PromptConfig(preset="tutorial-zh", max_length=384)
    encoder = PromptEncoder(qwen_tokenizer, config, labels, candidates)
    rows = build_training_set(fudan, encoder)
    assert len(rows.rows) == 1380
    assert rows.shortened > 500, "the texts are long: the test has a point"
    for example, row in zip(fudan, rows.rows, strict=True):
        assert len(row.input_ids) <= 384
        assert tuple(row.input_ids[row.answer_start :]) == encoder.answer_ids(example.label)
        assert qwen_tokenizer.decode(row.input_ids[row.answer_start :]) == f"{example.label}<|im_end|>"


def test_the_tutorial_loses_most_answers(qwen_tokenizer, fudan):
    """Negative control, and the figure in the README."""
    lost = sum(all(label == -100 for label in tutorial_ids(qwen_tokenizer, e)) for e in fudan)
    assert 0.55 < lost / len(fudan) < 0.67


def test_the_tutorial_preset_gives_the_tutorial_s_text(qwen_tokenizer, fudan):
    labels = LabelSet.from_examples(fudan, DataConfig())
    encoder = PromptEncoder(qwen_tokenizer, PromptConfig(preset="tutorial-zh", max_length=4096), labels, "row")
    for example in fudan[:20]:
        prompt = qwen_tokenizer.decode(encoder.encode_example(example).input_ids)
        assert f"<|im_start|>user\n文本:{example.text},类型选型:{list(example.candidates)}<|im_end|>" in prompt


def test_smollm2_from_train_to_predict_through_the_commands(tmp_path):
    """English, real weights, the README's commands in fresh processes."""
    spec = str(folder_of("smollm2-135m").path)
    texts = {
        "sports": ["The striker scored twice in the final", "She won the marathon in record time",
                   "The goalkeeper saved a late penalty", "Their coach praised the young team"],
        "finance": ["The bank raised interest rates again", "Shares fell after the profit warning",
                    "The central bank bought government bonds", "Investors sold the currency"],
    }  # fmt: skip
    rows = [{"text": t, "label": k} for k, ts in texts.items() for t in ts]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    (tmp_path / "new.csv").write_text(
        'text\nThe midfielder was injured in training\n"Shares fell, the bank raised rates again"\n', "utf-8"
    )

    def fenlei(*args):
        done = subprocess.run([sys.executable, "-m", "fenlei", *args], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    fenlei(
        "train", "--train", "train.jsonl", "--model", spec, "--out", "run", "prompt.preset=en", "train.epochs=6",
        "train.batch_size=4", "train.learning_rate=5e-4", "data.dev_fraction=0", "tracking.trackers=[]",
    )  # fmt: skip
    assert "macro-F1 1.0000" in fenlei("evaluate", "run", "train.jsonl", "--json", "m.json")
    fenlei("predict", "run", "new.csv", "--out", "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").split("\n") if line]
    assert [r["label"] for r in found] == ["sports", "finance"]
    direct = TextClassifier.load(tmp_path / "run").predict_proba([r["text"] for r in found])
    for row, p in zip(found, direct, strict=True):
        # bfloat16 weights: other neighbours in the batch may change a probability by this much
        assert row["probabilities"]["sports"] == pytest.approx(p[0], abs=0.02)


@pytest.mark.parametrize(
    ("settings", "counts", "bound"),
    [({}, (7, 128), 0.02), ({"strict": True}, (7,), 0.0), ({"packed": False}, (7,), None)],
    ids=["default", "strict", "control: padded"],
)
def test_neighbours_change_rounding_only_in_bfloat16(settings, counts, bound):
    """Real weights, and labels that need a tree. Side by side and padded, as a control, neighbours are seen."""
    import numpy as np

    from fenlei.config import InferenceConfig
    from fenlei.data import Example
    from fenlei.inference import Predictor
    from fenlei.modeling.loading import load_model

    folder = folder_of("smollm2-135m").path
    on_cpu, inference = ModelConfig(dtype="bfloat16", device="cpu"), InferenceConfig(**settings)
    labels = ("sports", "sports news", "finance", "finance report", "science")
    encoder = PromptEncoder(load_tokenizer(folder, on_cpu), PromptConfig(preset="en"), LabelSet(labels), "all")
    predictor = Predictor(load_model(folder, on_cpu), encoder, pad_id=0, inference=inference)
    needle = Example("The striker scored twice in the final")
    rows = [Example("Shares fell after the profit warning. " * (1 + i % 4)) for i in range(max(counts))]

    def probabilities(examples):
        found = predictor.predict(examples)[examples.index(needle)].probabilities
        return np.array([found[name] for name in labels])

    alone = probabilities([needle])
    changes = []
    for count in counts:
        place = count * 2 // 3
        together = [*rows[:place], needle, *rows[place:count]]
        changes += [np.abs(probabilities(order) - alone).max() for order in (together, together[::-1])]
    assert max(changes) > 0 if bound is None else max(changes) <= bound
