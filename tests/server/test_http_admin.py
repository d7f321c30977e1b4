"""Classifiers are added and removed by request; fakes here, real ones in ``test_served.py``."""

from __future__ import annotations

import threading

import pytest

from fenlei.artifact import MANIFEST
from tests.server.client import opened, said, service_of
from tests.server.fake import fake_models, predictor_of
from tests.server.process import until

KEY = "k" * 24
ADMIN = "/v1/admin/models"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for folder in (root / "good", root / "deep" / "better", root / "empty", tmp_path / "root-evil"):
        folder.mkdir(parents=True)
    for folder in (root / "good", root / "deep" / "better", tmp_path / "root-evil"):
        (folder / MANIFEST).write_text("{}", "utf-8")
    (root / "link").symlink_to(tmp_path / "root-evil")
    (tmp_path / "keys").write_text(KEY, "utf-8")
    return root


@pytest.fixture
def client(root):
    with opened(admin=True, admin_root=root, api_key_file=root.parent / "keys") as found:
        found.headers["Authorization"] = f"Bearer {KEY}"
        yield found


def test_added_and_removed(client):
    added = client.post(ADMIN, json={"name": "more", "path": "deep/better"})
    assert added.status_code == 201
    assert added.json()["id"] == "more"
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["news", "mood", "more"]
    assert client.post("/v1/classify", json={"text": "a", "model": "more"}).json()["model"] == "more"
    removed = client.delete(f"{ADMIN}/more")
    assert (removed.status_code, removed.json()) == (200, {"id": "more", "object": "model", "deleted": True})
    assert client.post("/v1/classify", json={"text": "a", "model": "more"}).status_code == 404


def test_requests_in_flight_are_answered(root):
    models = fake_models()
    with opened(models, admin=True, admin_root=root, api_key_file=root.parent / "keys") as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        predictor_of(models, "mood").go.clear()
        answers = []
        ask = threading.Thread(
            target=lambda: answers.append(client.post("/v1/classify", json={"text": "a", "model": "mood"}))
        )
        ask.start()
        until(lambda: service_of(client).load()["in_flight_texts"] == 1, "it is being scored")
        predictor = predictor_of(models, "mood")
        assert client.delete(f"{ADMIN}/mood").status_code == 200
        predictor.go.set()
        ask.join()
        assert answers[0].json()["model"] == "mood"


@pytest.mark.parametrize(
    ("values", "status", "code"),
    [
        ({"name": "news", "path": "good"}, 409, "model_exists"),
        ({"name": "x", "path": "empty"}, 422, "not_a_classifier"),
        ({"name": "x", "path": "absent"}, 422, "not_a_classifier"),
        ({"name": "x", "path": "../root-evil"}, 403, "path_not_allowed"),
        ({"name": "x", "path": "link"}, 403, "path_not_allowed"),
        ({"name": "x", "path": "/etc"}, 403, "path_not_allowed"),
        ({"name": "x", "path": "x" * 300}, 403, "path_not_allowed"),
        ({"name": "../x", "path": "good"}, 422, "invalid_request"),
        ({"name": ".x", "path": "good"}, 422, "invalid_request"),
        ({"name": "", "path": "good"}, 422, "invalid_request"),
        ({"name": "x"}, 422, "invalid_request"),
        ({"name": "x", "path": "good", "url": "http://x"}, 422, "invalid_request"),
        ({"name": "x\n", "path": "good"}, 422, "invalid_request"),
    ],
)
def test_refused(client, root, values, status, code):
    answer = client.post(ADMIN, json=values)
    assert (answer.status_code, said(answer)) == (status, code)
    assert str(root) not in answer.text
    assert len(client.get("/v1/models").json()["data"]) == 2


def test_one_is_loaded_at_a_time(root, monkeypatch):
    """In a thread of its own: what others do in threads, like reading large bodies, does not wait."""
    models, go = fake_models(), threading.Event()
    add, inside = models.add, []

    def slow(name, folder):
        inside.append(threading.current_thread().name)
        assert go.wait(60)
        return add(name, folder)

    monkeypatch.setattr(models, "add", slow)
    with opened(models, admin=True, admin_root=root, api_key_file=root.parent / "keys") as client:
        client.headers["Authorization"] = f"Bearer {KEY}"

        def ask(name):
            statuses.append(client.post(ADMIN, json={"name": name, "path": "good"}).status_code)

        statuses: list[int] = []
        threads = [threading.Thread(target=ask, args=(f"x{n}",)) for n in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: service_of(client).in_flight == 5 and inside, "they are being loaded")
        assert client.post("/v1/classify", json={"text": "a" * 100_000}).status_code == 200
        assert inside == ["fenlei-add_0"]
        go.set()
        for thread in threads:
            thread.join()
    assert statuses == [201] * 5


def test_what_cannot_be_removed(client):
    missing = client.delete(f"{ADMIN}/nobody")
    assert (missing.status_code, said(missing)) == (404, "model_not_found")
    assert client.delete(f"{ADMIN}/mood").status_code == 200
    last = client.delete(f"{ADMIN}/news")
    assert (last.status_code, said(last)) == (409, "model_conflict")
    assert client.delete(f"{ADMIN}/..%2f..%2fnews").status_code == 404


def test_a_key_is_needed(client):
    del client.headers["Authorization"]
    assert client.post(ADMIN, json={"name": "x", "path": "good"}).status_code == 401
    assert client.delete(f"{ADMIN}/mood").status_code == 401


def test_off_by_default(root):
    with opened(api_key_file=root.parent / "keys") as client:
        headers = {"Authorization": f"Bearer {KEY}"}
        assert client.post(ADMIN, json={"name": "x", "path": "good"}, headers=headers).status_code == 404
        assert client.delete(f"{ADMIN}/mood", headers=headers).status_code == 404
        assert ADMIN not in client.get("/openapi.json").json()["paths"]
