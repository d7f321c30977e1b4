"""How fast labels are predicted: the tutorial's `generate`, batched `generate`, vLLM and this package, same classifier.

    .venv/bin/python benchmarks/predict_speed.py --fresh --json speed.json --markdown speed.md --svg charts/
    .venv/bin/python benchmarks/predict_speed.py --run titles=runs/titles titles=runs/titles-code --workloads titles

Every variant is a process of its own. They live side by side, and one of them at a time classifies the same portion of
the rows, in turn, so that whatever else the machine does hits all alike. All get the same prompts. The classifier is
that of a run (--run WORKLOAD=FOLDER), or has an adapter of random numbers (--fresh), because speed does not depend on
training: then `generate` writes exactly as many tokens as the right answer has, and accuracy is not shown.

vLLM is looked for in the interpreter given by --vllm-python, on a GPU only.
"""

from __future__ import annotations

import argparse
import fnmatch
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from predict_speed_job import BATCHED, FENLEI, ONE_BY_ONE, VLLM, PredictJob, Row, write_portions
from predict_speed_report import BASELINE, markdown, summarize
from train_speed import free_memory, made, model_folder, write_json
from train_speed_job import SHAPES, ModelSource
from train_speed_run import MATRIX, REFERENCE, Course, Setting, run_groups, spread

_HERE = Path(__file__).resolve().parent
_CHILD = _HERE / "predict_speed_child.py"
_FILES = {"fudan-384": "fudan-news", "titles": "thucnews-titles"}
_FRAMEWORK = {"cpu": 1.0e9, "cuda": 2.0e9}
_VLLM_NAME = "vLLM offline"
_TUTORIAL_NEW_TOKENS = 512


@dataclass(frozen=True)
class Task:
    """A workload for one classifier.

    Attributes:
        name: added to the names of its variants; empty for the first classifier.
        classifier: the classifier folder.
        model: its base model.
        portions: the rows of each step, the warm-up first.
        answers: every answer that stands for a label.
    """

    name: str
    classifier: Path
    model: ModelSource
    portions: list[list[Row]]
    answers: frozenset[str]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workloads", nargs="+", choices=list(_FILES), default=list(_FILES))
    add("--run", nargs="+", default=[], metavar="WORKLOAD=FOLDER", help="trained classifiers; several of one workload, "
        "e.g. with names and with codes, are compared")  # fmt: skip
    add("--fresh", action="store_true", help="an adapter of random numbers for workloads without --run")
    add("--answer", nargs="+", choices=["name", "code"], default=["name"], help="answer styles with --fresh")
    add("--model", default="qwen2.5-coder-0.5b", help="base model with --fresh: folder or spec")
    add("--model-shape", choices=list(SHAPES), help="random weights of this shape instead, with --model's tokenizer")
    add("--data", type=Path, default=_HERE.parents[1] / "shared" / "data", help="folder with the data sets")
    add("--preset", default="zh", help="prompt preset with --fresh")
    add("--candidates", choices=["row", "all"], default="all", help="with --fresh")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--rows", type=int, default=32, help="texts that each variant classifies in a round")
    add("--warmup-rows", type=int, default=4, help="texts of a round that is not counted")
    add("--repeats", type=int, default=5, help="rounds")
    add("--warmup", type=int, default=1, help="rounds before them")
    add("--variants", nargs="+", metavar="PATTERN", default=["*"])
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings", help="settings of all fenlei variants")
    add("--batch-sizes", type=int, nargs="+", help="of batched `generate`; the fastest is taken")
    add("--max-new-tokens", type=int, default=_TUTORIAL_NEW_TOKENS, help="of `generate`, with --run")
    add("--alone", action="store_true", help="each variant by itself, one after the other")
    add("--threads", type=int, help="threads of each process")
    add("--memory", type=float, metavar="GB", help="what processes may take together (default: most of what is free)")
    add("--vllm-python", default=sys.executable, metavar="PATH", help="interpreter that has vLLM")
    add("--seed", type=int, default=42)
    add("--patience", type=float, default=1800, metavar="SECONDS", help="longest wait for one step or start")
    add("--json", type=Path, help="file for all figures; written after every round")
    add("--markdown", type=Path, help="file for the tables, which are printed as well")
    add("--svg", type=Path, metavar="FOLDER", help="folder for the charts")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what was asked for, prints and writes it; returns what the JSON file holds."""
    args = build_parser().parse_args(argv)
    runs = _runs(args)
    result: dict[str, Any] = {"made": made(args), "workloads": {}}
    texts = []
    with tempfile.TemporaryDirectory(prefix="predict-speed-") as scratch:
        setting = Setting(
            folder=Path(scratch),
            python={"default": sys.executable, VLLM: args.vllm_python},
            memory=args.memory * 1e9 if args.memory else free_memory(args.device),
            patience=args.patience,
            threads=args.threads,
            alone=args.alone,
            scripts=dict.fromkeys((ONE_BY_ONE, BATCHED, FENLEI, VLLM, "matrix"), _CHILD),
        )
        for name in args.workloads:
            tasks = _tasks(args, name, runs.get(name, []), setting)
            result["workloads"][name] = _measure(args, name, tasks, setting, result, fresh=name not in runs)
            texts.append(markdown(name, result["workloads"][name]))
            print(f"\n{texts[-1]}", flush=True)
            if args.markdown:
                args.markdown.write_text("\n".join(texts), encoding="utf-8")
    write_json(args.json, result)
    if args.svg:
        _draw(args.svg, result)
    return result


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (method, settings) for the first classifier; of the package itself, with each setting changed."""
    found: dict[str, tuple[str, dict[str, Any]]] = {REFERENCE: (FENLEI, {}), BASELINE: (ONE_BY_ONE, {})}
    found["generate, batched"] = (BATCHED, {})
    found[_VLLM_NAME] = (VLLM, {})
    for field, value in inference_changes():
        word = {True: f"with {field}", False: f"without {field}"}.get(value, f"with {field}={value}")  # type: ignore[call-overload]
        shown = str(value).lower() if isinstance(value, bool) else value
        # a calibration is for one kind of answers, and refuses others
        bare = ["calibration.method=none", "calibration.threshold=null"] if field == "answers" else []
        found[f"{REFERENCE} {word}"] = (FENLEI, {"overrides": [f"inference.{field}={shown}", *bare]})
    return found


