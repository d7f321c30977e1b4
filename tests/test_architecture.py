"""The shape of the package: imports point down the list, start-up is light, files stay small, nothing dangerous."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "fenlei"
# top to bottom; a module may import its own layer and those below
LAYERS = [
    "cli", "server", "export", "distributed", "classifier", "training", "inference", "evaluation", "modeling",
    "prompting", "data", "tracking", "artifact", "durable", "config", "config_parts",
    "errors", "console", "caches",
]  # fmt: skip
HEAVY = {
    "torch", "transformers", "peft", "datasets", "modelscope", "swanlab", "sklearn", "pyarrow", "pandas", "numpy",
    "matplotlib", "huggingface_hub", "accelerate", "fastapi", "uvicorn", "starlette", "prometheus_client",
}  # fmt: skip


def modules():
    return sorted(SRC.rglob("*.py"))


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fenlei."):
            yield node.module, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("fenlei."):
                    yield alias.name, node.lineno


def layer_of(module: str) -> int | None:
    part = module.split(".")[1]
    return LAYERS.index(part) if part in LAYERS else None


def upward(path: Path) -> list[str]:
    own = layer_of(".".join(["fenlei", *path.relative_to(SRC).with_suffix("").parts]))
    if own is None:
        return []
    found = ((module, line, layer_of(module)) for module, line in imports(path))
    return [
        f"{path.name}:{line} imports {module}" for module, line, layer in found if layer is not None and layer < own
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(SRC).as_posix())
def test_imports_point_down(path):
    assert upward(path) == []


def test_an_upward_import_is_seen(tmp_path, monkeypatch):
    """Negative control."""
    bad = tmp_path / "data" / "bad.py"
    bad.parent.mkdir()
    lines = "from fenlei.training.run import train_classifier\nfrom fenlei.cli.common import status\n"
    bad.write_text(lines + "from fenlei.errors import DataError\n", encoding="utf-8")
    monkeypatch.setitem(globals(), "SRC", tmp_path)
    assert upward(bad) == ["bad.py:1 imports fenlei.training.run", "bad.py:2 imports fenlei.cli.common"]


@pytest.mark.parametrize("command", ["import fenlei", "import sys; sys.argv = ['fenlei', '--help']; import fenlei.cli"])
def test_start_up_imports_nothing_heavy(command):
    """What keeps `import fenlei` and `fenlei --help` under half a second; the time itself is in docs/benchmarks.md."""
    code = f"{command}\nimport sys\nprint(' '.join(sorted(set(m.split('.')[0] for m in sys.modules))))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY.isdisjoint(loaded)


def test_files_stay_small():
    long = {p.relative_to(SRC).as_posix(): n for p in modules() if (n := len(p.read_bytes().split(b"\n"))) > 450}
    assert not long


def test_nothing_that_can_run_code_is_called():
    """State is JSON and safetensors: no pickle, eval, exec, shell."""
    banned = {"eval", "exec", "compile"}
    found = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Name) and node.func.id in banned:
                    found.append(f"{path.name}:{node.lineno} {node.func.id}")
                if any(k.arg in {"shell", "allow_pickle"} and getattr(k.value, "value", 0) for k in node.keywords):
                    found.append(f"{path.name}:{node.lineno} keyword")
                if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in {
                    "torch.load",
                    "yaml.load",
                    "pickle.loads",
                }:
                    found.append(f"{path.name}:{node.lineno} {ast.unparse(node.func)}")
    assert not found
