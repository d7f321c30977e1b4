"""Classifiers that answer by rule, stop at a gate, fail on purpose and write down what they were asked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

from fenlei.data import Example, LabelSet
from fenlei.modeling.calibration import Calibration
from fenlei.modeling.prediction import Prediction
from fenlei.server.models import Served

NAMES = ("a", "b", "c")
BUDGET = 40
COST = 5


@dataclass
class Prompt:
    text: str
    candidates: tuple[str, ...]

    @property
    def input_ids(self):
        return list(range(20 + COST))


class Panic(BaseException):
    """What a library in Rust panics with."""


class FakePredictor:
    """Each text costs ``COST`` tokens. A text's first word says what happens: ``bad`` fails, ``worse`` too."""

    def __init__(self, log):
        self.log = log
        self.reads = threading.Event()  # without it, nothing is read for an explanation
        self.reads.set()
        self.read, self.reading = [], threading.Semaphore(0)
        self.encoder = SimpleNamespace(config=SimpleNamespace(max_length=256), read_spans=self.read_spans)
        self.beginnings = {}  # by candidates: what they cost before they were scored first
        self.batch_tokens = BUDGET
        self.calls = []
        self.forgotten = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.threads = set()
        self.together = self.most_together = 0

    def encode(self, rows, *, candidates=None):
        if any(row.text.startswith("unreadable") for row in rows):
            raise ValueError("no tokens")
        if any(row.text.startswith("panic") for row in rows):
            raise Panic
        return [Prompt(row.text, candidates or row.candidates or NAMES) for row in rows]

    def costs(self, prompts):
        return [COST] * len(prompts)

    def read_spans(self, row, candidates=None):
        self.read.append(row.text)
        self.reading.release()
        assert self.reads.wait(120)
        return [(0, len(row.text))]

    def beginning_cost(self, prompt):
        return self.beginnings.get(prompt.candidates, 0)

    def score(self, prompts):
        self.threads.add(threading.current_thread().name)
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            self.calls.append([prompt.text for prompt in prompts])
            self.log.append(self.calls[-1])
            self.entered.release()
            assert self.gate.wait(120)
            for prompt in prompts:
                if prompt.text.startswith("bad"):
                    raise RuntimeError("cannot look at " + prompt.text)
                if prompt.text.startswith("worse"):
                    raise MemoryError
            return [self.answer(prompt) for prompt in prompts]
        finally:
            self.together -= 1

    def answer(self, prompt):
        p = {name: float(name == prompt.candidates[-1]) for name in prompt.candidates}
        confidence = 0.75 if "sure" in prompt.text else 0.25
        return Prediction(prompt.candidates[-1], confidence, p, p, confidence < 0.5, False, confidence)

    def warm(self):
        self.score(self.encode([Example("1")]))

    def forget_failed(self):
        self.forgotten += 1

    def wait_until_busy(self):
        assert self.entered.acquire(timeout=120)


class FakeModels:
    """Fake classifiers by name, with a scoring thread of their own."""

    def __init__(self, *names):
        self.scoring = ThreadPoolExecutor(1, thread_name_prefix="fenlei-score")
        self.served = {}
        self.log = []  # the passes of all of them
        for name in names or ("x",):
            calibration = Calibration(threshold=0.5)
            labels = LabelSet(NAMES, aliases={"A": "a"})
            classifier = SimpleNamespace(predictor=FakePredictor(self.log), labels=labels, calibration=calibration)
            self.served[name] = Served(name, classifier, 0)

    def get(self, name=None):
        return self.served[name or next(iter(self.served))]

    def predictor(self, name="x"):
        return self.served[name].classifier.predictor

    def use_batch_tokens(self, tokens):
        for served in self.served.values():
            served.classifier.predictor.batch_tokens = tokens