def inference_changes() -> list[tuple[str, Any]]:
    """Every other value of every switch of the group `inference`, read off the configuration itself."""
    from fenlei.config import RunConfig

    changes: list[tuple[str, Any]] = []
    for name, info in RunConfig.model_fields["inference"].annotation.model_fields.items():  # type: ignore[union-attr]
        if info.annotation is bool:
            changes.append((name, not info.default))
        elif get_origin(info.annotation) is Literal:
            changes += [(name, value) for value in get_args(info.annotation) if value != info.default]
    return changes


def _measure(
    args: argparse.Namespace, name: str, tasks: list[Task], setting: Setting, result: dict[str, Any], *, fresh: bool
) -> dict[str, Any]:
    first, length = tasks[0], None if fresh else args.max_new_tokens
    wanted = {n: v for n, v in variants().items() if any(fnmatch.fnmatch(n, p) for p in args.variants)}
    if not wanted:
        raise SystemExit(f"--variants {' '.join(args.variants)}: names none of {', '.join(variants())}")
    make = _Maker(args, setting.folder, length)
    absent, tried = [], []
    if _VLLM_NAME in wanted and (reason := _no_vllm(args)):
        method, settings = wanted.pop(_VLLM_NAME)
        absent.append(Course(make.job(_VLLM_NAME, method, settings, first), failed=reason))  # type: ignore[arg-type]
    if "generate, batched" in wanted:
        tried = _try_batches(args, make, first, setting)
        best = min((t for t in tried if t["seconds"]), key=lambda t: t["seconds"], default=None)
        if best is not None:
            wanted["generate, batched"] = (BATCHED, best["settings"])
    jobs = [make.job(n, method, settings, first) for n, (method, settings) in wanted.items()]
    for task in tasks[1:]:
        jobs += [make.job(f"{n}, {task.name}", *wanted[n], task) for n in (REFERENCE, BASELINE, "generate, batched")
                 if n in wanted]  # fmt: skip
    jobs.append(make.job(MATRIX, "matrix", {}, first))
    shared = {
        "about": f"{_about(first)}, prompts of {_FILES[name]}/test.jsonl",
        "fresh": fresh,
        "rows_per_step": args.rows,
        "repeats": args.repeats,
        "alone": args.alone,
        "body_parameters": first.model.body_parameters,
        "tried": tried,
        "length": "The adapter is not trained: `generate` and vLLM write exactly as many tokens as the right answer "
        "has (in a batch, as the longest)." if fresh else f"`generate` writes up to {length} tokens, greedily, and "
        "ends with the answer.",
    }  # fmt: skip
    counted = {str(task.classifier): task.portions[args.warmup :] for task in tasks}
    answers = {str(task.classifier): task.answers for task in tasks}

    def keep(courses: Sequence[Course]) -> None:
        result["workloads"][name] = {**shared, **summarize([*courses, *absent], counted, answers)}
        write_json(args.json, result)

    groups = [jobs[-1:], *([j] for j in jobs[:-1])] if args.alone else spread(jobs, setting.memory, _need)  # type: ignore[arg-type]
    courses = run_groups(groups, setting, warmup=args.warmup, repeats=args.repeats, after=keep)  # type: ignore[arg-type]
    return {**shared, **summarize([*courses, *absent], counted, answers)}


