"""How fast training is: the tutorial's script, TRL and this package on the same rows of the same model.

    .venv/bin/python benchmarks/train_speed.py --json speed.json --markdown speed.md --svg charts/
    .venv/bin/python benchmarks/train_speed.py --curves 100 --workloads --json curves.json

Every variant is a process of its own. They live side by side, and one of them at a time runs one optimizer step of 16
rows, in turn, so that whatever else the machine does hits all alike; with --alone, one lives after the other. All get
the same rows in the same order, as the same token ids: this package's prompt, whole answers (the tutorial's own
function would cut most of them off).

TRL is looked for in the interpreter given by --trl-python. A model folder is not needed with --model-shape.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import train_speed_curves as curves
import train_speed_rows as rows
from train_speed_job import SHAPES, ModelSource
from train_speed_report import markdown, summarize
from train_speed_run import MATRIX, REFERENCE, Course, Setting, make_groups, run_groups
from train_speed_variants import TRL, TRL_MISSING, TRL_SETTINGS, Jobs, pin, settle, try_trl, variants

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_REPOSITORY / "src"))  # always this checkout, installed or not


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workloads", nargs="*", default=["fudan-384", "titles"], metavar="NAME",
        help="fudan-384, titles, or synthetic-N (random rows of N tokens)")  # fmt: skip
    add("--model", default="qwen2.5-coder-0.5b", help="model folder or spec")
    add("--model-shape", choices=list(SHAPES), help="random weights of this shape instead; synthetic workloads only")
    add("--data", type=Path, default=_REPOSITORY.parent / "shared" / "data", help="folder with the data sets")
    add("--preset", default="zh", help="prompt preset that the rows are rendered with")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16",
        help="number format of the weights; take float32 on a processor that has no bfloat16 products")  # fmt: skip
    add("--variants", nargs="+", metavar="PATTERN", default=["*"], help=f"of {', '.join(variants())}")
    add("--repeats", type=int, default=5, help="measured steps of each variant")
    add("--warmup", type=int, default=1, help="steps before them")
    add("--batch-size", type=int, default=16, help="rows an optimizer step")
    add("--alone", action="store_true",
        help="each variant by itself, one after the other: for a GPU that nobody else uses")  # fmt: skip
    add("--threads", type=int, help="threads of each process")
    add("--memory", type=float, metavar="GB", help="what processes may take together (default: most of what is free)")
    add("--trl-python", default=sys.executable, metavar="PATH", help="interpreter that has TRL")
    add("--trl-settings", nargs="+", choices=list(TRL_SETTINGS), help="settings to try (default: all that suit)")
    add("--curves", type=int, default=0, metavar="N", help="also compare the losses of N steps")
    add("--curves-workload", default="titles", metavar="NAME")
    add("--seed", type=int, default=42)
    add("--patience", type=float, default=1800, metavar="SECONDS", help="longest wait for one step or start")
    add("--json", type=Path, help="file for all figures; written after every round")
    add("--markdown", type=Path, help="file for the tables, which are printed as well; written after every round, too")
    add("--svg", type=Path, metavar="FOLDER", help="folder for the charts")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what was asked for, prints and writes it; returns what the JSON file holds."""
    args = build_parser().parse_args(argv)
    real = [n for n in [*args.workloads, *([args.curves_workload] if args.curves else [])] if not _length(n)]
    if args.model_shape and real:
        raise SystemExit(f"--model-shape has no tokenizer: {', '.join(real)} needs --model; take synthetic-N")
    model = (
        ModelSource.of_shape(args.model_shape) if args.model_shape else ModelSource.of_folder(model_folder(args.model))
    )
    result: dict[str, Any] = {"made": made(args), "workloads": {}}
    with tempfile.TemporaryDirectory(prefix="train-speed-") as scratch:
        setting = Setting(
            folder=Path(scratch),
            python={"default": sys.executable, "trl": args.trl_python},
            memory=args.memory * 1e9 if args.memory else free_memory(args.device),
            patience=args.patience,
            threads=args.threads,
            alone=args.alone,
        )
        for name in args.workloads:
            result["workloads"][name] = _measure(args, name, model, setting, result)
            _write(args, result)
            print("\n" + markdown(name, result["workloads"][name]), flush=True)
        if args.curves:
            workload = _workload(args, args.curves_workload, model, args.curves)
            make = Jobs(
                model, workload, setting.folder, args.curves, args.batch_size, args.device, args.dtype, args.seed
            )
            result["curves"] = curves.compare(make, setting)
            _write(args, result)
            print("\n" + curves.markdown(result["curves"]), flush=True)
    if args.svg:
        _draw(args.svg, result)
    return result


