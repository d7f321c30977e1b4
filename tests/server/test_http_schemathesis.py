"""Promise 17 by machine: requests made from our own OpenAPI description, good and bad, over a socket.

The same requests every time; `make soak` makes many more, other ones each time.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.server.process import Server

OPERATIONS = [
    ("POST", "/v1/classify"), ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"), ("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/metrics"),
]  # fmt: skip
ADMIN = [("POST", "/v1/admin/models"), ("DELETE", "/v1/admin/models/{name}")]
# what a description in JSON Schema cannot say: which labels and classifiers there are, and that fields go together
KNOWN = {"unknown_candidate", "model_not_found", "no_user_message", "invalid_request", "path_not_allowed",
         "not_a_classifier"}  # fmt: skip
LONGEST = 100
KEY = "k" * 32
# wrong values may also be too large (413), which schemathesis does not count as refused
REFUSED = {"checks": {"negative_data_rejection": {"expected-statuses": ["4xx", 503]}}}
BOTH = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schemathesis")
    (folder / "keys").write_text(KEY, "utf-8")
    # schemathesis goes to the limits that the description names: small ones
    small = ["--max-text-chars", LONGEST, "--max-texts", 4, "--no-access-log"]
    admin = ["--api-key-file", folder / "keys", "--admin", "--admin-root", folder]
    with Server(["news", *admin, *small], hold=folder / "hold") as found:
        yield found


def probe(server, method, path, mode, examples, *, again=True):
    """Sends requests for an operation and checks each answer against the description."""
    config = schemathesis.Config.from_dict(REFUSED)
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)
    headers = {"Authorization": f"Bearer {KEY}"}
    statuses = set()

    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples, derandomize=again, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    def send(case):
        answer = case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])
        statuses.add(answer.status_code)
        assert answer.headers["x-content-type-options"] == ["nosniff"]
        if mode is GenerationMode.POSITIVE and answer.status_code >= 400:
            assert answer.json()["error"]["code"] in KNOWN | too_long(case), answer.text

    send()
    with server.client(headers=headers) as client:
        assert client.post("/v1/classify", json={"text": "好"}).status_code == 200
    return statuses


def too_long(case) -> set[str]:
    """Only a conversation's last user message has a limit, all its parts together: no JSON Schema can say that."""
    messages = case.body.get("messages", []) if isinstance(case.body, dict) else []
    last = next((m.get("content") for m in reversed(messages) if m["role"] == "user"), None) or ""
    text = last if isinstance(last, str) else "".join(part["text"] for part in last)
    return {"text_too_long"} if len(text) > LONGEST else set()


@pytest.mark.parametrize(("method", "path"), OPERATIONS + ADMIN, ids=lambda v: v)
def test_good_requests(server, method, path):
    statuses = probe(server, method, path, GenerationMode.POSITIVE, 40)
    if (method, path) in OPERATIONS[:4]:
        assert 200 in statuses


@pytest.mark.parametrize(("method", "path"), [*OPERATIONS[:3], ADMIN[0]], ids=lambda v: v)
def test_bad_requests(server, method, path):
    statuses = probe(server, method, path, GenerationMode.NEGATIVE, 40)
    # a few are good after all, e.g. where an unknown query parameter was added; schemathesis knows which
    assert statuses & {400, 422}
    assert max(statuses) < 500


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", {"text": "一。二。", "explain": True, "top_k": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 3}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
        ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 3}),
        ("/v1/completions", {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}),
    ],
)
def test_answers_that_chance_seldom_asks_for(server, path, body):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    case = schema[path]["POST"].Case(body=body, media_type="application/json")
    answer = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200


def test_the_description_names_every_route(server):
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == {*OPERATIONS, *ADMIN}


def test_a_wrong_description_is_noticed(server):
    """Negative control: a description that promises something else."""
    with server.client() as client:
        raw = client.get("/openapi.json").json()
    raw["components"]["schemas"]["Health"]["properties"]["status"]["type"] = "integer"
    schema = schemathesis.openapi.from_dict(raw)

    @given(case=schema["/health/live"]["GET"].as_strategy())
    @settings(max_examples=1, derandomize=True, database=None, deadline=None)
    def send(case):
        case.call_and_validate(base_url=server.url)

    with pytest.raises(BaseException, match="integer"):
        send()


@pytest.mark.soak
@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize(("method", "path"), [*OPERATIONS[:3], *ADMIN], ids=lambda v: v)
def test_many_requests(server, method, path, mode):
    if mode is GenerationMode.NEGATIVE and method == "DELETE":
        pytest.skip("a path has no wrong values")
    probe(server, method, path, mode, 1000, again=False)
