"""What `fenlei serve` does under load: capacity, latency from idle to ten times too much, memory, and its end.

    .venv/bin/python benchmarks/serve_load.py --run runs/titles --json serve.json --markdown serve.md --svg charts/
    .venv/bin/python benchmarks/serve_load.py --fresh --levels --soak 60 --sigterm

First, in turn on the same rows: `fenlei predict` (its scoring, which is taken for the capacity), the server with many
requests in flight, and the server with one request at a time, where nothing can be batched. Then requests come at
multiples of the capacity, whether the server keeps up or not (open loop). Server and client share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from predict_speed import _FILES, _in_a_process
from predict_speed_job import FENLEI, PredictJob, Row, write_portions
from serve_load_client import Answer, Client
from serve_load_report import flatness, markdown, rates, summarize
from serve_load_server import Server, Watch
from train_speed import made, model_folder, write_json
from train_speed_job import ModelSource
from train_speed_run import Child

_HERE = Path(__file__).resolve().parent
_AT_THE_END = 50
# texts in each of their requests, at most
_MOST_AT_THE_END = 128
# work for the requests in flight at SIGTERM
_END_SECONDS = 6.0
_PROBED = 64
# one request at a time takes long: it gets every so many-th text of a round
_FEWER = 8


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workload", choices=list(_FILES), default="titles")
    add("--run", type=Path, metavar="FOLDER", help="a trained classifier")
    add("--fresh", action="store_true", help="an adapter of random numbers instead: speed does not depend on training")
    add("--model", default="qwen2.5-coder-0.5b", help="base model with --fresh: folder or spec")
    add("--data", type=Path, default=_HERE.parents[1] / "shared" / "data", help="folder with the data sets")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--levels", type=float, nargs="*", default=[0.5, 1.0, 2.0, 10.0], help="times predict's rate; none: skip")
    add("--seconds", type=float, default=60.0, help="how long requests come at each level")
    add("--rounds", type=int, default=5, help="rounds of the comparison; the first one is not counted")
    add("--round-rows", type=int, default=128, help="texts of a round; one request at a time gets an eighth of them")
    add("--round-seconds", type=float, default=30.0, help="how long requests come at prediction's rate in a round")
    add("--in-flight", type=int, default=64, help="open requests when the server is measured against prediction")
    add("--texts-a-request", type=int, default=1)
    add("--capacity", type=float, metavar="TEXTS/S", help="take this for prediction's rate, without measuring")
    add("--soak", type=float, metavar="MINUTES", help="hold 1 x prediction's rate and say whether memory stays flat")
    add("--sigterm", action="store_true", help=f"end a server with {_AT_THE_END} requests in flight; count the lost")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings", help="settings of both")
    add("--serve", default="", metavar="OPTIONS", help="more options of `fenlei serve`, in one string")
    add("--threads", type=int, help="threads of each process")
    add("--seed", type=int, default=42)
    add("--patience", type=float, default=600.0, metavar="SECONDS", help="longest wait for a start or an answer")
    add("--json", type=Path, help="file for all figures; written after every part")
    add("--markdown", type=Path, help="file for the report, which is printed as well")
    add("--svg", type=Path, metavar="FOLDER", help="folder for the charts")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what was asked for, prints and writes it; returns what the JSON file holds."""
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="serve-load-") as scratch:
        return _Bench(args, Path(scratch)).run()


