"""The rows that are trained on: real ones as the classifier's own prompt renders them, or random ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train_speed_job import Row

# tokens that the rows of one data set have in common: what the `zh` prompt puts before a news title (10 labels). Such
# rows have 80 tokens in the median.
SHARED = 59
_LABELS = 10


@dataclass(frozen=True)
class Workload:
    """Rows of one kind.

    Attributes:
        name: its name in the report.
        rows: as many as there are steps times rows a step.
        pad_id: token that pads rows.
        about: one line on where the rows come from.
    """

    name: str
    rows: list[Row]
    pad_id: int
    about: str

    @property
    def shared(self) -> int:
        """Number of tokens that all rows begin with."""
        return common_prefix([row.input_ids for row in self.rows])


def common_prefix(rows: Sequence[list[int]]) -> int:
    first, last = min(rows), max(rows)  # the two that differ earliest
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(map(len, rows)))


def synthetic(length: int, count: int, vocab: int, *, shared: int = SHARED, seed: int = 0) -> Workload:
    """Random rows of ``length`` tokens: a common beginning, a text, and one of ten answers of two tokens."""
    shared = min(shared, length - 8)
    draw = random.Random(seed)
    ids = range(3, vocab)
    beginning = draw.choices(ids, k=shared)
    answers = [draw.choices(ids, k=2) for _ in range(_LABELS)]
    rows = [
        Row([*beginning, *draw.choices(ids, k=length - shared - 2), *draw.choice(answers)], length - 2)
        for _ in range(count)
    ]
    about = f"random ids: {length} tokens a row, the first {shared} the same in all rows, the last 2 the answer"
    return Workload(f"synthetic-{length}", rows, 0, about)


def fudan(file: Path, model: Path, count: int, *, preset: str = "zh", seed: int = 0) -> Workload:
    """Rows whose text fills the prompt up to 384 tokens, all labels of the file as candidates."""
    return _real("fudan-384", file, model, count, preset, seed, only_full=True)


def titles(file: Path, model: Path, count: int, *, preset: str = "zh", seed: int = 0) -> Workload:
    """Short rows: news titles, all labels of the file as candidates."""
    return _real("titles", file, model, count, preset, seed, only_full=False)


def _real(name: str, file: Path, model: Path, count: int, preset: str, seed: int, *, only_full: bool) -> Workload:
    from fenlei.config import ModelConfig, RunConfig
    from fenlei.data import LabelSet, read_examples
    from fenlei.modeling.loading import load_tokenizer
    from fenlei.prompting import PromptEncoder

    if not file.is_file():
        raise SystemExit(f"{file}: no such file; workload {name} needs it (--data FOLDER)")
    config = RunConfig.build({"prompt": {"preset": preset, "max_length": 384}})
    tokenizer = load_tokenizer(model, ModelConfig())
    examples = read_examples(file, config.data, role="train").examples
    encoder = PromptEncoder(tokenizer, config.prompt, LabelSet.from_examples(examples, config.data), "all")
    random.Random(seed).shuffle(examples)
    rows = []
    for example in examples:
        prompt, answer = encoder.encode_training(example)
        if prompt.truncated or not only_full:
            rows.append(Row([*prompt.input_ids, *answer], len(prompt.input_ids)))
        if len(rows) == count:
            break
    found = len(rows)
    rows = [rows[i % found] for i in range(count)]
    lengths = sorted(len(row.input_ids) for row in rows)
    about = (
        f"{file.parent.name}/{file.name}, prompt preset {preset}, {len(encoder.labels)} candidates: {found} rows of "
        f"{lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}"
    )
    return Workload(name, rows, int(tokenizer.pad_token_id), about)
