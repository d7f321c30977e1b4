"""The hubs' real libraries, over real HTTP, against small servers on this machine that speak the hubs' protocols."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def send(self, data, *, head, code=200, **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream" if isinstance(data, bytes) else "application/json")
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if not head:
            self.wfile.write(body)


class HuggingFaceServer(_Server):
    def answer(self, *, head):
        root, path = self.server.root, urllib.parse.urlsplit(self.path).path
        files = {p.name: p.read_bytes() for p in root.iterdir()}
        self.server.asked.append(path)
        if "/tree/" in path:
            listed = [{"type": "file", "path": n, "size": len(d), "oid": "x"} for n, d in files.items()]
            self.send(listed, head=head)
        elif path.startswith("/api/models/"):
            self.send({"id": "Qwen/Tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}, head=head)
        elif "/resolve/" in path and path.rsplit("/", 1)[1] in files:
            data = files[path.rsplit("/", 1)[1]]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self.send(data, head=head, ETag=etag, X_Repo_Commit=COMMIT)
        else:
            self.send({}, head=head, code=404)


class ModelScopeServer(_Server):
    def answer(self, *, head):
        root, url = self.server.root, urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        self.server.asked.append(query.get("FilePath", [url.path])[0])
        if url.path.endswith("/repo/files"):
            listed = [
                {
                    "Path": p.name,
                    "Name": p.name,
                    "Type": "blob",
                    "Size": p.stat().st_size,
                    "Sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
                }
                for p in root.iterdir()
            ]
            self.send({"Code": 200, "Success": True, "Data": {"Files": listed}}, head=head)
        elif url.path.endswith("/repo"):
            self.send((root / query["FilePath"][0]).read_bytes(), head=head)
        else:
            self.send({"Code": 200, "Success": True, "Data": {}}, head=head)


@pytest.fixture
def serve(model_folder):
    servers = []

    def start(handler):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.root, server.asked = model_folder, []
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


_PULL = """
import sys
from fenlei.modeling.sources import resolve
first = resolve(sys.argv[1], cache_dir=sys.argv[2])
assert resolve(sys.argv[1], cache_dir=sys.argv[2], offline=True) == first
print(first.source, first.revision, *first.weights_sha256().values())
"""


@pytest.mark.parametrize(
    ("handler", "setting", "source", "revision"),
    [
        (HuggingFaceServer, "HF_ENDPOINT", "huggingface", COMMIT),
        (ModelScopeServer, "MODELSCOPE_ENDPOINT", "modelscope", "master"),
    ],
)
def test_download(handler, setting, source, revision, serve, model_folder, tmp_path):
    (model_folder / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    server = serve(handler)
    env = {**os.environ, setting: f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
    env |= {"MODELSCOPE_CACHE": str(tmp_path / "ms"), "HF_HOME": str(tmp_path / "hf")}
    prefix = "hf:" if source == "huggingface" else "ms:"
    command = [sys.executable, "-c", _PULL, f"{prefix}Qwen/Tiny", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = hashlib.sha256((model_folder / "model.safetensors").read_bytes()).hexdigest()
    assert done.stdout.split() == [source, revision, weights]  # the libraries' own talk went elsewhere
    assert any("model.safetensors" in path for path in server.asked)
    assert not any("pytorch_model.bin" in path for path in server.asked)
    assert not list((tmp_path / "cache").rglob("*.bin"))