def _measure(
    args: argparse.Namespace, name: str, model: ModelSource, setting: Setting, result: dict[str, Any]
) -> dict[str, Any]:
    steps = args.warmup + args.repeats
    workload = _workload(args, name, model, steps)
    make = Jobs(model, workload, setting.folder, steps, args.batch_size, args.device, args.dtype, args.seed)
    lengths = [len(row.input_ids) for row in workload.rows]
    batches = [lengths[i : i + args.batch_size] for i in range(0, len(lengths), args.batch_size)]
    tokens = [sum(batch) for batch in batches[args.warmup :]]
    setting.say(f"{name}: {workload.about}")
    known = variants(args.device)
    if wrong := [p for p in args.variants if not fnmatch.filter(known, p)]:
        raise SystemExit(f"--variants {' '.join(map(repr, wrong))}: names none of {', '.join(known)}")
    wanted = {n: v for n, v in known.items() if any(fnmatch.fnmatch(n, p) for p in args.variants)}
    absent: list[Course] = []
    tried: list[dict[str, Any]] = []
    if TRL in wanted:
        tried = try_trl(make, setting, args.trl_settings)
        fastest = min((t for t in tried if t["seconds"]), key=lambda t: t["seconds"], default=None)
        if fastest is None:
            reason = f"no setting worked: {tried[0]['failed']}" if tried else TRL_MISSING
            absent = [Course(make.make(TRL, "trl", {}), failed=reason)]
            del wanted[TRL]
        else:
            wanted[TRL] = ("trl", {**TRL_SETTINGS[fastest["setting"]], "name": fastest["setting"]})
    pinned, ours = ({}, 0.0) if args.alone or REFERENCE not in wanted else settle(make, setting)
    jobs = [make.make(n, m, pin(s, pinned) if m == "fenlei" else s) for n, (m, s) in wanted.items()]
    jobs.append(make.make(MATRIX, "matrix", {}))
    apart = [jobs[-1:], *([job] for job in jobs[:-1])]  # the matrix products first, in case the time runs out
    groups = apart if args.alone else make_groups(jobs, make.longest, setting.memory, ours)
    shared = {
        "about": workload.about,
        "shared": workload.shared,
        "rows_per_step": args.batch_size,
        "repeats": args.repeats,
        "alone": args.alone,
        "dtype": args.dtype,
        "tokens_per_step": tokens,
        "body_parameters": model.body_parameters,
        "trl_tried": tried,
        "chosen_once": pinned,
    }

    def keep(courses: Sequence[Course]) -> None:
        result["workloads"][name] = {**shared, **summarize([*courses, *absent], tokens)}
        _write(args, result)

    courses = run_groups(groups, setting, warmup=args.warmup, repeats=args.repeats, after=keep)
    return {**shared, **summarize([*courses, *absent], tokens)}


def _workload(args: argparse.Namespace, name: str, model: ModelSource, steps: int) -> rows.Workload:
    count = steps * args.batch_size
    if length := _length(name):
        return rows.synthetic(length, count, model.numbers["vocab_size"], seed=args.seed)
    files = {"fudan-384": ("fudan-news", rows.fudan), "titles": ("thucnews-titles", rows.titles)}
    if name not in files:
        raise SystemExit(f"--workloads {name}: expected {', '.join(files)} or synthetic-N, e.g. synthetic-384")
    folder, build = files[name]
    assert model.folder is not None
    return build(args.data / folder / "train.jsonl", Path(model.folder), count, preset=args.preset, seed=args.seed)


def _length(name: str) -> int:
    """Tokens of a synthetic workload's rows; 0 for another workload."""
    kind, _, number = name.partition("-")
    return int(number) if kind == "synthetic" and number.isdigit() and int(number) >= 16 else 0


def model_folder(spec: str) -> Path:
    """The folder of a model."""
    if (Path(spec) / "config.json").is_file():
        return Path(spec)
    from fenlei.modeling.sources import resolve

    return resolve(spec).path


def free_memory(device: str) -> float:
    """Bytes that may be taken: most of what is free now."""
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        done = subprocess.run([*query, "-i", first], capture_output=True, text=True, check=False)
        return 0.9 * float(done.stdout.split()[0]) * 2**20 if done.returncode == 0 else 60e9
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").split("\n"):
            if line.startswith("MemAvailable:"):
                return 0.85 * int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8e9


def made(args: argparse.Namespace) -> dict[str, Any]:
    """How and on what the figures were made."""
    from fenlei.modeling.machine import processor_name

    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }


def _write(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Writes what has been measured so far, where files were named."""
    write_json(args.json, result)
    if args.markdown:
        texts = [markdown(name, workload) for name, workload in result["workloads"].items()]
        texts += [curves.markdown(result["curves"])] if "curves" in result else []
        args.markdown.write_text("\n".join(texts), encoding="utf-8")


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Writes the figures, where a file was named."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _draw(folder: Path, result: dict[str, Any]) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no charts: matplotlib is not installed", file=sys.stderr)
        return
    from chart import bars

    folder.mkdir(parents=True, exist_ok=True)
    for name, workload in result["workloads"].items():
        values = {v["variant"]: v["rows_per_second"] for v in workload["variants"] if "rows_per_second" in v}
        bars(folder / f"train-speed-{name}.svg", values, title=f"Training speed, {name}", unit="rows per second",
             highlight=[REFERENCE])  # fmt: skip
    if "curves" in result:
        curves.draw(result["curves"], folder / "train-loss.svg")


if __name__ == "__main__":
    # `timeout` and job schedulers end a command so: the measured processes must go too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM; what was measured is in the --json file"))
    main()
