"""A built-in model made of tiny wheels, and what a test wants to know about a cache."""

from __future__ import annotations

from fenlei.modeling.sources import builtin, cache
from fenlei.modeling.sources.builtin import BuiltinModel, Part
from tests.modeling.sources.tiny import sha256

NAME = "tiny-builtin"
PARTS = 2


def cut(data):
    size = -(-len(data) // PARTS)
    return [data[i : i + size] for i in range(0, len(data), size)]


def project(number):
    return f"fenlei-test-part{number}"


def member(number):
    return f"fenlei_test_part{number}/data/part{number:02d}.bin"


def register(monkeypatch, data, **more):
    parts = tuple(Part(project(n), "1.0", member(n), len(p)) for n, p in enumerate(cut(data), 1))
    values = {"sha256": sha256(data), "converted_bytes": 10**6, **more}
    model = BuiltinModel(name=NAME, title="tiny", licence="MIT", parts=parts, **values)
    monkeypatch.setitem(builtin.BUILTIN, NAME, model)
    return model


def whole_entries(tmp_path):
    return [entry.path.name for entry in cache.ModelCache(tmp_path / "cache").entries()]


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
