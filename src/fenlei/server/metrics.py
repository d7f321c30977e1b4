"""What the server counts, in Prometheus' format. No metric has a label whose values a request could make up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

if TYPE_CHECKING:
    from fenlei.server.service import Answered, Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_PHASES = ("starting", "ready", "draining")


class Metrics:
    """Counters and histograms of one server.

    Args:
        service: asked for gauges whenever the metrics are read.
    """

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "fenlei_http_requests", "Requests by route and status.", ("method", "route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "fenlei_http_request_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.rejected = Counter(
            "fenlei_rejected", "Requests that were refused, by the code of the error.", ("reason",), registry=registry
        )
        self._texts = Counter("fenlei_texts", "Texts that were classified.", ("model",), registry=registry)
        self._tokens = Counter("fenlei_tokens", "Tokens that were read.", ("model",), registry=registry)
        self._abstained = Counter(
            "fenlei_abstained", "Texts from which a classifier abstained.", ("model",), registry=registry
        )
        self._truncated = Counter(
            "fenlei_truncated", "Texts that were too long and were shortened.", ("model",), registry=registry
        )
        self._queue_seconds = Histogram(
            "fenlei_queue_seconds", "Seconds that a request waited for the model.", buckets=_SECONDS, registry=registry
        )
        self._score_seconds = Histogram(
            "fenlei_score_seconds", "Seconds that the model took for a request.", buckets=_SECONDS, registry=registry
        )
        self._request_texts = Histogram(
            "fenlei_request_texts", "Texts in a request.", buckets=_TEXTS, registry=registry
        )
        self._batch_texts = Histogram(
            "fenlei_batch_texts", "Texts that were scored together.", buckets=_TEXTS, registry=registry
        )
        registry.register(_Gauges(service))
        ProcessCollector(registry=registry)

    def answered(self, answered: Answered) -> None:
        """A request was answered."""
        model, found = answered.served.name, answered.predictions
        self._texts.labels(model).inc(len(found))
        self._tokens.labels(model).inc(answered.tokens)
        self._abstained.labels(model).inc(sum(p.abstained for p in found))
        self._truncated.labels(model).inc(sum(p.truncated for p in found))
        self._queue_seconds.observe(answered.queue_seconds)
        self._score_seconds.observe(answered.score_seconds)
        self._request_texts.observe(len(found))

    def batch(self, texts: int) -> None:
        """Texts were scored together."""
        self._batch_texts.observe(texts)

    def text(self) -> bytes:
        """All of it, as it is scraped."""
        return generate_latest(self._registry)


class _Gauges:
    """Values that are read when they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client wants it."""
        import psutil

        load = self._service.load()
        for name, key, what in (
            ("fenlei_queue_texts", "queued_texts", "Texts that wait for the model."),
            ("fenlei_queue_tokens", "queued_tokens", "Tokens that wait for the model."),
            ("fenlei_queue_expected_seconds", "queue_seconds", "Seconds that the model needs for what waits."),
            ("fenlei_in_flight_texts", "in_flight_texts", "Texts that are being scored."),
            ("fenlei_texts_per_second", "texts_per_second", "Texts that the model does in a second, of late."),
        ):
            yield GaugeMetricFamily(name, what, value=float(load.get(key) or 0.0))
        yield GaugeMetricFamily(
            "fenlei_in_flight_requests", "Requests that are being answered.", value=self._service.in_flight
        )
        yield GaugeMetricFamily(
            "fenlei_held_body_bytes", "Bytes of request bodies in memory.", value=self._service.bodies.held
        )
        state = GaugeMetricFamily("fenlei_state", "1 for the state that the server is in.", labels=["state"])
        for phase in _PHASES:
            state.add_metric([phase], float(self._service.phase == phase))
        yield state
        memory = psutil.Process().memory_info().rss
        yield GaugeMetricFamily("fenlei_resident_memory_bytes", "Memory of the server process.", value=memory)