class _Maker:
    """Makes jobs; writes the rows of each classifier once."""

    def __init__(self, args: argparse.Namespace, folder: Path, length: int | None) -> None:
        self.args, self.folder, self.length = args, folder, length

    def job(self, name: str, method: str, settings: dict[str, Any], task: Task) -> PredictJob:
        file = self.folder / f"rows-{abs(hash((str(task.classifier), len(task.portions))))}.json"
        if not file.exists():
            write_portions(task.portions, file)
        if method == FENLEI:
            settings = {**settings, "overrides": [*self.args.settings, *settings.get("overrides", [])]}
        return PredictJob(
            name=name,
            method=method,
            model=task.model,
            classifier=str(task.classifier),
            portions_file=str(file),
            device=self.args.device,
            max_new_tokens=self.length,
            settings=settings,
        )


def _try_batches(args: argparse.Namespace, make: _Maker, task: Task, setting: Setting) -> list[dict[str, Any]]:
    """One round of batched `generate` with each batch size, and with the adapter merged; the fastest is compared."""
    sizes = args.batch_sizes or ([4, 8, 16] if args.device == "cpu" else [16, 64, 256])
    settings = {f"batch {n}": {"batch_size": n} for n in sizes}
    settings[f"batch {sizes[-1]}, adapter merged"] = {"batch_size": sizes[-1], "merged": True}
    few = replace(task, portions=task.portions[: args.warmup + 1])
    jobs = [make.job(n, BATCHED, s, few) for n, s in settings.items()]
    setting.say(f"trying batched generate: {'; '.join(settings)}")
    groups = [[job] for job in jobs] if args.alone else spread(jobs, setting.memory, _need)  # type: ignore[arg-type]
    courses = run_groups(groups, setting, warmup=args.warmup, repeats=1, after=lambda _: None)  # type: ignore[arg-type]
    found = []
    for name, chosen in settings.items():
        seconds = [s for c in courses if c.job.name == name for s in c.seconds]
        failed = next((c.failed for c in courses if c.job.name == name and c.failed), "")
        found.append({"setting": name, "settings": chosen, "failed": failed,
                      "seconds": statistics.median(seconds) if seconds else None})  # fmt: skip
    return found


def _need(job: PredictJob) -> tuple[float, float]:
    """A rough upper estimate of the bytes that a process takes between its steps and at their peak."""
    if job.method == "matrix":
        return _FRAMEWORK[job.device], _FRAMEWORK[job.device] + 1e9
    if job.method == VLLM:
        return 32e9, 32e9  # the share that it is told to take
    rest = _FRAMEWORK[job.device] + 1.2 * job.model.bytes
    return rest, rest + 1.5e9


def _runs(args: argparse.Namespace) -> dict[str, list[Path]]:
    from fenlei.artifact import find_classifier

    runs: dict[str, list[Path]] = {}
    for item in args.run:
        name, _, folder = item.partition("=")
        if name not in _FILES or not folder:
            raise SystemExit(f"--run {item}: expected WORKLOAD=FOLDER with one of {', '.join(_FILES)}")
        runs.setdefault(name, []).append(find_classifier(folder))
    missing = [name for name in args.workloads if name not in runs]
    if missing and not args.fresh:
        raise SystemExit(f"{', '.join(missing)}: no classifier; give --run {missing[0]}=FOLDER, or --fresh")
    return runs


