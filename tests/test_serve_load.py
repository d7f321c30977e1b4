"""The load benchmark: a client that waits for nobody, honest figures, and the whole of it on a tiny model."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this copy", allow_module_level=True)
pytest.importorskip("fastapi")
pytest.importorskip("aiohttp")
from aiohttp import web  # noqa: E402

sys.path.insert(0, str(BENCHMARKS))

import serve_load  # noqa: E402
from serve_load_client import Answer, Client  # noqa: E402
from serve_load_report import flatness, markdown, quantiles, rates, summarize  # noqa: E402
from serve_load_server import Server  # noqa: E402

TEXTS = ["a", "b", "c"]


async def ok(request):
    body = await request.json()
    texts = body.get("texts") or [body["text"]]
    return web.json_response({"results": [{"label": "x", "probabilities": {"x": 1.0}} for _ in texts]})


async def full(_request):
    return web.json_response({"error": {"code": "queue_full"}}, status=429, headers={"Retry-After": "3"})


def always(**answer):
    async def handler(_request):
        return web.Response(**answer)

    return handler


def ask(work, handler, **how):
    """What comes of some work of a client whose requests a small server answers like this."""

    async def main():
        app = web.Application()
        app.router.add_post("/v1/classify", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            async with Client(f"http://127.0.0.1:{runner.addresses[0][1]}", TEXTS, **how) as client:
                return await asyncio.wait_for(work(client), 120)
        finally:
            await runner.cleanup()

    return asyncio.run(main())


class TestClient:
    def test_requests_are_sent_whether_or_not_earlier_ones_are_answered(self):
        waiting, enough = [], asyncio.Event()

        async def nobody_is_answered_before_the_twentieth(request):
            waiting.append(request)
            if len(waiting) == 20:
                enough.set()
            await enough.wait()
            return await ok(request)

        answers, _ = ask(lambda c: c.open(rate=400.0, seconds=1.0), nobody_is_answered_before_the_twentieth)
        assert len(answers) > 300
        assert all(a.good for a in answers)
        assert [a.due for a in answers] == sorted(a.due for a in answers)
        assert all(a.sent >= a.due for a in answers), "never early, and a late one counts from when it was due"

    def test_a_client_that_waits_would_never_end(self):
        """Negative control: with one request at a time, the twentieth is never sent."""

        async def never(request):
            await asyncio.Event().wait()

        async def one_at_a_time(client):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.closed(20, 1), 0.2)

        ask(one_at_a_time, never)

    def test_arrivals_are_poisson(self):
        answers, _ = ask(lambda c: c.open(rate=500.0, seconds=2.0), ok)
        gaps = [b.due - a.due for a, b in itertools.pairwise(answers)]
        mean = sum(gaps) / len(gaps)
        spread = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
        assert mean == pytest.approx(1 / 500, rel=0.2)
        assert spread == pytest.approx(mean, rel=0.2), "of a constant rate it would be 0"

    def test_a_closed_loop_tries_refused_requests_again(self):
        refusals = [2]

        async def sometimes(request):
            refusals[0] -= 1
            return await (full if refusals[0] >= 0 else ok)(request)

        answers, seconds = ask(lambda c: c.closed(10, 4), sometimes)
        assert sum(a.good for a in answers) == 10
        assert [a.retry_after for a in answers if a.status == 429] == [3.0, 3.0]
        assert seconds > 0

    @pytest.mark.parametrize(
        ("answer", "status", "code"),
        [
            (full, 429, "queue_full"),
            (always(text='{"results": []}'), 200, "incomplete"),
            (always(text="<html>"), 200, "not as agreed"),
            (always(text="oh", status=500), 500, "not as agreed"),
        ],
    )
    def test_what_is_no_good_answer(self, answer, status, code):
        found = ask(lambda c: c.ask(), answer)
        assert (found.status, found.code, found.good) == (status, code, False)

    @pytest.mark.parametrize("refusals", [0, 3])
    def test_it_has_recovered_when_a_request_is_answered_again(self, refusals):
        asked = []

        async def full_for_a_while(request):
            asked.append(request)
            return await (full if len(asked) <= refusals else ok)(request)

        _, seconds = ask(lambda c: c.open(rate=1e-6, seconds=0.0, calm=100.0), full_for_a_while)
        assert len(asked) == refusals + 1
        assert seconds > 0

    @pytest.mark.parametrize(("answer", "calm"), [(full, 100.0), (ok, 1e-12)], ids=["refused", "slow"])
    def test_it_has_not_recovered_when_patience_runs_out(self, answer, calm):
        _, seconds = ask(lambda c: c.open(rate=1e-6, seconds=0.0, calm=calm), answer, patience=0.3)
        assert seconds is None

    def test_no_answer_at_all(self):
        async def cut_off(request):
            request.transport.close()

        found = ask(lambda c: c.ask(), cut_off)
        assert (found.status, found.code) == (0, "ServerDisconnectedError")

    def test_no_server(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"

            async def main():
                async with Client(url, TEXTS) as client:
                    return await client.ask()

            found = asyncio.run(main())
        assert (found.status, found.code) == (0, "ClientConnectorError")

    def test_texts_are_taken_in_turn(self):
        bodies = []

        async def noted(request):
            bodies.append(await request.json())
            return await ok(request)

        ask(lambda c: c.closed(2, 1), noted, texts_a_request=2)
        ask(lambda c: c.closed(2, 1), noted)
        assert bodies == [{"texts": ["a", "b"]}, {"texts": ["c", "a"]}, {"text": "a"}, {"text": "b"}]


def answer(due, seconds, status=200, late=0.0, **more):
    good = status == 200
    return Answer(due, due + late, due + seconds, status, "" if good else "queue_full", 1, good=good, **more)


class TestFigures:
    def test_a_level(self):
        answers = [answer(i / 10, 1.0 + i / 100, late=0.002) for i in range(100)]
        answers += [answer(5.0, 0.01, 429, retry_after=4.0), answer(6.0, 0.1, 503), answer(7.0, 30.0, 0)]
        answers += [answer(8.0, 0.1, 503), answer(9.0, 0.1, 500)]
        level = summarize(answers, 10.0)
        assert level["sent"] == 105
        assert level["accepted"] == 100
        assert level["statuses"] == {
            "0 queue_full": 1,
            "200": 100,
            "429 queue_full": 1,
            "500 queue_full": 1,
            "503 queue_full": 2,
        }
        assert sum(level["statuses"].values()) == level["sent"]
        assert level["latency"] == pytest.approx({"p50": 1.49, "p95": 1.94, "p99": 1.98, "max": 1.99})
        assert level["texts_per_second"] == pytest.approx(1 / 0.11), "an answer each 0.11 s, from the first third on"
        assert (level["unavailable"], level["server_errors"], level["without_answer"]) == (2, 1, 1)
        assert level["retry_after"]["max"] == 4.0
        assert level["client_late"]["max"] == pytest.approx(0.002)

    def test_what_is_open_at_the_end_is_not_missing(self):
        # a pass of 40 texts every four seconds, each answered at the end of the pass after the one in which it came
        answers = [answer(i / 10, 8.0 - i / 10 % 4) for i in range(1200)]
        level = summarize(answers, 120.0)
        assert level["texts_per_second"] == pytest.approx(10.0)
        assert summarize(answers[:620], 62.0)["texts_per_second"] == pytest.approx(10.0)
        assert sum(a.ended < 60.0 for a in answers) / 60 < 9.0, "from the first arrival on"
        assert sum(62 / 3 < a.ended <= 62.0 for a in answers) / (62 * 2 / 3) < 9.7, "in any window"

    def test_a_server_that_stops_is_not_fast(self):
        answers = [answer(i / 10, 0.5 if i < 500 else 60.0) for i in range(900)]
        assert summarize(answers, 90.0)["texts_per_second"] == pytest.approx(10.0 * (50.5 - 30) / 60, rel=0.02)
        assert summarize(answers[500:], 40.0)["texts_per_second"] == 0.0

    def test_nothing_accepted(self):
        level = summarize([answer(0.0, 0.1, 429)], 1.0)
        assert level["latency"] is None
        assert quantiles([]) is None

    def test_rates(self):
        figures = [(10.0, 20.0, 5.0, 18.0), (30.0, 30.0, 6.0, 30.0), (20.0, 25.0, 4.0, 20.0)]
        found = rates([{"serve": s, "predict": p, "one": one, "open": o} for s, p, one, o in figures])
        assert (found["serve"], found["predict"]) == (20.0, 25.0)
        assert found["serve_of_predict"] == pytest.approx(0.8)
        assert found["open_of_predict"] == pytest.approx(0.9)
        assert found["serve_of_one"] == pytest.approx(5.0)

    @pytest.mark.parametrize(
        ("growth", "noise", "verdict"),
        [(0.0, 1e5, "flat"), (0.0, 0.0, "flat"), (-1e3, 1e5, "flat"), (1e5, 1e6, "grows"), (5e3, 5e7, "not known")],
    )
    def test_flat_memory(self, growth, noise, verdict):
        draw = random.Random(1)
        samples = [(float(t), 1e9 + growth * t + draw.uniform(-noise, noise)) for t in range(1200)]
        found = flatness(samples)
        assert found["verdict"].startswith(verdict)
        slope = found["bytes_per_hour"]
        assert slope["low"] <= slope["slope"] <= slope["high"]
        if noise:
            assert slope["low"] <= 3600 * growth <= slope["high"]

    def test_the_beginning_is_no_growth(self):
        samples = [(float(t), 1e9 + min(t, 100) * 1e6) for t in range(1000)]
        assert flatness(samples)["verdict"] == "flat"

    @pytest.mark.parametrize(
        ("when", "growth", "verdict"),
        [
            # for all but the last four minutes of half an hour it is flat: the slope is that of most blocks
            (lambda t: max(0, t - 1550) / 250, 300e6, "not flat: larger at the end"),
            (lambda t: t >= 1700, 300e6, "not flat: larger at the end"),
            (lambda t: 1000 <= t < 1020, 300e6, "not flat: much larger for a time"),
            (lambda t: 1000 <= t < 1020, 30e6, "flat"),
            (lambda t: -(t >= 1700), 300e6, "flat"),
        ],
    )
    def test_late_growth(self, when, growth, verdict):
        draw = random.Random(1)
        found = flatness([(float(t), 1e9 + growth * when(t) + draw.uniform(-1e6, 1e6)) for t in range(1800)])
        assert found["verdict"] == verdict
        assert found["bytes_per_hour"]["high"] < 1e7, "the slope alone says that it is flat"
        assert found["first"] == pytest.approx(1e9, rel=1e-3)
        assert found["largest"] >= found["last"]

    def test_too_short(self):
        assert flatness([(0.0, 1e9), (1.0, 1e9)])["verdict"] == "too short to say"
        assert flatness([])["verdict"] == "too short to say"


class TestReport:
    def level(self, multiple, recovery=None, answers=(), **more):
        figures = summarize([answer(i / 20, 0.1) for i in range(200)] + list(answers), 10.0)
        return {"multiple": multiple, **figures, "recovery": recovery, "memory_largest": 1e9, **more}

    def text(self, *levels, **more):
        shared = {"about": "x", "in_flight": 8, "texts_a_request": 1}
        return markdown({**shared, "levels": list(levels), **more})

    def test_a_level_is_compared_with_predict(self):
        round_ = {"predict": 21.0, "serve": 19.0, "one": 5.0, "open": 20.0}
        found = self.text(self.level(1.0), rates=rates([round_]), rounds=[round_])
        assert "| `fenlei serve`, open loop at 1 x | 20 | 0.95 |" in found
        assert "ratios within a round (in flight 0.90; open loop 0.95)" in found
        assert "| 1 x | 20 | 200 | 200 | 20 | 0.95 | 0.100 |" in found
        assert "| 1 x | 20 | 200 | 200 | 20 |  | 0.100 |" in self.text(self.level(1.0)), "not measured, not shown"

    def test_a_503_is_no_server_error(self):
        found = self.text(self.level(1.0, answers=[answer(0.5, 0.1, 503)]))
        assert "Server errors other than 503: 0; without an answer: 0." in found
        found = self.text(self.level(1.0, answers=[answer(0.5, 0.1, 502), answer(0.5, 0.1, 0)]))
        assert "Server errors other than 503: 1; without an answer: 1." in found

    def test_recovery_is_claimed_only_where_there_was_one(self):
        never, soon = ({"seconds": seconds, "patience": 600.0} for seconds in (None, 2.5))
        found = self.text(self.level(1.0), self.level(2.0, soon), self.level(10.0, never))
        assert "- 2 x: 2.5 s after the last arrival a request was answered as fast as" in found
        assert "- 10 x: did not recover; in 600 s after the last arrival no request was answered as fast as" in found
        assert "- 1 x:" not in found

    def test_what_calm_is(self):
        levels = [{"multiple": m, "latency": {"p50": p50}} for m, p50 in ((2.0, 9.0), (1.0, 0.5), (0.5, 0.2))]
        assert serve_load._calm(levels) == 0.2
        assert serve_load._calm([{"multiple": 0.5, "latency": None}, *levels[:2]]) == 0.5
        assert serve_load._calm(levels[:1]) is None, "at twice the capacity nothing is calm"
        assert serve_load._calm([]) is None

    def test_a_soak_says_where_memory_began_and_ended(self):
        samples = [(float(t), 1e9 + 3e8 * max(0, t - 1550) / 250) for t in range(1800)]
        soak = {**summarize([answer(0.0, 0.1), answer(1.0, 0.1, 503)], 1800.0), "minutes": 30.0}
        found = self.text(soak={**soak, "memory": flatness(samples)})
        assert "1 x 503, 0 other server errors, 0 without an answer, 0 texts/s. Memory: not flat: larger" in found
        round_ = {"predict": 20.0, "serve": 19.0, "one": 5.0, "open": 19.0}
        measured = {"rates": rates([round_]), "rounds": [round_]}
        steady = {**soak, **summarize([answer(i / 10, 0.1) for i in range(1000)], 100.0), "memory": flatness(samples)}
        assert "10 texts/s, 0.50 of `fenlei predict`. Memory: " in self.text(soak=steady, **measured)
        assert "; first 1.000 GB, last 1.213 GB, largest 1.299 GB, slope" in found


def test_a_classifier_is_needed(tmp_path):
    (tmp_path / "thucnews-titles").mkdir()
    (tmp_path / "thucnews-titles" / "test.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match="no classifier"):
        serve_load.main(["--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="no such file"):
        serve_load.main(["--data", str(tmp_path), "--workload", "fudan-384"])


@pytest.fixture
def options(tmp_path, tiny_folder, rows):
    (tmp_path / "thucnews-titles").mkdir()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "thucnews-titles" / "test.jsonl").write_text(lines, encoding="utf-8")
    return ["--fresh", "--model", str(tiny_folder), "--data", str(tmp_path), "--threads", "1"]


def test_the_whole_benchmark(tmp_path, options):
    # the tiny model's rate is three times and more of what the server reaches, one text a request
    options += "--rounds 2 --round-rows 16 --round-seconds 1 --in-flight 8 --levels 0.5 1 --seconds 3".split()
    options += ["--sigterm"]
    options += ["--soak", "0.05", "--json", str(tmp_path / "a.json"), "--svg", str(tmp_path / "charts")]
    result = serve_load.main([*options, "--markdown", str(tmp_path / "a.md")])
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert all(result["rates"][name] > 0 for name in ("serve", "predict", "one", "open"))
    for level in result["levels"]:
        assert sum(level["statuses"].values()) == level["sent"] > 0
        assert level["accepted"] > 0
        assert level["without_answer"] == 0
        assert level["memory_largest"] > 1e7
    assert result["soak"]["accepted"] > 0
    end = result["sigterm"]
    assert end["in_flight"] > 0
    assert (end["answered"], end["lost"]) == (end["in_flight"], 0)
    assert end["exit_code"] == 0
    # 0: it was done before it could be asked; that it answers 503 until then is tested where it can be held up
    assert {end["ready"], end["new"]} <= {503, 0}
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert text == markdown(result)
    assert f"{end['in_flight']} answered, 0 lost" in text
    charts = {path.name for path in (tmp_path / "charts").iterdir()}
    assert charts == {"serve-throughput.svg", "serve-latency.svg", "serve-memory.svg"}


def test_a_server_that_is_killed_loses_requests(options, monkeypatch):
    """Negative control: with SIGKILL in place of SIGTERM, the lost ones are counted."""
    monkeypatch.setattr(Server, "terminate", Server.kill)
    end = serve_load.main([*options, "--capacity", "10", "--levels", "--sigterm"])["sigterm"]
    assert end["lost"] > 0
    assert end["answered"] + end["lost"] == end["in_flight"]
    assert (end["ready"], end["new"], end["exit_code"]) == (0, 0, -9)
