"""Requests of many clients in full forward passes: nobody waits for ever, nobody harms anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fenlei import TextClassifier
from fenlei.data import Example
from fenlei.errors import DataError, ModelError
from fenlei.modeling.calibration import Calibration
from fenlei.server import batcher as batcher_module
from fenlei.server.batcher import Batcher, BatchLimits, Draining, QueueFull, QueueTimeout
from fenlei.server.models import Models
from fenlei.server.rate import Rate
from fenlei.server.work import WaitingLine
from tests.server.fake_models import BUDGET, COST, FakeModels
from tests.server.made import MOOD, NEWS, ON_CPU, examples

PASS = BUDGET // COST


def rows(*texts):
    return [Example(text) for text in texts]


def run(work, *, models=None, observe=None, **limits):
    """Runs ``work(batcher, models)`` with a started batcher, and stops it."""

    async def main():
        found = models or FakeModels()
        batcher = Batcher(found, BatchLimits(**limits), observe=observe)
        await batcher.start()
        try:
            return await asyncio.wait_for(work(batcher, found), 300)
        finally:
            for served in getattr(found, "served", {}).values():
                served.classifier.predictor.gate.set()
            await batcher.stop(120)
            if models is None:
                found.scoring.shutdown()

    return asyncio.run(main())


@contextlib.asynccontextmanager
async def busy(batcher, models, name="x"):
    """Within, the model is in the middle of a pass with one text; at the end it goes on."""
    predictor = models.predictor(name)
    predictor.gate.clear()
    first = asyncio.ensure_future(batcher.classify(models.get(name), rows("first")))
    await asyncio.to_thread(predictor.wait_until_busy)
    try:
        yield first
    finally:
        predictor.gate.set()
    await first


def ask(batcher, models, *texts, name="x", **how):
    return asyncio.ensure_future(batcher.classify(models.get(name), rows(*texts), **how))


async def queued(batcher, texts):
    """Waits until so many texts are tokenized and wait."""
    for _ in range(2000):
        line = batcher._line
        if line.texts == texts and not any(lane.coming for lane in line._lanes.values()):
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{batcher._line.texts} texts wait, not {texts}")


class TestRealModel:
    def alone(self, folder, texts, *overrides, **how):
        found = TextClassifier.load(folder, overrides=[*ON_CPU, *overrides]).classify(texts, **how)
        return [np.array(list(p.probabilities.values())) for p in found]

    @pytest.mark.parametrize("budget", [None, 64])
    def test_answers_are_those_of_each_classifier_alone(self, models, news_folder, mood_folder, budget):
        texts = examples(40, seed=2)
        folders = {"news": news_folder, "mood": mood_folder}
        how = {"news": {"candidates": NEWS[1:]}, "mood": {"candidates": MOOD[::-1][:3]}}
        expected = {(n, p): self.alone(f, texts, **(how[n] if p else {})) for n, f in folders.items() for p in (0, 1)}

        async def work(batcher, models):
            asked = []
            for i in range(0, 40, 2):
                for name in folders:
                    size = 1 if i % 3 else 2
                    more = how[name] if i % 4 else {}
                    task = batcher.classify(models.get(name), texts[i : i + size], **more)
                    asked.append((name, int(i % 4 > 0), i, size, asyncio.ensure_future(task)))
                    if i % 7 == 0:
                        await asyncio.sleep(0.01)
            for name, few, i, size, task in asked:
                outcome = await task
                assert len(outcome.predictions) == size
                for k, prediction in enumerate(outcome.predictions):
                    assert list(prediction.probabilities) == list(
                        how[name]["candidates"] if few else folders_labels[name]
                    )
                    found = np.array(list(prediction.probabilities.values()))
                    assert np.abs(found - expected[name, few][i + k]).max() <= 1e-5

        folders_labels = {"news": NEWS, "mood": MOOD}
        run(work, models=models, batch_tokens=budget)

    def test_answers_of_the_other_classifier_would_be_seen(self, models, news_folder, mood_folder):
        """Negative control for the bound."""
        texts = examples(5, seed=2)
        one = self.alone(news_folder, texts)
        other = self.alone(mood_folder, texts)
        assert min(np.abs(a - b[: len(a)]).max() for a, b in zip(one, other, strict=True)) > 1e-4

    def test_strict_mode_is_equal_to_the_bit(self, news_folder, mood_folder):
        strict = "inference.strict=true"
        texts = examples(24, seed=7)
        expected = self.alone(news_folder, texts, strict)
        models = Models.open([(None, news_folder), (None, mood_folder)], overrides=[*ON_CPU, strict])

        async def work(batcher, models):
            tasks = [batcher.classify(models.get("news"), [text]) for text in texts]
            tasks += [batcher.classify(models.get("mood"), texts[:5])]
            found = await asyncio.gather(*tasks)
            for outcome, one in zip(found, expected, strict=False):
                assert (np.array(list(outcome.predictions[0].probabilities.values())) == one).all()

        run(work, models=models)
        models.close()

    def test_removed_while_its_request_is_in_flight(self, models, mood_folder):
        texts = examples(30, seed=1)
        expected = self.alone(mood_folder, texts)

        async def work(batcher, models):
            task = asyncio.ensure_future(batcher.classify(models.get("mood"), texts))
            while not batcher.load()["passes"]:
                await asyncio.sleep(0)
            models.remove("mood")
            found = (await task).predictions
            assert batcher.load()["passes"] > 1, "it was removed between two passes"
            for prediction, one in zip(found, expected, strict=True):
                assert np.abs(np.array(list(prediction.probabilities.values())) - one).max() <= 1e-5

        run(work, models=models, batch_tokens=64)

    def test_tokens_are_those_of_the_prompts(self, models):
        texts = examples(3)
        prompts = models.get("news").classifier.predictor.encode(texts)

        async def work(batcher, models):
            outcome = await batcher.classify(models.get("news"), texts)
            assert outcome.tokens == sum(len(prompt.input_ids) for prompt in prompts)
            assert outcome.queue_seconds >= 0
            assert outcome.score_seconds > 0

        run(work, models=models)

    def test_a_beginning_costs_until_it_is_computed(self, models):
        predictor = models.get("news").classifier.predictor
        row = Example("国足今晚迎战韩国队")
        assert predictor.beginning_cost(*predictor.encode([row])) == 0, "it is warm"
        (prompt,) = predictor.encode([row], candidates=NEWS[::-1])
        assert predictor.beginning_cost(prompt) == prompt.prefix_length > 16
        predictor.score([prompt])
        assert predictor.beginning_cost(prompt) == 0

    def test_batch_tokens_reach_the_model(self, models, news_folder):
        async def work(batcher, models):
            assert models.get("mood").classifier.predictor.batch_tokens == 99
            models.add("late", news_folder)
            assert models.get("late").classifier.predictor.batch_tokens == 99

        run(work, models=models, batch_tokens=99)

    def test_a_row_that_is_not_a_number_harms_nobody_else(self, models, monkeypatch):
        from fenlei.modeling.scoring import CandidateScorer

        original = CandidateScorer.score

        def broken(self, requests, **more):
            found = original(self, requests, **more)
            return [np.full_like(s, np.nan) if len(r.prompt) > 230 else s for r, s in zip(requests, found, strict=True)]

        monkeypatch.setattr(CandidateScorer, "score", broken)
        good = examples(6, longest=8)

        async def work(batcher, models):
            served = models.get("news")
            tasks = [batcher.classify(served, [row]) for row in (*good[:3], Example("国" * 300), *good[3:])]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(found[3], ModelError)
            assert "not finite" in str(found[3])
            assert all(not isinstance(f, Exception) for i, f in enumerate(found) if i != 3)

        run(work, models=models, max_wait_ms=300)


class TestPasses:
    def test_what_comes_while_the_model_is_busy_is_scored_together(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                tasks = [ask(batcher, models, f"t{i}") for i in range(PASS + 2)]
                await queued(batcher, PASS + 2)
            await asyncio.gather(*tasks)
            assert [len(call) for call in models.predictor().calls] == [1, PASS, 2]

        run(work)

    def test_an_idle_model_waits_for_company_if_it_is_told_to(self):
        async def work(batcher, models):
            await asyncio.gather(*(ask(batcher, models, f"t{i}") for i in range(PASS)))
            assert [len(call) for call in models.predictor().calls] == [PASS]

        run(work, max_wait_ms=1000.0)

    def test_company_is_not_waited_for_when_the_server_ends(self):
        async def work(batcher, models):
            task = ask(batcher, models, "alone")
            await queued(batcher, 1)
            assert await batcher.stop(120)
            assert len((await task).predictions) == 1

        run(work, max_wait_ms=1000.0)

    CLIENTS, ASKED = PASS + 4, 6

    async def in_flight_all_the_time(self, batcher, models):
        """Sizes of the passes when so many clients ask again as soon as they have an answer."""

        async def client(name):
            for i in range(self.ASKED):
                await ask(batcher, models, f"{name} {i}")

        async with busy(batcher, models):
            clients = [asyncio.ensure_future(client(n)) for n in range(self.CLIENTS)]
            await queued(batcher, self.CLIENTS)
        await asyncio.gather(*clients)
        return [len(call) for call in models.predictor().calls]

    def test_those_who_were_answered_may_come_back(self, monkeypatch):
        monkeypatch.setattr("fenlei.server.batcher._RETURN_GAP", 1.0)
        monkeypatch.setattr("fenlei.server.batcher._RETURN_PART", 1e9)
        sizes = run(self.in_flight_all_the_time)
        assert sum(sizes) == self.CLIENTS * self.ASKED + 1
        assert len(sizes) == 1 + -(-self.CLIENTS * self.ASKED // PASS)
        assert sizes[:-1] == [1, *[PASS] * (len(sizes) - 2)]

    def test_without_patience_full_passes_and_small_ones_take_turns(self, monkeypatch):
        """Negative control."""
        monkeypatch.setattr("fenlei.server.batcher._RETURN_PART", 0.0)
        assert PASS > min(run(self.in_flight_all_the_time)[1:-2])

    def test_nobody_waits_for_those_who_do_not_come_back(self, monkeypatch):
        """A burst is not held up for longer than a part of its pass; one request at a time never is."""
        monkeypatch.setattr("fenlei.server.batcher._RETURN_GAP", 1000.0)

        async def a_burst(batcher, models):
            async with busy(batcher, models):
                tasks = [ask(batcher, models, f"t{i}") for i in range(PASS + 2)]
                await queued(batcher, PASS + 2)
            await asyncio.gather(*tasks)

        async def one_at_a_time(batcher, models):
            for i in range(3):
                await ask(batcher, models, f"t{i}")

        run(a_burst)
        monkeypatch.setattr("fenlei.server.batcher._RETURN_PART", 1e9)
        run(one_at_a_time)

    def test_answers_keep_the_order_of_the_rows(self):
        async def work(batcher, models):
            outcome = await ask(batcher, models, *[f"{'sure' if i % 3 else 'no'} {i}" for i in range(30)])
            assert [p.abstained for p in outcome.predictions] == [i % 3 == 0 for i in range(30)]
            assert sorted(t for call in models.predictor().calls for t in call) == sorted(
                f"{'sure' if i % 3 else 'no'} {i}" for i in range(30)
            )

        run(work)

    def test_a_large_request_does_not_hold_up_a_small_one(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                large = ask(batcher, models, *[f"l{i}" for i in range(256)])
                await queued(batcher, 256)
                small = ask(batcher, models, "small")
                await queued(batcher, 257)
            await asyncio.gather(large, small)
            assert len(models.log) > 30
            assert "small" in models.log[1]

        run(work, max_queue_s=None)

    def test_a_busy_classifier_does_not_hold_up_another(self):
        async def work(batcher, models):
            async with busy(batcher, models, "x"):
                many = [ask(batcher, models, f"x{i}") for i in range(10 * PASS)]
                await queued(batcher, 10 * PASS)
                other = ask(batcher, models, "hello", name="y")
                await queued(batcher, 10 * PASS + 1)
            await asyncio.gather(*many, other)
            assert len(models.log) == 12
            assert ["hello"] in models.log[1:3]

        run(work, models=FakeModels("x", "y"), max_queue_s=None)

    def test_other_candidates_are_scored_apart(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                tasks = [ask(batcher, models, f"{i % 2}", candidates=["A", "b"] if i % 2 else None) for i in range(6)]
                await queued(batcher, 6)
            found = await asyncio.gather(*tasks)
            assert models.predictor().calls[1:] == [["0"] * 3, ["1"] * 3]
            assert [f.predictions[0].label for f in found] == ["c", "b"] * 3

        run(work)

    def test_one_pass_at_a_time(self):
        async def work(batcher, models):
            await asyncio.gather(*(ask(batcher, models, f"t{i}", name="xy"[i % 2]) for i in range(100)))
            for name in "xy":
                assert models.predictor(name).threads == {"fenlei-score_0"}

        run(work, models=FakeModels("x", "y"), max_queue_s=None)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_other_work_with_the_model_waits_for_its_turn(self, threads):
        """Negative control with two threads: then it would not."""

        async def work(batcher, models):
            predictor = models.predictor()
            async with busy(batcher, models):
                inside = models.scoring.submit(lambda: predictor.together)
                if threads == 2:
                    assert await asyncio.wrap_future(inside) == 1, "in the middle of a pass"
                else:
                    await asyncio.sleep(0.05)
                    assert not inside.done()
            if threads == 1:
                assert await asyncio.wrap_future(inside) == 0

        models = FakeModels()
        models.scoring = ThreadPoolExecutor(threads)
        run(work, models=models)

    def test_other_work_comes_between_two_passes(self):
        async def work(batcher, models):
            predictor = models.predictor()
            async with busy(batcher, models):
                tasks = [ask(batcher, models, f"t{i}") for i in range(5 * PASS)]
                await queued(batcher, 5 * PASS)
                inside = models.scoring.submit(lambda: len(predictor.calls))
            assert await asyncio.wrap_future(inside) == 1
            await asyncio.gather(*tasks)

        run(work, max_queue_s=None)

    @pytest.mark.parametrize(("seconds", "times"), [(0.0, 3), (60.0, 0)])
    def test_memory_is_given_back_now_and_then(self, monkeypatch, seconds, times):
        trimmed = []
        monkeypatch.setattr(batcher_module, "trim_memory", lambda: trimmed.append(1))
        monkeypatch.setattr(batcher_module, "_TRIM_SECONDS", seconds)

        async def work(batcher, models):
            for _ in range(3):
                await ask(batcher, models, "a")

        run(work)
        assert len(trimmed) == times

    def test_sizes_are_told(self):
        told = []

        async def work(batcher, models):
            await ask(batcher, models, "a", "b", "c")

        run(work, observe=told.append)
        assert sum(told) == 3


class TestRefusals:
    def test_texts_that_wait_are_bounded(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                kept = [ask(batcher, models, "1"), ask(batcher, models, "2", "3")]
                await queued(batcher, 3)
                with pytest.raises(QueueFull) as refused:
                    await ask(batcher, models, "4", "5")
                kept.append(ask(batcher, models, "6"))
                with pytest.raises(QueueFull):
                    await ask(batcher, models, "7")
                assert 1.0 <= refused.value.retry_after <= 60.0
            await asyncio.gather(*kept)
            scored = [text for call in models.predictor().calls for text in call]
            assert sorted(scored) == ["1", "2", "3", "6", "first"], "a request is taken whole or not at all"
            assert batcher.load()["refused_requests"] == 2

        run(work, max_queue_texts=4)

    def test_tokens_that_wait_are_bounded(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                kept = [ask(batcher, models, *"abcd")]
                await queued(batcher, 4)
                with pytest.raises(QueueFull):
                    await ask(batcher, models, "a long text that is counted by its characters until it is tokenized")
                kept.append(ask(batcher, models, "short"))
                await queued(batcher, 5)
                assert batcher.load()["queued_tokens"] == 5 * COST
            await asyncio.gather(*kept)

        run(work, max_queue_tokens=30)

    def test_memory_of_texts_is_bounded_before_they_are_tokenized(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                kept = ask(batcher, models, "one")
                await queued(batcher, 1)
                with pytest.raises(QueueFull):
                    await ask(batcher, models, "x" * 100_000)
            await kept

        run(work, max_queue_tokens=1000)

    def test_more_than_the_limit_is_taken_where_nothing_waits(self):
        async def work(batcher, models):
            outcome = await ask(batcher, models, *[f"t{i}" for i in range(50)])
            assert len(outcome.predictions) == 50

        run(work, max_queue_texts=4, max_queue_tokens=10)

    def test_a_full_queue_of_one_classifier_is_not_that_of_another(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                kept = [ask(batcher, models, f"{i}") for i in range(4)]
                await queued(batcher, 4)
                with pytest.raises(QueueFull):
                    await ask(batcher, models, "more")
                kept.append(ask(batcher, models, "hello", name="y"))
                await queued(batcher, 5)
            await asyncio.gather(*kept)

        run(work, models=FakeModels("x", "y"), max_queue_texts=4)

    def test_what_would_take_too_long_is_refused(self):
        async def work(batcher, models):
            batcher._rate = Rate()
            batcher._rate.add(10, 50, 10.0)  # 5 tokens a second
            async with busy(batcher, models):
                kept = [ask(batcher, models, f"{i}") for i in range(PASS)]  # 40 tokens: 8 s
                await queued(batcher, PASS)
                kept.append(ask(batcher, models, "y"))
                await queued(batcher, PASS + 1)
                with pytest.raises(QueueFull) as refused:
                    await ask(batcher, models, "z")
                assert refused.value.retry_after == pytest.approx(9.0)
            await asyncio.gather(*kept)

        run(work, max_queue_s=8.0)

    def test_a_full_pass_may_wait_on_the_slowest_machine(self):
        """Else passes would stay as small, and the measured speed as low, as they once happened to be."""

        async def work(batcher, models):
            batcher._rate = Rate()
            batcher._rate.add(1, COST, 1000.0)
            async with busy(batcher, models):
                kept = [ask(batcher, models, f"{i}") for i in range(PASS)]
                await queued(batcher, PASS)
                with pytest.raises(QueueFull):
                    await ask(batcher, models, "one more")
            await asyncio.gather(*kept)
            assert [len(call) for call in models.predictor().calls] == [1, PASS]

        run(work, max_queue_s=4.0)

    def test_candidates_cost_their_beginning_when_they_are_new(self):
        """Which the first of those that wait computes for all."""

        async def work(batcher, models):
            batcher._rate.add(10, 500, 10.0)  # 50 tokens a second
            models.predictor().beginnings = {("a", "b"): 200}
            async with busy(batcher, models):
                kept = [ask(batcher, models, f"{i}", candidates=["a", "b"]) for i in range(3)]
                kept.append(ask(batcher, models, "plain"))
                await queued(batcher, 4)
                assert batcher.load()["queued_tokens"] == 200 + 4 * COST
                with pytest.raises(QueueFull):
                    await ask(batcher, models, "more")
            await asyncio.gather(*kept)

        run(work, max_queue_s=4.0)

    @pytest.mark.parametrize(("tokens_a_second", "seconds"), [(1e6, 1.0), (10.0, 5.0), (0.01, 60.0)])
    def test_when_to_come_back(self, tokens_a_second, seconds):
        batcher = Batcher(FakeModels())
        assert batcher._seconds(50) == 1.0, "nothing is known yet"
        batcher._rate.add(1, tokens_a_second, 1.0)
        assert batcher._seconds(50) == pytest.approx(seconds)

    def test_too_long_a_wait_is_given_up(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                late = ask(batcher, models, "late", "later")
                with pytest.raises(QueueTimeout) as error:
                    await late
                assert 1.0 <= error.value.retry_after <= 60.0
                assert batcher.load()["queued_texts"] == 0
            assert models.predictor().calls == [["first"]], "the one in the model goes on, the late one never begins"
            assert batcher.load()["timed_out_requests"] == 1

        run(work, queue_timeout_s=0.1)

    def test_one_that_has_begun_is_finished(self):
        async def work(batcher, models):
            predictor = models.predictor()
            predictor.gate.clear()
            task = ask(batcher, models, *[f"t{i}" for i in range(3 * PASS)])
            await asyncio.to_thread(predictor.wait_until_busy)
            await asyncio.sleep(0.2)
            predictor.gate.set()
            assert len((await task).predictions) == 3 * PASS

        run(work, queue_timeout_s=0.1)

    def test_a_client_that_is_gone_is_forgotten(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                gone = [ask(batcher, models, "gone", "gone") for _ in range(3)]
                stays = ask(batcher, models, "stays")
                await queued(batcher, 7)
                for task in gone:
                    task.cancel()
                await asyncio.gather(*gone, return_exceptions=True)
                assert batcher.load()["queued_texts"] == 1
            await stays
            assert models.predictor().calls == [["first"], ["stays"]]
            assert batcher.load()["open_requests"] == 0

        run(work)

    def test_a_client_that_goes_away_half_way(self):
        async def work(batcher, models):
            predictor = models.predictor()
            predictor.gate.clear()
            task = ask(batcher, models, *[f"t{i}" for i in range(10 * PASS)])
            await asyncio.to_thread(predictor.wait_until_busy)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            predictor.gate.set()
            await ask(batcher, models, "next")
            assert [len(call) for call in predictor.calls] == [PASS, 1]

        run(work)


class TestFaults:
    @pytest.mark.parametrize("word", ["bad", "worse"])
    def test_one_bad_row_harms_its_own_request_only(self, word):
        async def work(batcher, models):
            async with busy(batcher, models):
                tasks = [ask(batcher, models, *texts) for texts in (["1"], ["2", f"{word} secret", "3"], ["4"])]
                await queued(batcher, 5)
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [len(found[i].predictions) for i in (0, 2)] == [1, 1]
            assert isinstance(found[1], ModelError)
            assert "secret" not in str(found[1])
            predictor = models.predictor()
            assert [len(call) for call in predictor.calls] == [1, 5, 1, 1, 1, 1, 1]
            assert predictor.forgotten == 2
            load = batcher.load()
            assert (load["retried_texts"], load["failed_texts"]) == (5, 1)
            assert len((await ask(batcher, models, "next")).predictions) == 1

        run(work)

    def test_without_trying_again_all_would_fail(self, monkeypatch):
        """Negative control."""
        from fenlei.server import batcher as module
        from fenlei.server.passes import Scored, as_fenlei

        def together(work):
            try:
                return Scored(work.lane.classifier.predictor.score([r.prompts[i] for r, i in work.rows]))
            except RuntimeError as error:
                return Scored([as_fenlei(error)] * len(work.rows))

        monkeypatch.setattr(module, "score_rows", together)

        async def work(batcher, models):
            async with busy(batcher, models):
                tasks = [ask(batcher, models, text) for text in ("1", "bad", "2")]
                await queued(batcher, 3)
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(f, ModelError) for f in found)

        run(work)

    def test_rows_of_a_failed_request_are_not_scored_any_more(self):
        async def work(batcher, models):
            with pytest.raises(ModelError):
                await ask(batcher, models, "bad", *[f"t{i}" for i in range(10 * PASS)])
            assert batcher.load()["queued_texts"] == 0
            assert sum(len(call) for call in models.predictor().calls) <= 4 * PASS

        run(work)

    @pytest.mark.parametrize("word", ["unreadable", "panic"])
    def test_a_text_that_cannot_be_tokenized_harms_its_own_request_only(self, word):
        async def work(batcher, models):
            tasks = [ask(batcher, models, text) for text in ("1", word, "2")]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(found[1], ModelError)
            assert "the tokenizer failed" in str(found[1])
            assert "no tokens" not in str(found[1])
            assert [len(found[i].predictions) for i in (0, 2)] == [1, 1]
            assert batcher.load()["queued_texts"] == batcher.load()["open_requests"] == 0

        run(work)

    def test_failures_say_nothing_of_the_speed(self):
        async def work(batcher, models):
            with pytest.raises(ModelError):
                await ask(batcher, models, "bad")
            assert batcher.load()["tokens_per_second"] == 0.0
            await ask(batcher, models, "good")
            assert batcher.load()["tokens_per_second"] > 0.0

        run(work)

    def test_a_fault_of_our_own_leaves_nobody_waiting(self):
        def observe(_texts):
            raise ZeroDivisionError

        async def work(batcher, models):
            with pytest.raises(ModelError, match="ZeroDivisionError"):
                await ask(batcher, models, "1")
            batcher._observe = None
            assert len((await ask(batcher, models, "2")).predictions) == 1

        run(work, observe=observe)


class TestChoices:
    def test_thresholds_of_a_request(self):
        async def abstained(batcher, models, **how):
            return [p.abstained for p in (await ask(batcher, models, "sure", "no", **how)).predictions]

        async def work(batcher, models):
            assert await abstained(batcher, models) == [False, True], "the classifier's own, 0.5"
            assert await abstained(batcher, models, threshold=None) == [False, False]
            assert await abstained(batcher, models, threshold=0.0) == [False, False]
            assert await abstained(batcher, models, threshold=0.8) == [True, True]
            assert await abstained(batcher, models, threshold=0.75) == [False, True], "not below"
            assert models.get().classifier.calibration.threshold == 0.5

        run(work)

    def test_a_threshold_that_the_signal_cannot_have(self):
        async def work(batcher, models):
            models.get().classifier.calibration = Calibration(signal="entropy")
            with pytest.raises(DataError, match="expected -1 to 0 for the signal entropy"):
                await ask(batcher, models, "x", threshold=0.5)
            assert batcher.load()["open_requests"] == 0

        run(work)

    def test_candidates(self):
        async def work(batcher, models):
            found = await ask(batcher, models, "x", candidates=["b", "A", "b"])
            assert list(found.predictions[0].probabilities) == ["b", "a"]
            for names, message in (["d"], "unknown label 'd'"), ([], "expected one label or more of: a, b, c"):
                with pytest.raises(DataError, match=message):
                    await ask(batcher, models, "x", candidates=names)
            with pytest.raises(DataError, match="no text"):
                await ask(batcher, models)

        run(work)

    def test_rows_may_bring_their_own(self):
        async def work(batcher, models):
            async with busy(batcher, models):
                mixed = [Example("m1", candidates=("a",)), Example("m2", candidates=("b",))]
                tasks = [asyncio.ensure_future(batcher.classify(models.get(), mixed)), ask(batcher, models, "plain")]
                await queued(batcher, 3)
            found = await asyncio.gather(*tasks)
            assert [p.label for p in found[0].predictions] == ["a", "b"]
            assert models.predictor().calls == [["first"], ["m1", "m2"], ["plain"]]

        run(work)


class TestExplained:
    """A request to explain waits like all others, also while nobody has looked at its text."""

    def test_it_has_a_place_before_its_text_is_read(self):
        async def work(batcher, models):
            models.predictor().reads.clear()
            kept = [ask(batcher, models, "一。二。", explain=True) for _ in range(3)]
            with pytest.raises(QueueFull):
                await ask(batcher, models, "一。二。", explain=True)
            with pytest.raises(QueueFull):
                await ask(batcher, models, "plain")
            models.predictor().reads.set()
            found = await asyncio.gather(*kept, return_exceptions=True)
            # each is three texts now, and there is room for those of one
            assert [type(f) for f in found[:2]] == [QueueFull, QueueFull]
            assert [row.text for row in found[2].variants.rows] == ["一。二。", "二。", "一。"]
            assert len(found[2].predictions) == 3
            assert batcher.load()["queued_texts"] == batcher.load()["open_requests"] == 0

        run(work, max_queue_texts=3)

    def test_its_time_begins_when_it_comes(self):
        async def work(batcher, models):
            models.predictor().reads.clear()
            with pytest.raises(QueueTimeout):
                await ask(batcher, models, "一。二。", explain=True)
            assert batcher.load()["queued_texts"] == 0
            models.predictor().reads.set()

        run(work, queue_timeout_s=0.1)

    def test_one_that_is_given_up_is_not_read(self):
        async def work(batcher, models):
            predictor = models.predictor()
            predictor.reads.clear()
            first, second = (ask(batcher, models, text, explain=True) for text in ("一。", "二。"))
            assert await asyncio.to_thread(predictor.reading.acquire, timeout=120)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            predictor.reads.set()
            assert len((await first).predictions) == 2
            assert predictor.read == ["一。"]

        run(work)

    def test_one_text_only(self):
        async def work(batcher, models):
            with pytest.raises(DataError, match="expected one text, found 2"):
                await ask(batcher, models, "1", "2", explain=True)

        run(work)


class TestEnd:
    def drained(self, seconds):
        async def work(batcher, models):
            predictor = models.predictor()
            predictor.gate.clear()
            tasks = [ask(batcher, models, "first")]
            await asyncio.to_thread(predictor.wait_until_busy)
            tasks += [ask(batcher, models, f"t{i}") for i in range(50)]
            await queued(batcher, 50)
            end = asyncio.ensure_future(batcher.stop(seconds))
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                await ask(batcher, models, "too late")
            if not seconds:
                await end
            predictor.gate.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            return await end, sum(isinstance(f, Draining) for f in found), predictor.calls

        return run(work)

    def test_what_was_taken_is_finished(self):
        done, lost, calls = self.drained(20)
        assert done
        assert not lost
        assert sum(len(call) for call in calls) == 51

    def test_without_time_for_it_requests_are_lost(self):
        """Negative control; they are told so, and the answer is honest."""
        done, lost, _ = self.drained(0.0)
        assert not done
        assert lost == 51

    def test_one_that_is_being_tokenized_is_finished_too(self):
        async def work(batcher, models):
            reading, go = threading.Event(), threading.Event()
            predictor = models.predictor()
            encode = predictor.encode

            def slow(part, **how):
                reading.set()
                assert go.wait(20)
                return encode(part, **how)

            predictor.encode = slow
            task = ask(batcher, models, "t")
            await asyncio.to_thread(reading.wait, 20)
            end = asyncio.ensure_future(batcher.stop(20))
            await asyncio.sleep(0)
            go.set()
            assert len((await task).predictions) == 1
            assert await end

        run(work)

    def test_before_the_start_nothing_is_taken(self):
        async def main():
            models = FakeModels()
            with pytest.raises(Draining):
                await Batcher(models).classify(models.get(), rows("x"))

        asyncio.run(main())

    def test_an_idle_batcher_ends_at_once(self):
        async def work(batcher, models):
            assert await batcher.stop(120)

        run(work)


def test_figures():
    async def work(batcher, models):
        assert batcher.load()["texts_per_second"] == 0.0
        async with busy(batcher, models):
            task = ask(batcher, models, "a", "b")
            await queued(batcher, 2)
            load = batcher.load()
            assert load["queued_texts"] == 2
            assert load["queued_tokens"] == 2 * COST
            assert load["in_flight_texts"] == 1
            assert load["open_requests"] == 2
        await task
        load = batcher.load()
        assert load["queued_texts"] == load["queued_tokens"] == load["in_flight_texts"] == 0
        assert load["texts_per_second"] > 0
        assert load["tokens_per_second"] == pytest.approx(load["texts_per_second"] * COST)
        assert load["scored_texts"] == 3
        assert load["passes"] == 2

    run(work)


def test_nothing_is_kept_of_requests_that_are_done():
    async def work(batcher, models):
        await asyncio.gather(*(ask(batcher, models, f"t{i}") for i in range(200)), return_exceptions=True)
        assert isinstance(batcher._line, WaitingLine)
        assert not batcher._line._lanes
        assert not batcher._open

    run(work)
