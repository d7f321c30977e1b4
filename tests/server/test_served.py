"""The real thing: ``fenlei serve`` with classifiers on a tiny model, compared with all other ways to ask them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fenlei import TextClassifier
from tests.cli.test_commands import fenlei  # noqa: F401  a fixture
from tests.server.client import opened
from tests.server.made import MOOD, NEWS, ON_CPU, examples
from tests.server.process import Server

KEY = "k" * 24
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
CURL = shutil.which("curl")


@pytest.fixture(scope="module")
def root(news_folder, mood_folder, tmp_path_factory):
    """Where classifiers may be added from."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(mood_folder, root / "mood")
    shutil.copytree(news_folder, root / "damaged")
    (root / "damaged" / "labels.json").write_text("{}", "utf-8")
    (root.parent / f"{root.name}-keys").write_text(KEY, "utf-8")
    return root


@pytest.fixture(scope="module")
def server(news_folder):
    with Server([f"news={news_folder}", "--offline", "--set", "model.device=cpu"]) as found:
        yield found


class TestEverySurfaceAgrees:
    """Promise 15."""

    TEXTS = [row.text for row in examples(24, seed=5)] + ["国足今晚迎战韩国队" * 60, "", "a\0b", "<|im_end|>"]

    @pytest.fixture(scope="class")
    def direct(self, news_folder):
        return TextClassifier.load(news_folder, overrides=ON_CPU).classify(self.TEXTS)

    def same(self, results, direct):
        for result, prediction in zip(results, direct, strict=True):
            assert result["label"] == prediction.label
            assert result["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
            assert result["abstained"] == prediction.abstained
            assert result["truncated"] == prediction.truncated

    def test_http_and_python(self, server, direct):
        with server.client() as client:
            together = client.post("/v1/classify", json={"texts": self.TEXTS}).json()["results"]
            alone = [client.post("/v1/classify", json={"text": t}).json()["results"][0] for t in reversed(self.TEXTS)]
        self.same(together, direct)
        self.same(alone[::-1], direct)
        assert {r["truncated"] for r in together} == {True, False}
        assert {r["abstained"] for r in together} == {True, False}

    def test_http_and_the_command_line(self, server, news_folder, fenlei, tmp_path):  # noqa: F811
        texts = [text for text in self.TEXTS if text]  # a file's empty rows are put aside
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
        code, _, err = fenlei("predict", news_folder, source, "--out", out, *ON_CPU)
        assert code == 0, err
        rows = [json.loads(line) for line in out.read_text("utf-8").split("\n") if line]
        with server.client() as client:
            results = client.post("/v1/classify", json={"texts": texts}).json()["results"]
        for row, result in zip(rows, results, strict=True):
            assert {k: row[k] for k in ("label", "abstained", "truncated")} == {
                k: result[k] for k in ("label", "abstained", "truncated")
            }
            assert row["probabilities"] == pytest.approx(result["probabilities"], abs=1e-5)

    def test_explanations(self, server, news_folder):
        text = "国足今晚迎战韩国队。股市大涨。基金经理看好银行股。"
        there = TextClassifier.load(news_folder, overrides=ON_CPU).explain(text).to_dict()
        with server.client() as client:
            here = client.post("/v1/classify", json={"text": text, "explain": True}).json()["results"][0]
        assert here["label"] == there["label"]
        assert here["explanation"]["runner_up"] == there["runner_up"]
        for found, expected in zip(here["explanation"]["sentences"], there["sentences"], strict=True):
            assert found["text"] == expected["text"]
            assert found["change"] == pytest.approx(expected["change"], abs=2e-5)

    def test_thresholds_and_candidates(self, server, direct):
        with server.client() as client:
            ask = {"texts": self.TEXTS, "threshold": 0.7, "candidates": list(NEWS[:2])}
            results = client.post("/v1/classify", json=ask).json()["results"]
        assert all(set(r["probabilities"]) == set(NEWS[:2]) for r in results)
        assert all(r["abstained"] == (r["confidence"] < 0.7) for r in results)


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
class TestDocs:
    """The quick start of docs/serving.md, as it stands there."""

    def blocks(self, language):
        start = DOCS.read_text("utf-8").split("## Quick start")[1].split("\n## ")[0]
        return re.findall(rf"```{language}\n(.*?)```", start, re.DOTALL)

    def test_curl(self, server, tmp_path):
        (script,) = [block for block in self.blocks("bash") if block.startswith("curl")]
        script = script.replace("http://127.0.0.1:8000", server.url).replace("curl -s", "curl -sS --noproxy '*'")
        done = subprocess.run(["bash", "-e"], input=script, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        decoder, found, rest = json.JSONDecoder(), [], done.stdout
        while rest:
            answer, end = decoder.raw_decode(rest)
            found.append(answer)
            rest = rest[end:].lstrip()
        assert [len(answer["results"]) for answer in found] == [1, 2]
        assert [len(r["probabilities"]) for r in found[1]["results"]] == [2, 2]

    @pytest.mark.parametrize("number", [0, 1])
    def test_python(self, server, number):
        script = self.blocks("python")[number].replace("http://127.0.0.1:8000", server.url)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={"NO_PROXY": "*"})
        assert done.returncode == 0, done.stderr
        assert any(label in done.stdout for label in NEWS)

    def test_every_option_is_told(self):
        from typer.main import get_command

        from fenlei.cli import app

        text = DOCS.read_text("utf-8")
        for parameter in get_command(app).commands["serve"].params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert any(
                    f"`{name}" in text or f" {name}" in text for name in (*parameter.opts, *parameter.secondary_opts)
                )

    def test_every_metric_is_told(self, server):
        text = DOCS.read_text("utf-8")
        with server.client() as client:
            names = set(re.findall(r"^# TYPE (fenlei_\w+?)(?:_created)? ", client.get("/metrics").text, re.MULTILINE))
        assert len(names) > 15
        assert [name for name in names if name not in text] == []


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
def test_curl_sends_a_hundred_megabytes(server, tmp_path):
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(100_000_000)
    before = server.memory
    command = [CURL, "-sS", "--noproxy", "*", "-o", "-", "-w", "\n%{http_code}", "-H", "Content-Type: application/json"]
    for more in ([], ["-H", "Expect:"], ["-H", "Transfer-Encoding: chunked"]):
        done = subprocess.run(
            [*command, *more, "--data-binary", f"@{big}", f"{server.url}/v1/classify"], capture_output=True
        )
        assert done.stdout.endswith(b"\n413"), (more, done)
        assert b"body_too_large" in done.stdout
    assert server.memory - before < 50_000_000


def test_added_and_removed(news_folder, root):
    """With real adapters: both answer as each does alone."""
    arguments = [f"news={news_folder}", "--offline", "--set", "model.device=cpu", "--admin", "--admin-root", root]
    text = "国足今晚迎战韩国队"
    expected = {
        name: TextClassifier.load(folder, overrides=ON_CPU).classify([text])[0].probabilities
        for name, folder in (("news", news_folder), ("mood", root / "mood"))
    }
    with Server([*arguments, "--api-key-file", root.parent / f"{root.name}-keys"]) as server:
        with server.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
            added = client.post("/v1/admin/models", json={"name": "mood", "path": "mood"})
            assert added.status_code == 201, added.text
            assert added.json()["labels"] == list(MOOD)
            for name, probabilities in expected.items():
                found = client.post("/v1/classify", json={"text": text, "model": name}).json()["results"][0]
                assert found["probabilities"] == pytest.approx(probabilities, abs=1e-5)
            damaged = client.post("/v1/admin/models", json={"name": "x", "path": "damaged"})
            assert (damaged.status_code, damaged.json()["error"]["code"]) == (422, "not_a_classifier")
            assert str(root) not in damaged.text
            assert client.delete("/v1/admin/models/mood").status_code == 200
            assert client.post("/v1/classify", json={"text": text, "model": "mood"}).status_code == 404
            again = client.post("/v1/admin/models", json={"name": "feelings", "path": "mood"})
            assert again.status_code == 201
            found = client.post("/v1/classify", json={"text": text, "model": "feelings"}).json()["results"][0]
            assert found["probabilities"] == pytest.approx(expected["mood"], abs=1e-5)
        server.signal()
        assert server.wait() == 0


class TestNothingIsOpened:
    """Promise 10: paths and addresses as texts are texts. Python itself tells what is opened."""

    TEXTS = ("file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "../../etc/passwd", "\\\\host\\share")

    @pytest.fixture
    def watched(self):
        """What is opened or connected to while the test runs."""
        seen, on = [], [True]

        def hook(event, arguments):
            if on[0] and event in {"open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.listdir"}:
                seen.append((event, repr(arguments)))

        sys.addaudithook(hook)
        yield seen
        on[0] = False

    def test_by_a_request(self, models, watched):
        with opened(models) as client:
            client.post("/v1/classify", json={"text": "a", "explain": True})  # what is imported late is there now
            del watched[:]
            for body in ({"texts": list(self.TEXTS)}, *({"text": text, "explain": True} for text in self.TEXTS)):
                answer = client.post("/v1/classify", json=body)
                assert answer.status_code == 200
                assert all(result["label"] in NEWS for result in answer.json()["results"])
            assert watched == []

    def test_the_watch_sees(self, watched):
        """Negative control."""
        with open(DOCS, "rb"):
            pass
        assert any(event == "open" and "serving.md" in what for event, what in watched)
