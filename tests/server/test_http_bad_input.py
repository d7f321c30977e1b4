"""Promise 17: whatever is sent, the answer is no 500, says what is wrong, and repeats next to nothing of it."""

from __future__ import annotations

import json

import pytest

from fenlei.server import app as app_module
from fenlei.server import body as body_module
from fenlei.server.body import is_deeper, parse_json
from fenlei.server.errors import ApiError
from tests.server.client import opened, said

JSON = {"Content-Type": "application/json"}
CLASSIFY, CHAT, TEXTS = "/v1/classify", "/v1/chat/completions", "/v1/completions"
DEEP = 100_000


@pytest.fixture(scope="module")
def client():
    with opened() as found:
        yield found


NO_JSON = [
    (b"", 422, "invalid_request"),
    (b"hello", 400, "invalid_json"),
    (b"{", 400, "invalid_json"),
    (b'{"text": "a"} x', 400, "invalid_json"),
    (b'{"text": "a",}', 400, "invalid_json"),
    (b"{'text': 'a'}", 400, "invalid_json"),
    (b'{"text": "a\nb"}', 400, "invalid_json"),
    (b'{"text": "\\x"}', 400, "invalid_json"),
    (b'{"text": "\\u12"}', 400, "invalid_json"),
    (b"\0\1\2\xff\xfe", 400, "invalid_json"),
    (b'{"text": "\xff"}', 400, "invalid_json"),
    ('{"text": "a"}'.encode("utf-16"), 400, "invalid_json"),
    (b'{"text": "\xed\xa0\x80"}', 400, "invalid_json"),
    (b'{"text": "a", "threshold": NaN}', 400, "invalid_json"),
    (b'{"text": "a", "threshold": Infinity}', 400, "invalid_json"),
    (b'{"text": "a", "threshold": -Infinity}', 400, "invalid_json"),
    (b'{"text": "a", "threshold": 1e999}', 400, "invalid_json"),
    (b'{"text": "a", "top_k": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
    (b'{"text": "a", "top_k": ' + b"9" * 99 + b"}", 422, "invalid_request"),
    (b'{"text": "a", "text": "b"}', 400, "duplicate_key"),
    (b'{"text": "a", "model": {"x": 1, "x": 2}}', 400, "duplicate_key"),
    (b"[" * DEEP, 422, "json_too_deep"),
    (b"[" * DEEP + b"]" * DEEP, 422, "json_too_deep"),
    (b'{"a":' * DEEP, 422, "json_too_deep"),
    (b'{"text": ' + b"[" * 40 + b"]" * 40 + b"}", 422, "json_too_deep"),
    (b"null", 422, "invalid_request"),
    (b"[]", 422, "invalid_request"),
    (b"1", 422, "invalid_request"),
    (b'"text"', 422, "invalid_request"),
    (b"{}", 422, "invalid_request"),
]


@pytest.mark.parametrize("route", [CLASSIFY, CHAT, TEXTS])
@pytest.mark.parametrize(("content", "status", "code"), NO_JSON, ids=lambda v: repr(v)[:40])
def test_no_json(client, route, content, status, code):
    answer = client.post(route, content=content, headers=JSON)
    assert (answer.status_code, said(answer)) == (status, code), answer.text
    assert len(answer.text) < 600


WRONG = [
    (CLASSIFY, {"text": 1}, "text"),
    (CLASSIFY, {"text": None}, "text"),
    (CLASSIFY, {"text": ["a"]}, "text"),
    (CLASSIFY, {"text": "a", "texts": ["b"]}, "text or texts"),
    (CLASSIFY, {"texts": "a"}, "texts"),
    (CLASSIFY, {"texts": []}, "texts"),
    (CLASSIFY, {"texts": ["a", 1]}, "texts.1"),
    (CLASSIFY, {"texts": None}, "texts"),
    (CLASSIFY, {"text": "a", "model": 1}, "model"),
    (CLASSIFY, {"text": "a", "model": ""}, "model"),
    (CLASSIFY, {"text": "a", "candidates": "体育"}, "candidates"),
    (CLASSIFY, {"text": "a", "candidates": []}, "candidates"),
    (CLASSIFY, {"text": "a", "candidates": [1]}, "candidates.0"),
    (CLASSIFY, {"text": "a", "candidates": ["Sport "]}, "Sport"),
    (CLASSIFY, {"text": "a", "candidates": ["\0"]}, "unknown label"),
    (CLASSIFY, {"text": "a", "top_k": 0}, "top_k"),
    (CLASSIFY, {"text": "a", "top_k": "2"}, "top_k"),
    (CLASSIFY, {"text": "a", "top_k": 1.5}, "top_k"),
    (CLASSIFY, {"text": "a", "top_k": True}, "top_k"),
    (CLASSIFY, {"text": "a", "threshold": "0.5"}, "threshold"),
    (CLASSIFY, {"text": "a", "threshold": 1.5}, "threshold"),
    (CLASSIFY, {"text": "a", "explain": "yes"}, "explain"),
    (CLASSIFY, {"texts": ["a", "b"], "explain": True}, "one text"),
    (CLASSIFY, {"text": "a", "cnadidates": ["体育"]}, "cnadidates: unknown field"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "system", "content": "a"}]}, "user"),
    (CHAT, {"messages": [{"role": "nobody", "content": "a"}]}, "role"),
    (CHAT, {"messages": [{"role": "user", "content": 1}]}, "content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "content"),
    (CHAT, {"messages": [{"role": "user", "content": "a"}], "n": 2}, "n:"),
    (CHAT, {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, "tools"),
    (CHAT, {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}, "response"),
    (CHAT, {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 3}, "top_logprobs"),
    (CHAT, {"messages": [{"role": "user", "content": "a"}], "logprobs": 1}, "logprobs"),
    (TEXTS, {"prompt": [1, 2, 3]}, "prompt"),
    (TEXTS, {"prompt": [[1, 2]]}, "prompt"),
    (TEXTS, {"prompt": []}, "prompt"),
    (TEXTS, {"prompt": "a", "n": 2}, "n:"),
    (TEXTS, {"prompt": "a", "echo": True}, "echo"),
    (TEXTS, {"prompt": "a", "suffix": "b"}, "suffix"),
    (TEXTS, {"prompt": "a", "logprobs": True}, "logprobs"),
]


@pytest.mark.parametrize(("route", "values", "words"), WRONG, ids=lambda v: repr(v)[:50])
def test_wrong_values(client, route, values, words):
    answer = client.post(route, json=values)
    assert answer.status_code == 422, answer.text
    said(answer)
    assert words in answer.json()["error"]["message"]


USER = {"role": "user", "content": "a"}
KEYS = {f"{n}": 1 for n in range(30_000)}


@pytest.mark.parametrize(
    ("route", "values"),
    [
        (CLASSIFY, {"texts": [1] * 100_000}),
        (CLASSIFY, {"text": "a", "candidates": [1] * 10_000}),
        (CLASSIFY, {"text": "a", **KEYS}),
        (CHAT, {"messages": [1] * 10_000}),
        (CHAT, {"messages": [{**USER, "content": [1] * 100_000}]}),
        (CHAT, {"messages": [USER], "modalities": [1] * 100_000}),
        (CHAT, {"messages": [USER], "response_format": KEYS}),
        (TEXTS, {"prompt": [1] * 100_000}),
        (TEXTS, {"prompt": "a", **KEYS}),
    ],
    ids=range(9),
)
def test_one_error_stands_for_all(client, monkeypatch, route, values):
    """Errors take far more memory and time than what they are about, and the event loop's time at that."""
    seen = []
    tell = app_module.invalid_request
    monkeypatch.setattr(app_module, "invalid_request", lambda errors: seen.append(len(errors)) or tell(errors))
    answer = client.post(route, json=values)
    assert (answer.status_code, said(answer)) == (422, "invalid_request")
    assert seen[0] <= 2, "a field may be one thing or another"


@pytest.mark.parametrize("item", ["[]", '{"":1}'])
def test_too_many_small_things(client, item):
    content = b'{"text": "a", "model": [' + ",".join([item] * 100_001).encode() + b"]}"
    answer = client.post(CLASSIFY, content=content, headers=JSON)
    assert (answer.status_code, said(answer)) == (422, "json_too_large")
    brackets = json.dumps({"text": "[{" * 100_001})
    assert client.post(CLASSIFY, content=brackets, headers=JSON).status_code == 200, "negative control: a text"


@pytest.mark.parametrize("route", [CLASSIFY, CHAT, TEXTS])
def test_unknown_model(client, route):
    values = {CLASSIFY: {"text": "a"}, CHAT: {"messages": [{"role": "user", "content": "a"}]}, TEXTS: {"prompt": "a"}}
    answer = client.post(route, json={**values[route], "model": "nobody"})
    assert (answer.status_code, said(answer)) == (404, "model_not_found")
    assert "news, mood" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": ";"},
    ],
)
def test_wrong_content_type(client, headers):
    """Also what keeps forms of other sites out: no page may send JSON to another site without being asked."""
    answer = client.post(CLASSIFY, content=b'{"text": "a"}', headers=headers)
    assert (answer.status_code, said(answer)) == (415, "unsupported_media_type")


