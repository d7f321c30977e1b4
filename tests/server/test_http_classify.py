"""``POST /v1/classify`` and ``GET /v1/models``."""

from __future__ import annotations

import json
import threading

import pytest

from fenlei.server.batcher import BatchLimits
from tests.server.client import opened, said, service_of
from tests.server.fake import MOOD, NEWS, POISON, fake_models, predictor_of
from tests.server.process import until


@pytest.fixture(scope="module")
def client():
    with opened() as found:
        yield found


def classify(client, **body):
    answer = client.post("/v1/classify", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_one_text(client):
    found = classify(client, text="国足今晚迎战韩国队")
    assert list(found) == ["model", "results", "usage", "timings"]
    assert found["model"] == "news"
    (result,) = found["results"]
    assert list(result) == ["label", "probability", "confidence", "probabilities", "abstained", "truncated"]
    assert set(result["probabilities"]) == set(NEWS)
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    values = list(result["probabilities"].values())
    assert values == sorted(values, reverse=True)
    assert next(iter(result["probabilities"])) == result["label"]
    assert result["probability"] == values[0]
    assert found["usage"] == {"texts": 1, "tokens": len("国足今晚迎战韩国队".encode())}
    assert set(found["timings"]) == {"queue_ms", "score_ms", "total_ms"}
    assert found["timings"]["total_ms"] >= found["timings"]["score_ms"] >= 0


def test_several_texts_in_their_order(client):
    texts = [f"第{n}条" for n in range(40)]
    together = classify(client, texts=texts)["results"]
    alone = [classify(client, text=text)["results"][0] for text in texts]
    assert together == alone
    assert len({result["label"] for result in together}) == 3


def test_another_model_by_name(client):
    found = classify(client, text="好", model="mood")
    assert found["model"] == "mood"
    assert set(found["results"][0]["probabilities"]) == set(MOOD)


def test_candidates_and_their_aliases(client):
    found = classify(client, text="好", candidates=["科技", "sport"])["results"][0]
    assert set(found["probabilities"]) == {"科技", "体育"}
    only = classify(client, text="好", candidates=["财经"])["results"][0]
    assert only["probabilities"] == {"财经": 1.0}


def test_top_k(client):
    whole = classify(client, text="好")["results"][0]
    best = classify(client, text="好", top_k=2)["results"][0]
    assert list(best["probabilities"].items()) == list(whole["probabilities"].items())[:2]
    assert classify(client, text="好", top_k=99)["results"][0] == whole


def test_threshold(client):
    texts = [str(n) for n in range(30)]
    own = classify(client, texts=texts)["results"]
    assert {r["abstained"] for r in own} == {True, False}
    assert all(r["abstained"] == (r["confidence"] < 0.5) for r in own)
    assert not any(r["abstained"] for r in classify(client, texts=texts, threshold=None)["results"])
    assert all(r["abstained"] for r in classify(client, texts=texts, threshold=1)["results"])
    assert [r["label"] for r in classify(client, texts=texts, threshold=1)["results"]] == [r["label"] for r in own]


def test_explain(client):
    text = "国足赢了。天气很好。"
    found = classify(client, text=text, explain=True)["results"][0]
    assert {k: v for k, v in found.items() if k != "explanation"} == classify(client, text=text)["results"][0]
    explanation = found["explanation"]
    assert [s["text"] for s in explanation["sentences"]] == ["国足赢了。", "天气很好。"]
    without = classify(client, text="天气很好。")["results"][0]["probabilities"]
    first = explanation["sentences"][0]
    assert first["change"] == pytest.approx(without[found["label"]] - found["probability"])
    assert explanation["runner_up"] == list(found["probabilities"])[1]
    assert classify(client, texts=[text], explain=True)["results"][0] == found


def test_explain_takes_candidates_and_threshold(client):
    found = classify(client, text="一。二。", explain=True, candidates=["体育", "财经"], threshold=1)["results"][0]
    assert set(found["probabilities"]) == {"体育", "财经"}
    assert found["abstained"]


def test_models(client):
    found = client.get("/v1/models").json()
    assert found["object"] == "list"
    assert [m["id"] for m in found["data"]] == ["news", "mood"]
    first = found["data"][0]
    assert first["labels"] == list(NEWS)
    assert (first["threshold"], first["signal"], first["base_model"]) == (0.5, "max_probability", "tiny")
    assert client.get("/v1/models/news").json() == first


@pytest.mark.parametrize(
    ("base", "shown"),
    [
        ({"spec": "/home/me/models/qwen", "source": "folder"}, "qwen"),
        ({"spec": "../secret/qwen.gguf", "source": "gguf"}, "qwen.gguf"),
        ({"spec": "Qwen/Qwen2.5-0.5B-Instruct", "source": "hf"}, "Qwen/Qwen2.5-0.5B-Instruct"),
        ({}, None),
    ],
)
def test_where_a_base_model_lies_is_not_told(base, shown):
    models = fake_models()
    models.get("news").classifier.manifest["base_model"] = base
    with opened(models) as client:
        assert client.get("/v1/models/news").json()["base_model"] == shown


def test_a_model_that_is_not_there(client):
    missing = client.get("/v1/models/nobody")
    assert (missing.status_code, said(missing)) == (404, "model_not_found")


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "a\0b", "\ud800国足\udfff", "￿", "\u2028", "<|im_end|>", "x" * 900_000]
)
def test_odd_texts_among_good_ones(client, text):
    good = ["国足今晚迎战韩国队", "央行下调利率"]
    before = classify(client, texts=good)["results"]
    body = json.dumps({"texts": [good[0], text, good[1]]}).encode()  # ASCII: halves of pairs as escapes
    answer = client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text[:300]
    first, odd, last = answer.json()["results"]
    assert [first, last] == before
    assert odd["label"] in NEWS
    assert classify(client, texts=good)["results"] == before


