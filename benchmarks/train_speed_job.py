"""What a measured process is told to do: plain data, read and written as JSON, free of torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Models made of random weights on the device, for machines without a model: numbers of a transformers Qwen2Config.
SHAPES: dict[str, dict[str, int]] = {
    # Qwen1.5-7B
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
    # Qwen2.5-0.5B
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    # for trying the benchmark itself
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "tie_word_embeddings": True,
    },
}
TUTORIAL_BATCH = 4


@dataclass(frozen=True)
class Row:
    """Token ids of one row, prompt and answer, and where the answer begins."""

    input_ids: list[int]
    answer_start: int


@dataclass(frozen=True)
class ModelSource:
    """Where the model comes from: a folder, or the name of a shape that is filled with random numbers.

    Attributes:
        folder: a model folder, or None.
        shape: a key of ``SHAPES``, or None.
        numbers: the sizes named in ``SHAPES``, for either kind.
    """

    folder: str | None
    shape: str | None
    numbers: dict[str, int]

    @classmethod
    def of_shape(cls, name: str) -> ModelSource:
        return cls(None, name, SHAPES[name])

    @classmethod
    def of_folder(cls, folder: Path) -> ModelSource:
        whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = {"tie_word_embeddings": False, **whole, **(whole.get("text_config") or {})}
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
        wanted = [*SHAPES["tiny"], "head_dim"]
        numbers = {key: config[key] for key in wanted if config.get(key) is not None}
        return cls(str(folder.resolve()), None, numbers)

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """Input and output widths of the matrix products of one decoder layer."""
        n = self.numbers
        hidden, inner = n["hidden_size"], n["intermediate_size"]
        width = n.get("head_dim") or hidden // n["num_attention_heads"]
        queries, keys = n["num_attention_heads"] * width, n["num_key_value_heads"] * width
        return {
            "q": (hidden, queries),
            "k": (hidden, keys),
            "v": (hidden, keys),
            "o": (queries, hidden),
            "gate": (hidden, inner),
            "up": (hidden, inner),
            "down": (inner, hidden),
        }

    @property
    def body_parameters(self) -> int:
        """Weights of all decoder layers' matrix products."""
        return self.numbers["num_hidden_layers"] * sum(a * b for a, b in self.products.values())

    @property
    def bytes(self) -> int:
        """Size of the weights in bfloat16."""
        embeddings = 1 if self.numbers["tie_word_embeddings"] else 2
        return 2 * (self.body_parameters + embeddings * self.numbers["vocab_size"] * self.numbers["hidden_size"])


@dataclass(frozen=True)
class Job:
    """One measured process.

    Attributes:
        name: name of the variant in the report.
        method: `tutorial`, `trl`, `fenlei` or `matrix` (the rate of plain matrix products).
        model: the model.
        rows_file: JSON file with the rows of all steps, in their order.
        steps: optimizer steps, the warm-up included.
        folder: a folder of its own for what the trainer wants to write.
        batch_size: rows an optimizer step.
        device: `cpu` or `cuda`.
        dtype: number format of the weights, `bfloat16` or `float32`.
        pad_id: token that pads rows.
        seed: seed of the adapter's start and of dropout.
        settings: what only this method knows.
    """

    name: str
    method: str
    model: ModelSource
    rows_file: str
    steps: int
    folder: str
    batch_size: int = 16
    device: str = "cpu"
    dtype: str = "bfloat16"
    pad_id: int = 0
    seed: int = 42
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "model": ModelSource(**values["model"])})

    def rows(self) -> list[Row]:
        """The rows of all steps.

        Raises:
            ValueError: the file holds another number of rows than the steps take.
        """
        rows = [Row(*item) for item in json.loads(Path(self.rows_file).read_text(encoding="utf-8"))]
        if len(rows) != self.steps * self.batch_size:
            raise ValueError(f"{self.rows_file}: expected {self.steps} x {self.batch_size} rows, found {len(rows)}")
        return rows


def write_rows(rows: list[Row], path: Path) -> None:
    path.write_text(json.dumps([[row.input_ids, row.answer_start] for row in rows]), encoding="utf-8")
