"""What the pages are made of, and that Swagger UI works under the policy, asking nobody else."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import pytest

import fenlei.server
from fenlei.server.assets import SWAGGER, assets
from tests.evaluation.report import chromium
from tests.server.client import opened
from tests.server.process import Server

HERE = Path(fenlei.server.__file__).parent
# of the files in the npm package swagger-ui-dist 5.35.0
VENDORED = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}


@pytest.fixture(scope="module")
def client():
    with opened() as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_only_what_is_there(client, path):
    page = client.get(path)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    parts = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert parts
    for part in parts:
        assert not part.startswith(("http", "/")), "relative, so that the page works below a path"
        assert client.get(f"/{part}").status_code == 200, part
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", page.text), "nothing inline"


def test_every_part_has_its_type(client):
    kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    for name in assets():
        answer = client.get(f"/assets/{name}")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == kinds.get(name.rsplit(".", 1)[1], "text/plain; charset=utf-8")


@pytest.mark.parametrize(
    "name",
    ["app.py", "../app.py", "..%2fapp.py", "%2e%2e%2fapp.py", "..%5capp.py", "docs.html", "index.html", "", "docs.js/",
     "//etc/passwd", "docs.js%00", "page/main.js", "swagger/docs.js"],
)  # fmt: skip
def test_names_are_no_paths(client, name):
    assert client.get(f"/assets/{name}").status_code == 404


@pytest.mark.parametrize("name", VENDORED)
def test_swagger_ui_is_unmodified(name):
    assert name in SWAGGER
    assert hashlib.sha256((HERE / "swagger" / name).read_bytes()).hexdigest() == VENDORED[name]


def test_the_description_is_complete(client):
    found = client.get("/openapi.json").json()
    names = set(found["components"]["schemas"])
    text = str(found)
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) == names
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["operationId"], where
            for status, answer in operation["responses"].items():
                assert answer["description"], where
                if status >= "4":
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorResponse"}, where
                if status in {"429", "503"}:
                    assert "Retry-After" in answer["headers"], where
    for name, schema in found["components"]["schemas"].items():
        assert schema.get("description"), name
    assert "HTTPValidationError" not in text


def test_the_description_follows_the_settings(tmp_path):
    (tmp_path / "keys").write_text("k" * 20, "utf-8")
    limits = {"max_texts": 7, "max_text_chars": 70}
    with opened(limits=limits, api_key_file=tmp_path / "keys") as client:
        found = client.get("/openapi.json").json()
    asked = found["components"]["schemas"]["ClassifyRequest"]["properties"]
    assert (asked["texts"]["maxItems"], asked["texts"]["items"]["maxLength"], asked["text"]["maxLength"]) == (7, 70, 70)
    assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert found["paths"]["/v1/classify"]["post"]["security"] == [{"key": []}]
    assert "401" in found["paths"]["/v1/classify"]["post"]["responses"]
    assert "security" not in found["paths"]["/health/live"]["get"]


@pytest.mark.skipif(chromium.BINARY is None, reason="no chromium here")
def test_swagger_ui_in_a_browser(tmp_path):
    with Server(["news"], hold=tmp_path / "hold") as server:
        browser = chromium.Browser()
        try:
            browser.call("Page.navigate", url=f"{server.url}/docs")
            deadline = time.monotonic() + 120
            while browser.run("document.documentElement?.dataset.ready") != "yes":
                assert time.monotonic() < deadline, browser.console
                time.sleep(0.1)
            shown = browser.run("document.body.innerText")
            assert "/v1/classify" in shown
            assert "/v1/chat/completions" in shown
            # what a click on Execute does
            browser.run(
                "fetch('v1/classify', {method: 'POST', headers: {'Content-Type': 'application/json'}, "
                "body: JSON.stringify({text: 'a'})}).then(r => r.status)"
            )
            assert not [line for line in browser.console if "Content Security Policy" in line], browser.console
            assert [url for url in browser.requests if not url.startswith((server.url, "data:", "about:"))] == []
            # negative control: markup that got into the page would not run, and it would be told
            browser.run(
                "document.body.append(Object.assign(document.createElement('script'), {textContent: 'bad = 1'})), 1"
            )
            assert browser.run("typeof bad") == "undefined"
            assert [line for line in browser.console if "Content Security Policy" in line]
        finally:
            browser.close()
