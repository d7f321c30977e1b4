"""Plants wrong labels and measures how many of them the ranking of `fenlei noise` brings to the top.

    .venv/bin/python benchmarks/label_noise.py --out /tmp/noise                        # TF-IDF, under a minute
    .venv/bin/python benchmarks/label_noise.py --out /tmp/noise --judges tfidf tuned   # and a model: two trainings

5 % of the training rows get a wrong label, drawn evenly among the other labels (seeded). Judges see every row's text
with all labels as candidates:

- tfidf: out-of-fold probabilities of TF-IDF and a linear SVM, as `fenlei noise` computes them;
- tuned: `fenlei train` on one half of the noisy rows judges the other half, and the other way round.

Precision and recall are taken among the top ranks, at once and twice the number of planted errors. Labels that were
wrong before are counted as right, so all figures are a little too low. Results that are there already are kept, as are
trainings that were broken off, where rows, planted errors, seed and settings are the same; else all is made anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("fudan-news", "thucnews-titles")
JUDGES = ("tfidf", "tuned")
# cheap: an epoch more or less changes the ranking little, and dev rows would be noisy too
SETTINGS = (
    "data.candidates=all", "data.dev_fraction=0", "train.epochs=2", "train.early_stopping=0", "tracking.trackers=[]",
    "evaluation.ladder=[]",
)  # fmt: skip
COLUMNS = ("average_precision", "precision@1x", "recall@1x", "precision@2x", "recall@2x")


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "label_noise.json"
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else []
    for name in args.data:
        for judge in args.judges:
            planted = plant(name, args)
            key = {"data": name, "judge": judge, "share": args.share, "seed": args.seed, "rows_used": args.rows}
            key |= {"settings": args.more if judge == "tuned" else [], "noisy_rows": digest(planted.noisy)}
            if any(all(row.get(k) == v for k, v in key.items()) for row in found):
                continue
            found.append({**key, **one(planted, key, args)})
            path.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    text = table(found)
    (args.out / "label_noise.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = described.add_argument
    here = Path(__file__).resolve().parents[1]
    add("--out", type=Path, required=True, help="folder for label_noise.json, label_noise.md and the runs")
    add("--root", type=Path, default=here.parent / "shared" / "data", help="folder with the data sets")
    add("--data", nargs="+", default=list(NAMES), help="data sets: folders with train.jsonl")
    add("--judges", nargs="+", choices=JUDGES, default=["tfidf"])
    add("--share", type=float, default=0.05, help="share of wrong labels")
    add("--rows", type=int, help="take so many rows only, by chance")
    add("--seed", type=int, default=42)
    add(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        dest="more",
        help="settings of fenlei train, e.g. model.spec",
    )
    return described


class Planted(NamedTuple):
    """Rows with wrong labels among them: which, and what was there before."""

    noisy: list[dict[str, str]]
    right: list[str]
    wrong: set[int]


def plant(name: str, args: argparse.Namespace) -> Planted:
    """Plants errors in one data set."""
    from fenlei.evaluation.noise import plant_errors

    rows = read_rows(args.root / name / "train.jsonl", args.rows, args.seed)
    right = [row["output"] for row in rows]
    given, wrong = plant_errors(right, args.share, args.seed)
    noisy = [{"text": row["text"], "output": label} for row, label in zip(rows, given, strict=True)]
    return Planted(noisy, right, set(wrong))


def digest(value: Any) -> str:
    """Short name of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def one(planted: Planted, key: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Lets one judge rank the rows. `key` names all that a training depends on, so its runs lie in a folder by it."""
    from fenlei.evaluation.noise import rank_label_errors, ranking_quality

    noisy, right, wrong = planted
    given = [row["output"] for row in noisy]
    start = time.monotonic()
    if key["judge"] == "tfidf":
        predictions = judge_by_tfidf(noisy, args.seed)
    else:
        folder = args.out / f"runs-{key['data']}-{digest({**key, 'fixed': SETTINGS})}"
        predictions = judge_by_model(noisy, folder, args)
    seconds = time.monotonic() - start
    issues = rank_label_errors(given, predictions)
    flagged = {issue.row for issue in issues if issue.probable}
    top = [issue for issue in issues[: len(wrong)] if issue.row in wrong]
    return {
        "rows": len(noisy),
        "labels": len(set(right)),
        **ranking_quality([issue.row for issue in issues], wrong),
        "flagged": len(flagged),
        "flagged_precision": len(flagged & wrong) / max(1, len(flagged)),
        "flagged_recall": len(flagged & wrong) / len(wrong),
        "suggestion_right": sum(i.suggested == right[i.row] for i in top) / max(1, len(top)),
        "seconds": seconds,
    }


def read_rows(path: Path, most: int | None, seed: int) -> list[dict[str, str]]:
    from fenlei.inference.ladder import sample_rows

    lines = path.read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    return [rows[i] for i in sample_rows([row["output"] for row in rows], most, seed)]


def judge_by_tfidf(rows: Sequence[dict[str, str]], seed: int) -> list[Any]:
    from fenlei.evaluation.noise import out_of_fold

    given = [row["output"] for row in rows]
    names = tuple(sorted(set(given)))
    return out_of_fold([row["text"] for row in rows], given, [names] * len(rows), seed=seed)


def judge_by_model(rows: Sequence[dict[str, str]], folder: Path, args: argparse.Namespace) -> list[Any]:
    """Each half of the rows judged by a classifier that was trained on the other one, through the command itself."""
    from fenlei import TextClassifier
    from fenlei.data import Example

    halves = halve([row["output"] for row in rows], args.seed)
    found: dict[int, Any] = {}
    for number, (held, learned) in enumerate((halves, halves[::-1])):
        run = folder / f"half-{number}"
        train = write_rows(folder / f"half-{number}.jsonl", [rows[i] for i in learned])
        labels = ",".join(sorted({row["output"] for row in rows}))
        settings = [*SETTINGS, f"data.labels=[{labels}]", f"train.seed={args.seed}", *args.more]
        if not (run / "classifier" / "manifest.json").is_file():
            resume = ["--resume"] if any((run / "checkpoints").glob("step-*")) else []
            if not resume:
                shutil.rmtree(run, ignore_errors=True)
            command = [sys.executable, "-m", "fenlei", "train", "--train", str(train), "--out", str(run), *resume]
            subprocess.run([*command, *settings], check=True)
        classifier = TextClassifier.load(
            run, overrides=[s for s in args.more if s.startswith(("model.", "inference."))]
        )
        said = classifier.classify([Example(rows[i]["text"]) for i in held])
        found.update(zip(held, said, strict=True))
    return [found[i] for i in range(len(rows))]


def halve(labels: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Two halves of the rows, each with half of every class."""
    from fenlei.inference.ladder import sample_rows

    first = set(sample_rows(labels, len(labels) // 2, seed))
    return sorted(first), [i for i in range(len(labels)) if i not in first]


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def table(found: Sequence[dict[str, Any]]) -> str:
    heads = ["average precision", "precision 1x", "recall 1x", "precision 2x", "recall 2x"]
    lines = [
        "| data | judge | rows | planted | " + " | ".join(heads) + " | marked probable | of these right | minutes |",
        "|---|---|---:|---:|" + "---:|" * (len(heads) + 3),
    ]
    for row in found:
        cells = " | ".join(f"{row[name]:.3f}" for name in COLUMNS)
        judge = " ".join([row["judge"], *row.get("settings", [])])
        lines.append(
            f"| {row['data']} | {judge} | {row['rows']} | {row['planted']} | {cells} | {row['flagged']} | "
            f"{row['flagged_precision']:.3f} | {row['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
