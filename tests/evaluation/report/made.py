"""Reports from made-up rows: as a run would leave them, of any size."""

from __future__ import annotations

import random

from fenlei.evaluation import evaluate_predictions
from fenlei.evaluation.notes import Note, note_fields
from fenlei.evaluation.report import Comparison, Cost, LabelIssue, ReportData, Row, Rung
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import make_predictions

LABELS = ["体育", "财经", "科技", "娱乐", "教育", "房产", "时政", "国际", "健康", "旅游"]
WORDS = (
    "国足 主场 球迷 股市 基金 银行 利率 芯片 手机 软件 电影 票房 导演 高考 大学 学生 楼盘 房价 会议 政策 外交 总统 "
    "医院 疫苗 饮食 景区 航班 酒店 今天 记者 报道 表示 认为 市场 公司 发展 问题 工作 中国 世界 北京 上海 公布 预计 增长"
).split()


def noted(*notes: Note) -> dict:
    """Fields of a rung, as they come from ladder.json."""
    fields = note_fields(notes)
    return {**fields, "notes": tuple(fields["notes"])}


def made_report(rows: int = 400, seed: int = 1, labels: list[str] | None = None, evil: str = "", words: int = 60):
    """A report; `evil` is put into every text, label, file name and setting."""
    import numpy as np

    draw = random.Random(seed)
    names = [evil + name for name in (labels or LABELS)]
    gold, scores, texts = [], [], []
    for _ in range(rows):
        right = min(int(draw.expovariate(0.28)), len(names) - 1)
        length = max(3, int(draw.lognormvariate(0, 0.7) * words))
        texts.append(
            evil + "".join(draw.choice(WORDS) + draw.choice(["", "", "，", "。", "的"]) for _ in range(length))
        )
        line = np.array([draw.gauss(0, 1.6) for _ in names])
        line[right] += 5.5 - (2.5 if length > 2 * words else 0)
        line[(right + 1) % len(names)] += 1.5
        gold.append(names[right])
        scores.append(line - np.log(np.exp(line).sum()))
    calibration = Calibration(method="temperature", temperature=0.8, threshold=0.4)
    shortened = [len(text) > 5 * words for text in texts]
    predictions = make_predictions([tuple(names)] * rows, scores, shortened, calibration)
    metrics = evaluate_predictions(gold, predictions, names, seconds=rows / 37.0, calibration=calibration)
    found = [
        Row(f"{evil}{i}", text, label, p.label, p.probabilities, p.abstained, p.truncated)
        for i, (text, label, p) in enumerate(zip(texts, gold, predictions, strict=True))
    ]
    curve = [
        {"event": "train", "step": s, "loss": 2.2 * 0.97**s + draw.random() * 0.1, "learning_rate": 1e-4}
        for s in range(1, 300, 5)
    ] + [
        {"event": "dev", "step": s, "accuracy": 0.9 - 0.5 * 0.98**s, "macro_f1": 0.88 - 0.5 * 0.98**s,
         "log_loss": 0.3 + 0.98**s}
        for s in range(50, 301, 50)
    ]  # fmt: skip
    return ReportData(
        title=f"{evil}thucnews-titles-20261124",
        part="test",
        labels=names,
        metrics=metrics,
        rows=found,
        dev={**metrics, "n": rows // 2},
        curve=curve,
        rungs=[
            Rung("majority", 0.245, (0.21, 0.29), 0.04, (0.035, 0.046), 0.01),
            Rung("tfidf", 0.781, (0.74, 0.82), 0.742, (0.70, 0.78), 1.9,
                 **noted(Note("learned_from", {"rows": 4800}), Note("chosen_on_dev", {"setting": "C=0.2, min_df=2"}))),
            Rung("zero_shot", 0.612, (0.57, 0.66), 0.55, (0.5, 0.6), 16.0, note=evil),
            Rung("few_shot", **noted(Note("too_short", {"rows": 30}))),
            Rung("tuned", metrics["accuracy"], (0.84, 0.9), metrics["macro_f1"], (0.8, 0.88), 940.0),
        ],
        comparisons=[Comparison("tfidf", "tuned", "accuracy", 0.09, (0.05, 0.13), 0.00002, rows)],
        label_issues=[
            LabelIssue(row.id, row.text, row.label, row.predicted, 0.01 * i)
            for i, row in enumerate(found[:40])
        ],
        cost=Cost(940.0, False, 300, 4800, 910_000, 3_200_000_000, None, "x86_64 CPU, 2 threads", 37.0, 190.0, 1.2,
                  processor="x86_64", threads=2, currency="CNY"),
        config={"model": {"spec": f"{evil}qwen2.5-coder-0.5b"}, "data": {"train": f"{evil}训练.jsonl", "labels": None},
                "train": {"learning_rate": 1e-4, "epochs": 3}},
        base_model={"spec": "qwen2.5-coder-0.5b", "source": "builtin", "revision": None, "sha256": {"m": "1d96" * 16}},
        versions={"fenlei": "0.1.0", "torch": "2.6.0", "transformers": "5.17.0"},
        created="2026-11-24T12:00:00+00:00",
        predictions="../predictions/test.jsonl",
    )  # fmt: skip
