"""Which rows are scored next."""

from __future__ import annotations

import random

import pytest

from fenlei.server.rate import Rate
from fenlei.server.work import Job, Pass, WaitingLine

BUDGET = 40


def job(lane, costs, arrived=0.0):
    return Job(lane, [1] * len(costs), arrived)


def line_of(*jobs):
    """Requests that wait, in their order: (lane, costs) or (lane, costs, group)."""
    line, made = WaitingLine(), []
    for lane, costs, *group in jobs:
        one = job(lane, costs)
        line.expect(one, BUDGET)
        assert line.add(one, list(costs), group[0] if group else "g")
        made.append(one)
    return line, made


def passes(line, limit=1000):
    """All passes: [(lane, [(number of the request, rows), ...])]."""
    found = []
    while (key := line.ready(0.0, 0.0)[0]) is not None and len(found) < limit:
        found.append(line.take(key, now=float(len(found))))
    return found


def counted(work, jobs):
    """Rows of each request in a pass, by its number."""
    return {jobs.index(one): sum(other is one for other, _ in work.rows) for one, _ in work.rows}


def test_small_requests_fill_a_pass_in_order():
    line, jobs = line_of(*[("a", [10])] * 6)
    found = passes(line)
    assert [counted(work, jobs) for work in found] == [{0: 1, 1: 1, 2: 1, 3: 1}, {4: 1, 5: 1}]
    assert [work.tokens for work in found] == [40, 20]


def test_a_large_request_alone_gets_whole_passes():
    line, jobs = line_of(("a", [10] * 10))
    assert [counted(work, jobs) for work in passes(line)] == [{0: 4}, {0: 4}, {0: 2}]


def test_a_small_request_waits_for_one_turn_of_a_large_one():
    line, jobs = line_of(("a", [5] * 256), ("a", [5]), ("a", [5]))
    first, second = passes(line, 2)
    assert counted(first, jobs) == {0: 6, 1: 1, 2: 1}, "a turn of a quarter of the pass, and what was left at the end"
    assert counted(second, jobs) == {0: 8}


def test_first_come_first_served_would_make_it_wait(monkeypatch):
    """Negative control: where nobody goes to the end of the line, the small request is served last."""

    def in_order(self, key, now):
        lane = self._lanes[key]
        rows = []
        while lane.jobs and len(rows) < BUDGET // 5:
            lane.count(lane.jobs[0], -1)
            lane.jobs[0].give(rows, 5, 5, now)
            lane.count(lane.jobs[0], +1)
            if not lane.jobs[0].texts:
                lane.jobs.popleft()
        self._tidy(key)
        return Pass(key, rows, 5 * len(rows))

    monkeypatch.setattr(WaitingLine, "take", in_order)
    line, jobs = line_of(("a", [5] * 256), ("a", [5]))
    found = passes(line)
    assert next(i for i, work in enumerate(found) if 1 in counted(work, jobs)) == len(found) - 1 == 32


def test_large_requests_share():
    line, jobs = line_of(*[("a", [10] * 8)] * 3)
    a_round = [{0: 2, 1: 1, 2: 1}, {1: 2, 2: 1, 0: 1}, {2: 2, 0: 1, 1: 1}]
    assert [counted(work, jobs) for work in passes(line)] == [*a_round, *a_round]


def test_a_row_that_is_larger_than_a_pass_goes_alone():
    line, jobs = line_of(("a", [10]), ("a", [100]), ("a", [10]))
    assert [counted(work, jobs) for work in passes(line)] == [{0: 1}, {1: 1}, {2: 1}]


def test_classifiers_take_turns():
    line, _ = line_of(("a", [10] * 12), ("b", [10]), ("c", [10] * 5))
    assert [work.lane for work in passes(line)] == ["a", "b", "c", "a", "c", "a"]


def test_a_classifier_that_comes_late_is_next(monkeypatch):
    line, _ = line_of(("a", [10] * 100), ("b", [10] * 100))
    assert [line.take(line.ready(0.0, 0.0)[0], 0.0).lane for _ in range(3)] == ["a", "b", "a"]
    late = job("c", [10])
    line.expect(late, BUDGET)
    line.add(late, [10], "g")
    assert [line.take(line.ready(0.0, 0.0)[0], 0.0).lane for _ in range(3)] == ["b", "a", "c"]


def test_only_rows_with_the_same_candidates_go_together():
    line, jobs = line_of(("a", [10], "x"), ("a", [10], "y"), ("a", [10], "x"), ("a", [10] * 9, "y"), ("a", [10], "z"))
    assert [counted(work, jobs) for work in passes(line)] == [{0: 1, 2: 1}, {1: 1, 3: 3}, {4: 1}, {3: 4}, {3: 2}]


