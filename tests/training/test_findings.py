from __future__ import annotations

from types import SimpleNamespace

import pytest

from fenlei.config import RunConfig
from fenlei.errors import ModelError
from fenlei.evaluation.notes import Note, reason
from fenlei.inference.untuned import untuned
from fenlei.training.findings import affordable_rows


@pytest.mark.parametrize(("overrides", "steps", "rows"), [
    ([], 1000, 200),
    ([], 50, 96),  # 4 % of 50 steps of 16 rows, each worth three scorings
    (["train.batch_size=4"], 50, 24),
    (["evaluation.ladder_rows=10"], 50, 10),
    (["evaluation.ladder_rows=null"], 1, None),
])  # fmt: skip
def test_the_untuned_model_is_asked_what_a_short_training_can_bear(overrides, steps, rows):
    assert affordable_rows(RunConfig.build({}, overrides=overrides), steps) == rows


def test_a_model_that_was_tuned_as_a_whole_cannot_be_asked_untuned():
    with (
        pytest.raises(ModelError, match=r"lora\.method=full") as refused,
        untuned(SimpleNamespace(model=object())),
    ):
        pass
    assert reason(refused.value) == Note("no_base_model"), "a page in another language words it too"
