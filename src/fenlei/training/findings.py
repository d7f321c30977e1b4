"""What a run finds out beside its classifier: the baseline ladder, and probable label errors among the dev rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fenlei.config import RunConfig
from fenlei.durable import write_json
from fenlei.evaluation.ladder import ladder_lines
from fenlei.evaluation.noise import rank_label_errors
from fenlei.evaluation.pictures import ladder_png
from fenlei.inference.ladder import LadderData, measure_ladder
from fenlei.inference.predictor import Predictor
from fenlei.prompting.plain import clean
from fenlei.tracking import Record, TrackerGroup
from fenlei.training.data import TrainingData
from fenlei.training.report import Scored, unless_it_fails

_log = logging.getLogger(__name__)
# A row's training step costs three times its scoring (forward, and backward at twice that); zero-shot and few-shot may
# each cost this share of the training.
_SHARE, _STEP_COST = 0.04, 3


def report_ladder(
    config: RunConfig,
    data: TrainingData,
    predictor: Predictor,
    dev: Scored,
    test: Scored,
    *,
    steps: int,
    best_step: int,
    folder: Path,
    record: Record,
    trackers: TrackerGroup,
    console: Console,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any] | None:
    """The ladder on the test rows, or on the dev rows without any; written to ``ladder.json`` and ``ladder.png``.

    Args:
        config: the settings.
        data: the rows.
        predictor: the finished classifier.
        dev: dev rows and its predictions, calibrated.
        test: test rows and its predictions.
        steps: optimizer steps done.
        best_step: the step whose weights are used.
        folder: gets both files.
        record: gets the figures of the rungs.
        trackers: get the picture, and the ladder in words.
        console: progress.
        progress: called between batches.

    Returns:
        See :func:`fenlei.evaluation.ladder.build_ladder`; None without baselines or rows.
    """
    scored, part = (test, "test") if test.examples else (dev, "dev")
    for name in ("ladder.json", "ladder.png"):  # of the run before a resume: its tuned rung is another classifier's
        (folder / name).unlink(missing_ok=True)
    if not config.evaluation.ladder or not scored.examples:
        return None
    # the rows that the ladder is measured on must not choose TF-IDF's settings
    choosing = data.dev if part == "test" else []
    ladder = measure_ladder(
        predictor,
        scored.predictions,
        LadderData(data.train, choosing, scored.examples, part),
        config.evaluation,
        seed=config.train.seed,
        tuned_seconds=scored.seconds,
        model_rows=affordable_rows(config, steps),
        say=console.print,
        progress=progress,
    )
    folder.mkdir(exist_ok=True)
    write_json(folder / "ladder.json", ladder)
    for rung in ladder["rungs"]:
        if rung["accuracy"] is None:
            continue
        figures = {key: float(rung[key]) for key in ("accuracy", "macro_f1", "rows", "seconds")}
        # final: a resume takes it back and writes it anew
        record.write("ladder", best_step, final=True, rung=rung["key"], **figures)
    draw = partial(ladder_png, ladder, folder / "ladder.png", title=f"baseline ladder, {part} set")
    picture = unless_it_fails(draw, "ladder.png was not drawn", record, best_step)
    if picture is not None:
        trackers.log_image("ladder/intervals", picture, best_step, caption=f"{part}: baselines and the tuned model")
    trackers.log_text("ladder/table", "\n".join(ladder_lines(ladder)), best_step)
    return ladder


def affordable_rows(config: RunConfig, steps: int) -> int | None:
    """Rows that zero-shot and few-shot may be asked: 4 % of the training's work, ``evaluation.ladder_rows`` at most.

    Counted in rows and not in seconds, so that the same run asks the same rows on any machine.
    """
    most = config.evaluation.ladder_rows
    return None if most is None else min(most, int(_SHARE * _STEP_COST * steps * config.train.batch_size))


def report_label_errors(dev: Scored, folder: Path) -> int:
    """Ranks the dev rows, which were not trained on, by how doubtful their labels are; to ``label_errors.json``.

    Where that fails, it is said and the file is not there: the run goes on.

    Returns:
        The number of probable errors.
    """
    (folder / "label_errors.json").unlink(missing_ok=True)
    if not dev.examples:
        return 0
    try:
        issues = [issue for issue in rank_label_errors(dev.gold, dev.predictions) if issue.probable]
    except Exception as error:
        _log.warning("label errors were not looked for: %s: %s", type(error).__name__, error)
        return 0
    rows = [
        {**asdict(issue), "part": "dev", "id": example.id, "source": example.source, "text": clean(example.text)}
        for issue in issues
        for example in (dev.examples[issue.row],)
    ]
    folder.mkdir(exist_ok=True)
    write_json(folder / "label_errors.json", {"part": "dev", "n": len(dev.examples), "rows": rows})
    return len(rows)