def _tasks(args: argparse.Namespace, name: str, runs: list[Path], setting: Setting) -> list[Task]:
    """The classifiers of a workload with their rows; fresh ones are made in a process of their own."""
    file = args.data / _FILES[name] / "test.jsonl"
    if not file.is_file():
        raise SystemExit(f"{file}: no such file; workload {name} needs it (--data FOLDER)")
    if not runs:
        base = _base(args, setting)
        for answer in args.answer:
            out = setting.folder / f"{name}-{answer}"
            setting.say(f"{name}: making a classifier with an adapter of random numbers, answer {answer}")
            prompt = {"preset": args.preset, "max_length": 384, "answer": answer}
            paths = ", ".join(f"Path({str(path)!r})" for path in (out, base, file))
            more = {"prompt": prompt, "candidates": args.candidates, "seed": args.seed}
            _in_a_process(f"rows.fresh_classifier({paths}, **{more!r})")
            runs = [*runs, out]
    return [_task(args, file, folder, first=folder == runs[0]) for folder in runs]


def _task(args: argparse.Namespace, file: Path, folder: Path, *, first: bool) -> Task:
    from predict_speed_rows import load_encoder, portions_of, read_rows

    from fenlei.artifact import read_json
    from fenlei.config import ModelConfig

    if not (folder / "adapter").is_dir():
        raise SystemExit(f"{folder}: has no adapter; classifiers trained with lora.method=full are not compared here")
    encoder, _ = load_encoder(folder, ModelConfig())
    base = read_json(folder / "manifest.json")["base_model"]
    model = ModelSource.of_folder(
        Path(base["path"]) if base.get("path") and Path(base["path"]).is_dir() else model_folder(base["spec"])
    )
    rows = read_rows(file, encoder, seed=args.seed)
    portions = portions_of(
        rows, rows_per_step=args.rows, warmup_rows=args.warmup_rows, warmup=args.warmup, repeats=args.repeats
    )
    answers = frozenset(encoder.codes.get(label, label) for label in encoder.labels)
    return Task("" if first else f"answer={encoder.config.answer}", folder, model, portions, answers)


def _base(args: argparse.Namespace, setting: Setting) -> Path:
    folder = model_folder(args.model)
    if not args.model_shape:
        return folder.resolve()
    out = setting.folder / f"model-{args.model_shape}"
    if not out.exists():
        setting.say(f"making a model of the shape {args.model_shape}")
        _in_a_process(f"rows.random_model(Path({str(out)!r}), {args.model_shape!r}, Path({str(folder)!r}), "
                      f"{args.device!r})")  # fmt: skip
    return out


def _in_a_process(call: str) -> None:
    """Runs a function of predict_speed_rows.py elsewhere, so that its memory is given back."""
    code = (
        f"import sys; from pathlib import Path; sys.path[:0] = [{str(_HERE)!r}, {str(_HERE.parent / 'src')!r}]; "
        f"import predict_speed_rows as rows; {call}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"could not prepare the benchmark: {done.stderr.strip()[-2000:]}")


def _no_vllm(args: argparse.Namespace) -> str:
    """Why vLLM is left out; empty where it is not."""
    if args.device != "cuda":
        return "skipped: GPU only"
    try:
        done = subprocess.run([args.vllm_python, "-c", "import vllm"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"skipped: {error}"
    return "" if done.returncode == 0 else "not installed: name an interpreter that has it by --vllm-python"


def _about(task: Task) -> str:
    rows = [row for portion in task.portions for row in portion]
    lengths = sorted(len(row.prompt) for row in rows)
    labels = len({row.label for row in rows})
    return f"{len(rows)} texts, {labels} labels in them, {lengths[0]} to {lengths[-1]} tokens, median " + str(
        lengths[len(lengths) // 2]
    )


def _draw(folder: Path, result: dict[str, Any]) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no charts: matplotlib is not installed", file=sys.stderr)
        return
    from chart import bars

    folder.mkdir(parents=True, exist_ok=True)
    for name, workload in result["workloads"].items():
        values = {v["variant"]: v["texts_per_second"] for v in workload["variants"] if "texts_per_second" in v}
        bars(folder / f"predict-{name}.svg", values, title=f"Prediction speed, {name}", unit="texts per second",
             highlight=[REFERENCE])  # fmt: skip


if __name__ == "__main__":
    # `timeout` and job schedulers end a command so: the measured processes must go too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM; what was measured is in the --json file"))
    main()