class _Bench:
    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.texts = _texts(args)
        self.run_folder = self._classifier()
        self.options = ["--set", f"model.device={args.device}"]
        for setting in args.settings:
            self.options += ["--set", setting]
        self.options += ["--offline", *shlex.split(args.serve)]
        self.result: dict[str, Any] = {
            "made": made(args),
            "about": f"{args.workload}: {self.run_folder.name if args.run else 'an untrained adapter'} on "
            f"{_base_model(self.run_folder)}, {args.device}",
            "in_flight": args.in_flight,
            "texts_a_request": args.texts_a_request,
            "options": self.options,
        }

    def run(self) -> dict[str, Any]:
        args = self.args
        if args.capacity is not None:
            self.result["capacity"] = args.capacity
        if args.capacity is None or args.levels or args.soak:
            with self._server("server") as server:
                self._load(server)
        if args.sigterm:
            self.result["sigterm"] = asyncio.run(self._end())
        text = markdown(self.result)
        print(f"\n{text}", flush=True)
        if args.markdown:
            args.markdown.write_text(text, encoding="utf-8")
        self._keep()
        if args.svg:
            draw(args.svg, self.result)
        return self.result

    def _load(self, server: Server) -> None:
        args = self.args
        self.result["memory_at_rest"] = server.memory
        if args.capacity is None:
            self._compare(server)
            self._keep()
        for multiple in args.levels:
            self._level(server, multiple)
            self._keep()
        if args.soak:
            self._soak(server, args.soak)
            self._keep()

    def _server(self, name: str, *more: str) -> Server:
        _say(f"starting {name}")
        log = self.folder / f"{name}.log"
        return Server([f"bench={self.run_folder}", *self.options, *more], log, patience=self.args.patience,
                      threads=self.args.threads)  # fmt: skip

    def _client(self, server: Server, **how: Any) -> Client:
        how = {"texts_a_request": self.args.texts_a_request, **how}
        return Client(server.url, self.texts, seed=self.args.seed, patience=self.args.patience, **how)

    def _compare(self, server: Server) -> None:
        """Texts a second of prediction and of the server, in turns: many requests, one, and arrivals at that rate."""
        args, count = self.args, self.args.round_rows
        portions = [[self.texts[(r * count + i) % len(self.texts)] for i in range(count)] for r in range(args.rounds)]
        child = self._predictor(portions)
        rounds = self.result["rounds"] = []
        try:
            child.hear()
            for number, portion in enumerate(portions):
                order = ["serve", "predict", "one", "open"]
                found: dict[str, float] = {}
                for name in order[number % 4 :] + order[: number % 4]:  # none is always after the same one
                    if name == "predict":
                        child.say("step")
                        found[name] = rate = count / child.hear()["seconds"]
                    elif name == "open":
                        found[name] = asyncio.run(self._offered(server, rate))
                    else:
                        few = portion if name == "serve" else portion[::_FEWER]
                        found[name] = asyncio.run(self._closed(server, few, args.in_flight if name == "serve" else 1))
                _say(f"  round {number}: " + ", ".join(f"{name} {rate:.3g} texts/s" for name, rate in found.items()))
                if number:
                    rounds.append(found)
        finally:
            child.close()
        self.result["rates"] = rates(rounds)
        # what the machine can do with this model: against the server's own rate, a slow server would be asked little
        self.result["capacity"] = self.result["rates"]["predict"]

    async def _closed(self, server: Server, texts: Sequence[str], in_flight: int) -> float:
        size = self.args.texts_a_request if in_flight > 1 else 1
        client = Client(server.url, texts, texts_a_request=size, patience=self.args.patience)
        async with client:
            answers, seconds = await client.closed(-(-len(texts) // size), in_flight)
        bad = [a for a in answers if not a.good and a.status != 429]
        if bad:
            raise SystemExit(f"{len(bad)} requests were not answered: {bad[0]}")
        return sum(a.texts for a in answers if a.good) / seconds

    async def _offered(self, server: Server, rate: float) -> float:
        seconds = self.args.round_seconds
        answers, _ = await self._open(server, rate / self.args.texts_a_request, seconds)
        return float(summarize(answers, seconds)["texts_per_second"])

    def _predictor(self, portions: Sequence[Sequence[str]]) -> Child:
        file = self.folder / "rows.json"
        write_portions([[Row(text, "", "", [], 0) for text in portion] for portion in portions], file)
        job = PredictJob(
            name="predict",
            method=FENLEI,
            model=ModelSource(None, None, {}),
            classifier=str(self.run_folder),
            portions_file=str(file),
            device=self.args.device,
            settings={"overrides": [*self.args.settings, "model.offline=true"]},
        )
        env = {"OMP_NUM_THREADS": str(self.args.threads)} if self.args.threads else {}
        script = _HERE / "predict_speed_child.py"
        return Child(job, sys.executable, script, self.folder / "predict", env, self.args.patience)  # type: ignore[arg-type]

    def _level(self, server: Server, multiple: float) -> None:
        rate = multiple * self.result["capacity"] / self.args.texts_a_request
        _say(f"{multiple:g} x prediction's rate: {rate:.3g} requests/s for {self.args.seconds:g} s")
        levels = self.result.setdefault("levels", [])
        calm = _calm(levels) if multiple > 1 else None
        cpu = time.process_time()
        with Watch(server) as watch:
            answers, recovered = asyncio.run(self._open(server, rate, self.args.seconds, calm))
        recovery = None if calm is None else {"seconds": recovered, "patience": self.args.patience}
        level = {"multiple": multiple, **summarize(answers, self.args.seconds), "recovery": recovery}
        level |= _taken(watch, time.process_time() - cpu)
        levels.append(level)
        _say(f"  {level['accepted']} of {level['sent']} accepted, {level['latency']}, {level['statuses']}")

    async def _open(
        self, server: Server, rate: float, seconds: float, calm: float | None = None
    ) -> tuple[list[Answer], float | None]:
        async with self._client(server) as client:
            return await client.open(rate, seconds, calm)

    def _soak(self, server: Server, minutes: float) -> None:
        rate = self.result["capacity"] / self.args.texts_a_request
        _say(f"soak: {minutes:g} minutes at {rate:.3g} requests/s")
        cpu = time.process_time()
        with Watch(server, every=1.0) as watch:
            answers, _ = asyncio.run(self._open(server, rate, 60 * minutes))
        soak = {"minutes": minutes, **summarize(answers, 60 * minutes), **_taken(watch, time.process_time() - cpu)}
        samples = [(round(t, 1), size) for t, size in watch.samples]
        self.result["soak"] = {**soak, "memory": flatness(samples), "samples": samples}

    async def _end(self) -> dict[str, Any]:
        """SIGTERM in the middle of the work: what becomes of those who wait."""
        # a queue that holds all of them: a request that was refused when it came was never in flight
        room = ["--max-queue-texts", str(_MOST_AT_THE_END * _AT_THE_END), "--max-queue-tokens", str(1 << 30)]
        with self._server("last-server", "--max-queue-seconds", "0", "--drain-seconds", "300", *room) as server:
            async with self._client(server, texts_a_request=1) as client:
                probe = await client.ask([self.texts[i % len(self.texts)] for i in range(_PROBED)])
                wanted = math.ceil(_END_SECONDS * _PROBED / probe.seconds / _AT_THE_END)
                client.size = max(1, min(_MOST_AT_THE_END, wanted))
                answers: list[Answer] = []
                full = asyncio.Event()

                async def one_after_the_other() -> None:
                    while not full.is_set():
                        answers.append(await client.ask())

                tasks = [asyncio.create_task(one_after_the_other()) for _ in range(_AT_THE_END)]
                while await client.metric("fenlei_in_flight_requests") < _AT_THE_END:
                    await asyncio.sleep(0.01)
                full.set()
                # what was sent at the last moment has to have arrived: only what the server has taken can be lost
                while await client.metric("fenlei_in_flight_requests") < sum(not task.done() for task in tasks):
                    await asyncio.sleep(0.01)
                before, begin = len(answers), time.perf_counter()
                server.terminate()
                while (ready := await client.get("/health/ready")) == 200:
                    await asyncio.sleep(0.01)
                new = await client.ask()
                await asyncio.gather(*tasks)
                code = await asyncio.to_thread(server.process.wait, self.args.patience)
        return {
            "in_flight": len(answers) - before,
            "texts_a_request": client.size,
            "answered": sum(a.good for a in answers[before:]),
            "lost": sum(not a.good for a in answers[before:]),
            "statuses": summarize(answers, 1.0)["statuses"],
            "ready": ready,
            "new": new.status,
            "exit_code": code,
            "seconds": time.perf_counter() - begin,
        }

    def _classifier(self) -> Path:
        from fenlei.artifact import find_classifier

        args = self.args
        if args.run is not None:
            find_classifier(args.run)
            return args.run.resolve()
        if not args.fresh:
            raise SystemExit("no classifier; give --run FOLDER, or --fresh")
        out = self.folder / "fresh"
        paths = ", ".join(f"Path({str(p)!r})" for p in (out, model_folder(args.model).resolve(), _file(args)))
        more = {"prompt": {"preset": "zh", "max_length": 384}, "candidates": "all", "seed": args.seed}
        _in_a_process(f"rows.fresh_classifier({paths}, **{more!r})")
        return out

    def _keep(self) -> None:
        write_json(self.args.json, self.result)


def _calm(levels: Sequence[dict[str, Any]]) -> float | None:
    """The median latency at the lowest load so far at which the server can keep up; None: there was none."""
    low = [level for level in levels if level["multiple"] <= 1 and level["latency"]]
    return min(low, key=lambda level: level["multiple"])["latency"]["p50"] if low else None


def _taken(watch: Watch, client_cpu: float) -> dict[str, float]:
    """What a load cost: memory in bytes, and processor seconds a second."""
    return {
        "memory_largest": max(size for _, size in watch.samples),
        "memory_end": watch.samples[-1][1],
        "server_cpu": watch.cpu / watch.seconds,
        "client_cpu": client_cpu / watch.seconds,
    }


def _file(args: argparse.Namespace) -> Path:
    file = args.data / _FILES[args.workload] / "test.jsonl"
    if not file.is_file():
        raise SystemExit(f"{file}: no such file; workload {args.workload} needs it (--data FOLDER)")
    return file


def _texts(args: argparse.Namespace) -> list[str]:
    lines = _file(args).read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["text"] for line in lines if line.strip()]
    random.Random(args.seed).shuffle(texts)
    return texts


def _base_model(folder: Path) -> str:
    from fenlei.artifact import find_classifier, read_json

    spec = str(read_json(find_classifier(folder) / "manifest.json")["base_model"]["spec"])
    return Path(spec).name if "/" in spec else spec


def draw(folder: Path, result: dict[str, Any]) -> None:
    """The charts."""
    from chart import bars, lines

    folder.mkdir(parents=True, exist_ok=True)
    if levels := result.get("levels"):
        speed = {f"serve at {level['multiple']:g} x": level["texts_per_second"] for level in levels}
        if "rates" in result:
            found = result["rates"]
            ours = {"predict": found["predict"], "serve, saturated": found["serve"]}
            speed = {**ours, "serve, one at a time": found["one"], **speed}
        bars(folder / "serve-throughput.svg", speed, title="Texts answered", unit="texts per second",
             highlight=["serve, saturated"])  # fmt: skip
        latency = {
            f"{level['multiple']:g} x, {name}": level["latency"][name]
            for level in levels if level["latency"] for name in ("p50", "p95", "p99")
        }  # fmt: skip
        bars(folder / "serve-latency.svg", latency, title="Latency of accepted requests", unit="seconds",
             highlight=[name for name in latency if name.endswith("p99")])  # fmt: skip
    if "soak" in result:
        sizes = [size / 1e6 for _, size in result["soak"]["samples"]]
        lines(folder / "serve-memory.svg", {"resident": sizes}, title="Memory of the server at the rate of prediction",
              x="seconds", y="MB")  # fmt: skip


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    # `timeout` and job schedulers end a command so: the server must go too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM; what was measured is in the --json file"))
    main()
