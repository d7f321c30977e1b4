"""Promise 22 and 23: who may ask, from which pages, for which folders; each guard also switched off."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from fenlei.errors import ConfigError
from fenlei.server import run, security
from fenlei.server.errors import ApiError
from fenlei.server.routes_admin import inside
from fenlei.server.security import SECURITY_HEADERS
from fenlei.server.settings import ServeSettings
from tests.server.client import opened, said
from tests.server.fake_models import Panic

KEY, OTHER = "k" * 20 + "-one", "k" * 20 + "-two"
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
CLASSIFY, BODY = "/v1/classify", {"text": "好"}


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEY}\n\n  {OTHER}  \n", "utf-8")
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class TestHost:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:9999", "LOCALHOST", "[::1]:8000"])
    def test_own_names(self, host):
        with opened() as client:
            assert client.post(CLASSIFY, json=BODY, headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.2",
         "localhost@evil.example", "evil.example/localhost", "localhost#", "", "[::2]", "[", "localhost:8000@evil"],
    )  # fmt: skip
    @pytest.mark.parametrize("path", ["/", "/v1/models", "/health/live", "/metrics"])
    def test_other_names(self, host, path):
        with opened() as client:
            answer = client.get(path, headers={"Host": host})
            assert (answer.status_code, said(answer)) == (403, "host_not_allowed")

    def test_allowed_names(self):
        with opened(allowed_hosts=("models.example", "[fd00::1]")) as client:
            for host in ("models.example", "Models.Example:443", "[fd00::1]:80", "localhost"):
                assert client.get("/v1/models", headers={"Host": host}).status_code == 200
            assert client.get("/v1/models", headers={"Host": "other.example"}).status_code == 403

    def test_all_addresses(self, key_file):
        """Where the server listens on all of them, an address is a name of it; it cannot be rebound like a name."""
        with opened(host="0.0.0.0", api_key_file=key_file) as client:
            for host, status in (("10.0.0.7:8000", 200), ("localhost", 200), ("evil.example", 403)):
                assert client.get("/v1/models", headers={"Host": host, **bearer(KEY)}).status_code == status

    @pytest.mark.parametrize(
        ("listens", "host"), [("127.0.0.2", "127.0.0.2:8000"), ("[::1]", "[::1]:8000"), ("::1", "[::1]")]
    )
    def test_the_address_that_it_listens_on(self, listens, host):
        with opened(host=listens) as client:
            for name, status in ((host, 200), ("localhost", 200), ("127.0.0.3", 403)):
                assert client.post(CLASSIFY, json=BODY, headers={"Host": name}).status_code == status

    @pytest.mark.parametrize("host", ["", "localhost@evil.example", "evil.example/"])
    def test_no_name_is_no_name_of_all_addresses(self, host):
        with opened(host="", no_auth=True) as client:
            assert client.get("/v1/models", headers={"Host": host}).status_code == 403
            assert client.get("/v1/models", headers={"Host": "10.0.0.7"}).status_code == 200

    def test_without_the_guard(self):
        with opened(allowed_hosts=("*",)) as client:
            assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 200


class TestOrigin:
    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("http://127.0.0.1:8000", "127.0.0.1:8000"),
            ("http://localhost:8000", "localhost:8000"),
            ("http://localhost", "localhost:80"),
            ("https://localhost", "localhost"),  # behind a proxy that speaks TLS
            ("https://localhost:8443", "localhost:8443"),
        ],
    )
    def test_own_pages(self, origin, host):
        with opened() as client:
            assert client.post(CLASSIFY, json=BODY, headers={"Host": host, "Origin": origin}).status_code == 200

    def test_pages_behind_a_proxy(self):
        """As docs/serving.md has nginx pass the name that the browser uses, on a port of its own, too."""
        (variable,) = re.findall(r"proxy_set_header Host (\$\w+);", DOCS.read_text("utf-8"))
        with opened(allowed_hosts=("models.example",)) as client:
            for port in ("", ":8443"):
                host = {"$http_host": f"models.example{port}", "$host": "models.example"}[variable]
                headers = {"Host": host, "Origin": f"https://models.example{port}"}
                assert client.post(CLASSIFY, json=BODY, headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "origin",
        ["http://evil.example", "https://evil.example:8000", "null", "http://localhost:3000", "http://127.0.0.1",
         "file://", "chrome-extension://abc", "", "http://127.0.0.1:8000.evil.example", "http://[", "http://x:y"],
    )  # fmt: skip
    @pytest.mark.parametrize("method", ["POST", "OPTIONS", "GET"])
    def test_other_pages(self, origin, method):
        with opened() as client:
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = client.request(method, CLASSIFY, json=BODY, headers=headers)
            assert (answer.status_code, said(answer)) == (403, "origin_not_allowed")
            assert not [name for name in answer.headers if name.startswith("access-control")]

    def test_without_the_guard(self, monkeypatch):
        monkeypatch.setattr(security, "_check_origin", lambda *_: None)
        with opened() as client:
            assert client.post(CLASSIFY, json=BODY, headers={"Origin": "http://evil.example"}).status_code == 200


class TestKey:
    def test_every_key_of_the_file(self, key_file):
        with opened(api_key_file=key_file) as client:
            for key in (KEY, OTHER):
                assert client.post(CLASSIFY, json=BODY, headers=bearer(key)).status_code == 200
            assert client.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [{}, bearer(""), bearer("wrong"), bearer(KEY[:-1]), bearer(KEY + "x"), bearer(KEY.upper()), bearer("# ours"),
         bearer("é"), {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": KEY}],
    )  # fmt: skip
    @pytest.mark.parametrize(
        ("method", "path"),
        [("POST", CLASSIFY), ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"),
         ("GET", "/v1/models/news"), ("GET", "/metrics"), ("GET", "/nothing")],
    )  # fmt: skip
    def test_no_or_wrong_key(self, key_file, headers, method, path):
        encoded = {name: value.encode("utf-8") for name, value in headers.items()}
        with opened(api_key_file=key_file) as client:
            answer = client.request(method, path, json=BODY, headers=encoded)
            assert (answer.status_code, said(answer)) == (401, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert KEY not in answer.text

    @pytest.mark.parametrize(
        "path", ["/", "/docs", "/openapi.json", "/health/live", "/health/ready", "/assets/docs.js"]
    )
    def test_open_without_a_key(self, key_file, path):
        with opened(api_key_file=key_file) as client:
            assert client.get(path).status_code == 200

    def test_no_key_where_none_is_set(self):
        with opened() as client:
            assert client.post(CLASSIFY, json=BODY).status_code == 200

    def test_every_key_is_compared_in_constant_time(self, key_file, monkeypatch):
        compared = []

        def compare(a, b):
            compared.append((len(a), len(b)))
            return a == b

        monkeypatch.setattr(security.hmac, "compare_digest", compare)
        with opened(api_key_file=key_file) as client:
            client.get("/v1/models", headers=bearer(KEY))
            client.get("/v1/models", headers=bearer("x"))
        assert compared == [(32, 32)] * 4

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"", "no key"), (b"# only\n\n", "no key"), (b"short\n", "line 1"), (b"x" * 20 + b" y\n", "line 1"),
         (b"ok" * 10 + b"\n" + "键".encode() * 20, "line 2"), (b"\xff" * 30, "UTF-8")],
    )  # fmt: skip
    def test_bad_key_files(self, tmp_path, content, words):
        (tmp_path / "keys").write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            ServeSettings(api_key_file=tmp_path / "keys").keys()

    def test_absent_key_file(self, tmp_path):
        with pytest.raises(ConfigError, match="No such file"):
            ServeSettings(api_key_file=tmp_path / "keys").keys()


class TestAddress:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "[::1]", "localhost"])
    def test_this_machine_needs_no_key(self, host):
        ServeSettings(host=host).check()

    @pytest.mark.parametrize("host", ["127.0.0.2", "[::1]", "::1"])
    def test_it_is_listened_on(self, host):
        bare, family = ("::1", socket.AF_INET6) if ":" in host else (host, socket.AF_INET)
        try:
            socket.create_server((bare, 0), family=family).close()
        except OSError as error:
            pytest.skip(f"this machine has no {bare}: {error}")
        settings = ServeSettings(host=host, port=0)
        with run._listen(settings) as listener:
            port = listener.getsockname()[1]
            assert run._url(settings, listener) == f"http://{'[::1]' if ':' in host else host}:{port}"
            listener.listen()
            socket.create_connection((bare, port)).close()

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "models.example", "127.0.0.1.evil.example"])
    def test_others_need_a_key_or_a_word(self, host, key_file):
        with pytest.raises(ConfigError, match="--api-key-file"):
            ServeSettings(host=host).check()
        ServeSettings(host=host, no_auth=True).check()
        ServeSettings(host=host, api_key_file=key_file).check()

    def test_contradictions(self, key_file, tmp_path):
        for values, words in (
            ({"no_auth": True, "api_key_file": key_file}, "exclude each other"),
            ({"admin": True, "admin_root": tmp_path}, "--api-key-file"),
            ({"admin": True, "api_key_file": key_file}, "--admin-root"),
            ({"admin_root": tmp_path}, "--admin"),
            ({"admin": True, "api_key_file": key_file, "admin_root": tmp_path / "absent"}, "no such folder"),
        ):
            with pytest.raises(ConfigError, match=words):
                ServeSettings(**values).check()


class TestHeaders:
    @pytest.mark.parametrize(
        ("method", "path", "headers"),
        [("GET", "/", {}), ("GET", "/docs", {}), ("GET", "/assets/docs.js", {}), ("GET", "/v1/models", {}),
         ("GET", "/nothing", {}), ("PUT", "/", {}), ("POST", CLASSIFY, {}), ("GET", "/metrics", {}),
         ("GET", "/", {"Host": "evil.example"}), ("GET", "/", {"Origin": "null"})],
    )  # fmt: skip
    def test_on_every_answer(self, method, path, headers):
        with opened() as client:
            answer = client.request(method, path, headers=headers)
            for name, value in SECURITY_HEADERS.items():
                assert answer.headers.get_list(name) == [value]
            assert "no-store" in answer.headers["Cache-Control"]
            assert "server" not in answer.headers
            assert "access-control-allow-origin" not in answer.headers

    @pytest.mark.parametrize("kind", [RuntimeError, Panic])
    def test_of_a_failure(self, monkeypatch, kind):
        """Negative control of the routes' own care: a fault in one of them is a 500 that tells nothing."""
        from fenlei.server import routes_models

        def fail(_served):
            raise kind("canary")

        monkeypatch.setattr(routes_models, "describe_model", fail)
        with opened() as client:
            answer = client.get("/v1/models")
            assert (answer.status_code, said(answer)) == (500, "internal_error")
            assert "canary" not in answer.text
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert client.get("/health/live").status_code == 200

    def test_the_policy_allows_no_other_place(self):
        policy = SECURITY_HEADERS["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert "http" not in policy
        assert policy.startswith("default-src 'none'")


class TestPaths:
    """Of the admin route: the only path that a request may name."""

    @pytest.fixture
    def root(self, tmp_path):
        root = tmp_path / "root"
        (root / "good" / "classifier").mkdir(parents=True)
        (tmp_path / "root-evil").mkdir()
        (root / "out").symlink_to(tmp_path)
        (root / "in").symlink_to(root / "good")
        os.symlink("loop", root / "loop")
        return root

    @pytest.mark.parametrize("path", ["good", "good/classifier", "./good", "in", "good/", "新闻"])
    def test_inside(self, root, path):
        assert inside(root, path).is_relative_to(root.resolve())

    @pytest.mark.parametrize(
        "path",
        ["..", "../root-evil", "good/../../root-evil", "/etc", "//etc", "out", "out/root-evil", "loop", ".", "",
         "good\0", "good\n", "..\\root-evil", "good\\..\\..", "C:good", "%2e%2e/root-evil", "file:///etc", "~\0",
         "http://evil.example/x", "good/*", "x" * 5000],
    )  # fmt: skip
    def test_outside(self, root, path):
        with pytest.raises(ApiError) as found:
            inside(root, path)
        assert found.value.code == "path_not_allowed"

    def test_a_prefix_is_not_enough(self, root):
        """Negative control: by its letters the neighbour begins like the root."""
        assert str(root.parent / "root-evil").startswith(str(root))
        with pytest.raises(ApiError):
            inside(root, "../root-evil")