def test_requests_that_are_not_tokenized_yet_are_not_scored():
    line = WaitingLine()
    coming = job("a", [3, 3])
    line.expect(coming, BUDGET)
    assert line.ready(0.0, 0.0) == (None, None)
    assert line.texts == 2
    line.remove(coming)
    assert not line.has("a")
    assert not line.add(coming, [3, 3], "g"), "nobody waits for it any more"
    assert line.ready(0.0, 0.0) == (None, None)


class TestCompany:
    def test_a_pass_waits_for_company_until_its_oldest_row_has_waited_enough(self):
        line = WaitingLine()
        for arrived in (5.0, 5.5):
            one = job("a", [10], arrived)
            line.expect(one, BUDGET)
            line.add(one, [10], "g")
        assert line.ready(0.0, 5.6) == ("a", 5.6)
        assert line.ready(2.0, 5.6) == ("a", 7.0)
        assert line.ready(2.0, 7.5) == ("a", 7.5)

    def test_a_full_pass_does_not_wait(self):
        line, _ = line_of(("a", [10]), ("b", [10] * 4))
        assert line.ready(2.0, 1.0) == ("b", 1.0)

    def test_one_that_has_waited_enough_comes_before_a_full_one_if_it_is_its_turn(self):
        line, _ = line_of(("a", [10]), ("b", [10] * 4))
        assert line.ready(2.0, 2.5) == ("a", 2.5)


class TestAhead:
    def test_a_small_request_waits_for_a_turn_of_each(self):
        line, _ = line_of(("a", [5] * 256), ("a", [5]), ("a", [30]))
        assert line.ahead("a", BUDGET, 5) == 10 + 5 + 30
        assert line.ahead("a", BUDGET, 30) == 3 * 10 + 5 + 30, "three turns"
        assert line.ahead("a", BUDGET, 10**6) == line.tokens

    def test_another_classifier_costs_as_many_passes_and_one(self):
        line, _ = line_of(("a", [10] * 100), ("b", [10]))
        assert line.ahead("b", BUDGET, 10) == 10 + (10 + 10 + BUDGET)
        assert line.ahead("c", BUDGET, 10) == (10 + BUDGET) + 10
        assert WaitingLine().ahead("c", BUDGET, 10) == 0


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_given_once_and_the_sums_are_right(seed):
    draw = random.Random(seed)
    line, waiting, given, removed = WaitingLine(), [], {}, set()
    expected = {}
    for step in range(300):
        kind = draw.random()
        if kind < 0.4:
            one = Job(draw.choice("abc"), [draw.randrange(1, 9)] * draw.randrange(1, 12), float(step))
            line.expect(one, BUDGET)
            waiting.append(one)
        elif kind < 0.7 and waiting:
            one = waiting.pop(draw.randrange(len(waiting)))
            costs = [draw.randrange(1, 50) for _ in one.costs]
            assert line.add(one, costs, draw.choice("xy"))
            expected[one] = len(costs)
        elif kind < 0.75 and expected:
            one = draw.choice(list(expected))
            line.remove(one)
            removed.add(one)
        elif (key := line.ready(0.0, 0.0)[0]) is not None:
            work = line.take(key, float(step))
            assert work.tokens == sum(one.costs[i] for one, i in work.rows)
            assert work.tokens <= BUDGET or len(work.rows) == 1
            assert {one.lane for one, _ in work.rows} == {key}
            assert len({one.group for one, _ in work.rows}) == 1
            for one, i in work.rows:
                assert one not in removed
                assert i == given.get(one, 0), "in order"
                given[one] = i + 1
        alive = [one for one in (*waiting, *expected) if one not in removed]
        assert line.texts == sum(one.texts for one in alive)
        assert line.tokens == sum(sum(one.costs[one.given :]) for one in alive)
        for key in "abc":
            own = [one for one in alive if one.lane == key and one.texts]
            turns = sum(one.turn(BUDGET) for one in own)
            assert (line._lanes[key].turns if line.has(key) else 0) == turns
    passes(line)
    assert all(one.given == count for one, count in expected.items() if one not in removed)


class TestRate:
    def test_none_before_anything_was_scored(self):
        assert Rate().texts is None
        assert Rate().tokens is None

    def test_what_is_older_counts_less(self):
        rate = Rate()
        rate.add(100, 1000, 10.0)
        assert rate.texts == pytest.approx(10.0)
        assert rate.tokens == pytest.approx(100.0)
        for _ in range(10):
            rate.add(40, 400, 10.0)
        assert rate.tokens == pytest.approx(40.0, rel=0.01)