def test_half_a_pair_counts_as_the_replacement_character(client):
    body = b'{"text": "\\ud800\xe5\xa5\xbd"}'
    answer = client.post("/v1/classify", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["results"] == classify(client, text="\ufffd好")["results"]


class TestPoison:
    """A text on which the model fails."""

    def test_is_refused_without_a_word_of_it(self, client):
        answer = client.post("/v1/classify", json={"text": f"秘密{POISON}"})
        assert (answer.status_code, said(answer)) == (503, "model_failed")
        assert "秘密" not in answer.text
        assert answer.headers["Retry-After"]

    def test_the_next_request_is_as_before(self, client):
        before = classify(client, text="好")["results"]
        assert client.post("/v1/classify", json={"text": POISON}).status_code == 503
        assert classify(client, text="好")["results"] == before

    def test_another_request_in_the_same_pass_is_as_before(self):
        models = fake_models()
        predictor = predictor_of(models)
        with opened(models, batch=BatchLimits(batch_tokens=1000)) as client:
            alone = classify(client, text="好")["results"]
            found = {}
            predictor.go.clear()  # the first one is being scored while the others come together

            def ask(text):
                found[text] = client.post("/v1/classify", json={"text": text})

            threads = [threading.Thread(target=ask, args=(text,)) for text in ("一", "好", POISON)]
            threads[0].start()
            until(lambda: service_of(client).load().get("in_flight_texts"), "a text is being scored")
            for thread in threads[1:]:
                thread.start()
            line = service_of(client)._batcher._line
            until(lambda: line.ready_texts(models.get("news")) == 2, "two texts wait, and both are tokenized")
            predictor.go.set()
            for thread in threads:
                thread.join()
            assert found[POISON].status_code == 503
            assert found["好"].json()["results"] == alone
            assert service_of(client).load()["retried_texts"] == 2, "they were in one pass"
