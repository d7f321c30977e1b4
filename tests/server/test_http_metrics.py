"""``/metrics``."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.client import opened
from tests.server.fake import POISON
from tests.server.test_http_limits import Held


def values(client) -> dict[str, float]:
    """Every sample by ``name{label=value}``."""
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_counts():
    with opened() as client:
        texts = [str(n) for n in range(30)]
        results = client.post("/v1/classify", json={"texts": [*texts, "x" * 100]}).json()["results"]
        client.post("/v1/classify", json={"text": "a", "model": "mood"})
        client.post("/v1/classify", json={"text": POISON})
        client.post("/v1/classify", json={"text": 1})
        client.get("/v1/models/nobody")
        found = values(client)
    route = "method=POST,route=/v1/classify"
    assert found[f"fenlei_http_requests_total{{{route},status=200}}"] == 2
    assert found[f"fenlei_http_requests_total{{{route},status=422}}"] == 1
    assert found[f"fenlei_http_requests_total{{{route},status=503}}"] == 1
    assert found["fenlei_texts_total{model=news}"] == 31
    assert found["fenlei_texts_total{model=mood}"] == 1
    assert found["fenlei_tokens_total{model=news}"] == sum(len(t) for t in texts) + 64
    assert found["fenlei_abstained_total{model=news}"] == sum(r["abstained"] for r in results) > 0
    assert found["fenlei_truncated_total{model=news}"] == 1
    assert found["fenlei_rejected_total{reason=invalid_request}"] == 1
    assert found["fenlei_rejected_total{reason=model_failed}"] == 1
    assert found["fenlei_rejected_total{reason=model_not_found}"] == 1
    for name in ("fenlei_queue_seconds", "fenlei_score_seconds", "fenlei_request_texts"):
        assert found[f"{name}_count"] == 2
    assert found["fenlei_request_texts_sum"] == 32
    assert found["fenlei_batch_texts_sum"] == 33, "the poisoned text was scored too"
    assert found["fenlei_http_request_seconds_count{route=/v1/classify}"] == 4
    assert found["fenlei_resident_memory_bytes"] > 1e7
    assert found["fenlei_state{state=ready}"] == 1
    assert found["fenlei_state{state=draining}"] == 0


def test_gauges_while_it_works():
    with Held(max_queue_texts=5) as held:
        held.send({"texts": ["a", "b", "c"]})
        held.queued(3)
        assert held.client.post("/v1/classify", json={"texts": ["d"] * 4}).status_code == 429
        found = values(held.client)
        assert found["fenlei_queue_texts"] == 3
        assert found["fenlei_queue_tokens"] == 3
        assert found["fenlei_in_flight_texts"] == 1
        assert found["fenlei_in_flight_requests"] == 2
        assert found["fenlei_rejected_total{reason=queue_full}"] == 1
        held.go()
        found = values(held.client)
        assert (found["fenlei_queue_texts"], found["fenlei_in_flight_requests"]) == (0, 0)
        assert found["fenlei_texts_total{model=news}"] == 4


@pytest.mark.parametrize("path", ["/a", "/v1/models/a", "/assets/a", "/v1/models/../../x"])
def test_requests_make_no_labels(path):
    with opened() as client:
        before = set(values(client))
        for n in range(20):
            client.get(f"{path}{n}")
            client.request(f"METHOD{n}", "/")
        names = set(values(client)) - before
    assert not [name for name in names if any(str(n) in name for n in range(10, 20)) and "_bucket" not in name]
