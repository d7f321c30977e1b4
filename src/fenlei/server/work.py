"""Requests that wait to be scored, and which of their rows are scored next.

Rows of one forward pass belong to one classifier and have the same candidates, because only they share the beginning
of a prompt. Which ones:

1. Classifiers that have rows waiting take turns, a pass each.
2. Within a classifier, requests take turns in the order in which they came. A turn is a quarter of a pass (a row at
   least); a request with more rows goes to the end of the line. So a request of one text waits for a quarter of a pass
   for each request before it, however many texts those hold, and a large request that is alone gets everything.
3. The request at the head of the line says which candidates; others with the same ones fill the pass.

A pass begins when the model is free. With ``max_wait_ms`` above 0 a pass that is not full waits that long for company,
counted from the arrival of its oldest row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

TURNS_A_PASS = 4


@dataclass(eq=False)
class Job:
    """The rows of one request.

    Attributes:
        lane: the classifier that is asked.
        costs: tokens that each row takes in a forward pass; an estimate until the rows are tokenized.
        arrived: when the request came, in seconds of a monotonic clock.
        group: rows that may be scored together have the same.
        given: how many rows were given to the model.
        began: when the first one was.
    """

    lane: Hashable
    costs: list[int]
    arrived: float
    group: Hashable = None
    given: int = 0
    began: float | None = None
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.expect(self.costs)

    def expect(self, costs: list[int]) -> None:
        """What its rows cost; not while it stands in a line."""
        self.costs, self.tokens = costs, sum(costs)

    @property
    def texts(self) -> int:
        """Rows that were not given to the model yet; ``tokens`` are theirs."""
        return len(self.costs) - self.given

    def turn(self, budget: int) -> int:
        """Tokens of what the model gets of it at its next turn."""
        return min(self.tokens, max(budget // TURNS_A_PASS, self.costs[self.given])) if self.texts else 0

    def give(self, rows: list[tuple[Job, int]], room: int, turn: int, now: float) -> int:
        """Puts a row into a pass, and more while they fit into the room and the turn.

        Returns:
            The tokens that they take.
        """
        used = 0
        while self.texts:
            cost = self.costs[self.given]
            if used and used + cost > min(turn, room):
                break
            if self.began is None:
                self.began = now
            rows.append((self, self.given))
            self.given += 1
            used += cost
        self.tokens -= used
        return used


@dataclass(frozen=True)
class Pass:
    """Rows to be scored together.

    Attributes:
        lane: the classifier.
        rows: (request, index of the row in it).
        tokens: what they cost.
    """

    lane: Any
    rows: list[tuple[Job, int]]
    tokens: int


@dataclass
class _Lane:
    """The requests for one classifier; the sums are kept, because they are asked for at every arrival."""

    budget: int
    jobs: deque[Job] = field(default_factory=deque)
    coming: set[Job] = field(default_factory=set)  # admitted, not tokenized yet
    texts: int = 0
    tokens: int = 0
    turns: int = 0

    @property
    def tokenized(self) -> int:
        """Tokens of the rows that can be scored now."""
        return self.tokens - sum(job.tokens for job in self.coming)

    def count(self, job: Job, sign: int) -> None:
        """A job is about to change or to go (-1), or has changed or come (+1)."""
        self.texts += sign * job.texts
        self.tokens += sign * job.tokens
        self.turns += sign * job.turn(self.budget)


class WaitingLine:
    """The requests that wait, by classifier. Not safe to use from several threads at once: hold a lock."""

    def __init__(self) -> None:
        self._lanes: dict[Hashable, _Lane] = {}  # the one whose turn it is stands first

    def expect(self, job: Job, budget: int) -> None:
        """A request is admitted; its rows are not tokenized yet.

        Args:
            job: the request.
            budget: tokens of a pass of its classifier.
        """
        lane = self._lanes.setdefault(job.lane, _Lane(budget))
        lane.coming.add(job)
        lane.count(job, +1)

    def add(self, job: Job, costs: list[int], group: Hashable) -> bool:
        """The rows of a request can be scored: what they cost, and what those have in common that may go together.

        Returns:
            False where the request was removed in the meantime.
        """
        lane = self._lanes.get(job.lane)
        if lane is None or job not in lane.coming:
            return False
        lane.count(job, -1)
        lane.coming.remove(job)
        job.expect(costs)
        job.group = group
        lane.jobs.append(job)
        lane.count(job, +1)
        return True

    def remove(self, job: Job) -> None:
        """Nobody waits for a request any more; what was not given to the model is dropped."""
        lane = self._lanes.get(job.lane)
        if lane is None:
            return
        if job in lane.coming:
            lane.coming.remove(job)
        elif job in lane.jobs:
            lane.jobs.remove(job)
        else:
            return
        lane.count(job, -1)
        self._tidy(job.lane)

    @property
    def texts(self) -> int:
        """Rows that wait."""
        return sum(lane.texts for lane in self._lanes.values())

    @property
    def tokens(self) -> int:
        """Their tokens."""
        return sum(lane.tokens for lane in self._lanes.values())

    def tokens_of(self, key: Hashable) -> int:
        """Tokens that wait for a classifier."""
        lane = self._lanes.get(key)
        return lane.tokens if lane is not None else 0

    def ready_texts(self, key: Hashable) -> int:
        """Rows that can be scored now for a classifier."""
        lane = self._lanes.get(key)
        return sum(job.texts for job in lane.jobs) if lane is not None else 0

    def fills_a_pass(self, key: Hashable) -> bool:
        """Whether what can be scored now for a classifier is as much as a pass takes."""
        lane = self._lanes.get(key)
        return lane is not None and lane.tokenized >= lane.budget

    def has(self, key: Hashable, group: Hashable = None) -> bool:
        """Whether requests wait for a classifier; with a group, whether tokenized ones of that group do."""
        lane = self._lanes.get(key)
        return lane is not None and (group is None or any(job.group == group for job in lane.jobs))

    def ahead(self, key: Hashable, budget: int, tokens: int) -> int:
        """Tokens that others are given before a request of so many tokens that comes now is done."""
        own = 0
        lane = self._lanes.get(key)
        if lane is not None:
            turns = max(1, -(-tokens // max(1, budget // TURNS_A_PASS)))
            jobs = (*lane.jobs, *lane.coming) if turns > 1 else ()
            own = sum(min(job.tokens, turns * job.turn(budget)) for job in jobs) or lane.turns
        # meanwhile each other classifier gets as many passes as this one, and one more
        most = own + tokens + budget
        return own + sum(min(other.tokens, most) for other_key, other in self._lanes.items() if other_key is not key)

    def ready(self, wait: float, now: float) -> tuple[Hashable | None, float | None]:
        """The classifier that is scored next, and when.

        Args:
            wait: how long the oldest row of a pass waits for company.
            now: the time.

        Returns:
            The first one in turn whose pass may begin now, with ``now``; else the first one that may begin later, with
            the time; (None, None) where no row waits.
        """
        soonest: tuple[Hashable | None, float | None] = (None, None)
        for key, lane in self._lanes.items():
            if not lane.jobs:
                continue
            at = now if wait <= 0 or lane.tokenized >= lane.budget else min(job.arrived for job in lane.jobs) + wait
            if at <= now:
                return key, now
            if soonest[1] is None or at < soonest[1]:
                soonest = key, at
        return soonest

    def take(self, key: Hashable, now: float) -> Pass:
        """The next rows of a classifier: as many tokens as a pass has, or one row. Another one's turn comes then."""
        lane = self._lanes.pop(key)
        self._lanes[key] = lane
        rows: list[tuple[Job, int]] = []
        room, group = lane.budget, lane.jobs[0].group
        others: list[Job] = []
        unfinished: list[Job] = []
        while lane.jobs:
            job = lane.jobs.popleft()
            if job.group != group:
                others.append(job)
                continue
            if rows and job.costs[job.given] > room:
                others.append(job)
                break
            lane.count(job, -1)
            room -= job.give(rows, room, lane.budget // TURNS_A_PASS, now)
            unfinished += [job] if job.texts else []
        lane.jobs.extendleft(reversed(others))
        for job in unfinished:
            lane.count(job, +1)
        lane.jobs.extend(unfinished)
        for job in unfinished:  # room that is left when everybody has had a turn
            if job.costs[job.given] > room:
                continue
            lane.count(job, -1)
            lane.jobs.remove(job)
            while job.texts and job.costs[job.given] <= room:
                room -= job.give(rows, room, 0, now)
            if job.texts:
                lane.count(job, +1)
                lane.jobs.append(job)  # others are given more at the next pass
        self._tidy(key)
        return Pass(key, rows, lane.budget - room)

    def clear(self) -> list[Job]:
        """Drops everything; the requests that were dropped."""
        found = [job for lane in self._lanes.values() for job in (*lane.jobs, *lane.coming)]
        self._lanes.clear()
        return found

    def _tidy(self, key: Hashable) -> None:
        lane = self._lanes.get(key)
        if lane is not None and not lane.jobs and not lane.coming:
            del self._lanes[key]