def test_content_type_with_parameters(client):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post(CLASSIFY, content=b'{"text": "a"}', headers=headers).status_code == 200


def test_compressed_bodies_are_not_unpacked(client):
    headers = {**JSON, "Content-Encoding": "gzip"}
    answer = client.post(CLASSIFY, content=b"\x1f\x8b", headers=headers)
    assert (answer.status_code, said(answer)) == (415, "unsupported_content_encoding")


@pytest.mark.parametrize("path", ["/", "/docs", "/health/live", "/health/ready", "/metrics", "/v1/models"])
def test_head_is_get_without_a_body(client, path):
    answer, full = client.head(path), client.get(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"] == full.headers["Content-Type"]
    assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("HEAD", "/v1/nothing", 404),
        ("HEAD", "/v1/classify", 405),
        ("GET", "/v1/classify", 405),
        ("PUT", "/v1/classify", 405),
        ("OPTIONS", "/v1/classify", 405),
        ("POST", "/health/live", 405),
        ("DELETE", "/v1/models/news", 405),
        ("GET", "/v1/classify/", 404),
        ("GET", "/%00", 404),
        ("GET", "/v1/models/%2e%2e%2fetc", 404),
        ("GET", "/v1/models/" + "x" * 3000, 404),
        ("POST", "/v1/admin/models", 404),
        ("DELETE", "/v1/admin/models/news", 404),
    ],
)
def test_routes_that_are_not_there(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    if method != "HEAD":
        said(answer)
    assert len(answer.text) < 600
    if status == 405:
        assert answer.headers["Allow"]


CANARY = "知更鸟" * 500


@pytest.mark.parametrize(
    ("route", "values"),
    [
        (CLASSIFY, {"text": "a", CANARY: 1}),
        (CLASSIFY, {"text": {CANARY: 1}}),
        (CLASSIFY, {"text": "a", "model": CANARY}),
        (CLASSIFY, {"text": "a", "model": CANARY[:200]}),
        (CLASSIFY, {"text": "a", "candidates": [CANARY]}),
        (CLASSIFY, {"text": "a", "candidates": [CANARY[:1000]]}),
        (CHAT, {"messages": [{"role": CANARY, "content": CANARY}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": CANARY}]}]}),
        (TEXTS, {"prompt": "a", "suffix": CANARY}),
        (TEXTS, {"prompt": [[CANARY]]}),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_errors_repeat_little(client, route, values):
    answer = client.post(route, json=values)
    assert 400 <= answer.status_code < 500
    assert answer.text.count("知更鸟") <= 100, "at most 300 characters"


def test_odd_keys_in_an_error_can_be_sent(client):
    answer = client.post(CLASSIFY, content=b'{"text": "a", "\\ud800\\n\\u0000": 1}', headers=JSON)
    assert (answer.status_code, said(answer)) == (422, "invalid_request")


class TestParser:
    """Each guard of the parser, and that without it the input would have gone through."""

    @pytest.mark.parametrize("text", ["NaN", "1e999", '{"a": 1, "a": 2}'])
    def test_plain_json_would_take_it(self, text):
        json.loads(text)
        with pytest.raises(ApiError):
            parse_json(text.encode(), 10)

    @pytest.mark.parametrize(
        ("text", "depth"),
        [
            ("1", 0),
            ('"[[[["', 0),
            ("[]", 1),
            ("{}", 1),
            ("[{}]", 2),
            ('{"a": [[], {"b": []}]}', 4),
            ('["\\"[[[", [1]]', 2),
            ('["\\\\", [[1]]]', 3),
            ('[[1], "]]]]", [[2]]]', 3),
            ("[[[[[[]]]]]]", 6),
        ],
    )
    def test_depth(self, text, depth):
        json.loads(text)
        assert not is_deeper(text.encode(), max(depth, 0))
        if depth:
            assert is_deeper(text.encode(), depth - 1)

    @pytest.mark.parametrize("text", ["]", "[[[", "}{", "[}", '"', '"\\', "[" * 40])
    def test_depth_of_what_is_no_json(self, text):
        assert is_deeper(text.encode(), 32) == (len(text) == 40)

    def test_without_the_depth_check_the_parser_would_give_up(self, monkeypatch):
        monkeypatch.setattr(body_module, "is_deeper", lambda *_: False)
        with pytest.raises(RecursionError):
            parse_json(b"[" * DEEP, 32)
