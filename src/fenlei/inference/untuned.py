"""The model without its tuning: zero-shot, and few-shot with solved examples in the prompt."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fenlei.data.example import Example
from fenlei.errors import ModelError
from fenlei.evaluation.notes import Note, because
from fenlei.inference.predictor import Predictor
from fenlei.modeling.calibration import Calibration

# fewer tokens than this hold no example worth showing
_LEAST_TOKENS = 64


@contextmanager
def untuned(predictor: Predictor) -> Iterator[Predictor]:
    """Within, the returned predictor answers as the base model would, and so does the one given.

    The adapter is switched off and on again; prompts stay those of the classifier, calibration is left out.

    Raises:
        ModelError: the model's own weights were tuned (``lora.method=full``), so the base model is not there any more.
    """
    model = predictor.model
    if not hasattr(model, "disable_adapter"):
        raise because(ModelError, Note("no_base_model"))
    plain = copy.copy(predictor)
    plain.calibration = Calibration()
    with model.disable_adapter():
        yield plain


def with_examples(
    predictor: Predictor, train: Sequence[Example], *, a_label: int, most_tokens: int, seed: int
) -> tuple[Predictor, int]:
    """A predictor whose prompts show solved examples from the training rows.

    Args:
        predictor: the one to ask.
        train: rows to choose from, by chance.
        a_label: examples a label.
        most_tokens: most tokens of all examples; fewer where the model's context is shorter.
        seed: seed of the choice and of its order.

    Returns:
        The predictor, and the number of examples that fitted.

    Raises:
        ModelError: no example fits, or the chat template knows no second user turn.
    """
    encoder = predictor.encoder
    room = getattr(predictor.model.config, "max_position_embeddings", None)
    most = min(most_tokens, room - encoder.config.max_length) if room else most_tokens
    if most < _LEAST_TOKENS:
        raise because(ModelError, Note("no_room", {"room": int(room or most)}))
    try:
        shown, count = encoder.with_shots(choose_examples(train, a_label, seed), most)
    except ModelError as error:
        raise because(ModelError, Note("no_second_turn", {"error": str(error)})) from error
    if not count:
        raise because(ModelError, Note("no_example_fits", {"most": most}))
    made = copy.copy(predictor)
    made.encoder = shown
    return made, count


def choose_examples(train: Sequence[Example], a_label: int, seed: int) -> list[Example]:
    """Training rows by chance: one of each label in mixed order, then a second of each, and so on."""
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    by_label: dict[str, list[Example]] = {}
    for example in train:
        if example.label is not None:
            by_label.setdefault(example.label, []).append(example)
    chosen = {label: generator.sample(rows, min(a_label, len(rows))) for label, rows in sorted(by_label.items())}
    rounds = []
    for turn in range(a_label):
        labels = [label for label, rows in chosen.items() if turn < len(rows)]
        generator.shuffle(labels)
        rounds += [chosen[label][turn] for label in labels]
    return rounds
