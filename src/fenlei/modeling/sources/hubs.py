"""ModelScope and Hugging Face: complete local copies first, then a download with the hub's own library."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from fenlei.errors import ModelError
from fenlei.modeling.sources.cache import ModelCache, safe_name
from fenlei.modeling.sources.folder import check_model_folder, is_complete
from fenlei.modeling.sources.progress import Bars
from fenlei.modeling.sources.reach import host_of, reachable
from fenlei.modeling.sources.spec import Spec

# Python files are inert text until the user sets model.trust_remote_code; pickles are never fetched.
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
UNWANTED = ("consolidated*.safetensors",)  # a second copy of the weights in another format
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class HubFolder:
    """A complete snapshot: its folder, hub and revision."""

    path: Path
    source: str
    revision: str | None


class Hub(Protocol):
    """What is needed of a hub; ``key`` is also the ``source`` of a model folder."""

    key: str
    title: str

    def endpoint(self) -> str:
        """The address that its library will ask."""

    def local(self, name: str, revision: str | None, cache_dir: Path | None) -> Path:
        """The folder in a local cache; raises anything if there is none. Touches no network."""

    def listing(self, name: str, revision: str | None) -> dict[str, int]:
        """The files at the top of the repository and their sizes in bytes."""

    def download(self, name: str, revision: str | None, cache_dir: Path | None, files: list[str]) -> Path:
        """Fetches those files, going on where an interrupted call stopped."""


class ModelScopeHub:
    """ModelScope."""

    key, title = "modelscope", "ModelScope"

    def endpoint(self) -> str:
        """The address that its library will ask."""
        own = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN")
        return own or "https://modelscope.cn"

    def local(self, name: str, revision: str | None, cache_dir: Path | None) -> Path:
        """The folder in a local cache; raises anything if there is none. Touches no network."""
        from modelscope import snapshot_download

        return Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True))

    def listing(self, name: str, revision: str | None) -> dict[str, int]:
        """The files at the top of the repository and their sizes in bytes."""
        from modelscope.hub.api import HubApi

        files = HubApi().get_model_files(name, revision=revision, recursive=False)
        return {str(item["Path"]): int(item.get("Size") or 0) for item in files}

    def download(self, name: str, revision: str | None, cache_dir: Path | None, files: list[str]) -> Path:
        """Fetches those files, going on where an interrupted call stopped."""
        from modelscope import snapshot_download

        return Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=_literal(files)))


class HuggingFaceHub:
    """Hugging Face."""

    key, title = "huggingface", "Hugging Face"

    def endpoint(self) -> str:
        """The address that its library will ask."""
        from huggingface_hub import constants

        return str(constants.ENDPOINT)

    def local(self, name: str, revision: str | None, cache_dir: Path | None) -> Path:
        """The folder in a local cache; raises anything if there is none. Touches no network."""
        from huggingface_hub import snapshot_download

        # Without a pattern the library calls a snapshot incomplete that lacks files which were left out on purpose.
        return Path(
            str(
                snapshot_download(
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    local_files_only=True,
                    allow_patterns=["config.json"],
                )
            )
        )

    def listing(self, name: str, revision: str | None) -> dict[str, int]:
        """The files at the top of the repository and their sizes in bytes."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        tree = HfApi().list_repo_tree(name, revision=revision, recursive=False)
        return {item.path: int(item.size or 0) for item in tree if isinstance(item, RepoFile)}

    def download(self, name: str, revision: str | None, cache_dir: Path | None, files: list[str]) -> Path:
        """Fetches those files, going on where an interrupted call stopped."""
        from huggingface_hub import snapshot_download

        return Path(
            str(snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=_literal(files)))
        )


HUBS: dict[str, Hub] = {"modelscope": ModelScopeHub(), "huggingface": HuggingFaceHub()}
"""In the order in which they are asked."""


def fetch(spec: Spec, *, cache_dir: str | Path | None, offline: bool, bars: Bars) -> HubFolder:
    """The folder of a hub model: from a complete local cache, else downloaded.

    Args:
        spec: ``ORG/NAME``, or with ``ms:`` / ``hf:``.
        cache_dir: keep both hubs' files below this folder; their own caches when None.
        offline: only look into the caches.
        bars: progress.

    Raises:
        ModelError: it is nowhere; the message names everything that was tried.
    """
    hubs = [hub for hub in HUBS.values() if spec.kind in ("hub", hub.key)]
    cache = ModelCache(cache_dir)
    own = cache.root if cache_dir is not None else None
    found = _cached(hubs, spec, own)
    if found is not None:
        return found
    if offline:
        raise ModelError(
            f"{spec.text} is not complete in a local cache ({_titles(hubs)}) and offline is set; "
            f"run `fenlei models pull {spec.text}` once with a network"
        )
    open_hubs = _reachable(hubs, spec)
    key = safe_name(f"{spec.name}-{spec.revision or 'default'}")
    with cache.lock(key, lambda: bars.say(f"another process is fetching {spec.text}; waiting for it")):
        found = _cached(hubs, spec, own)
        return found if found is not None else _download(open_hubs, spec, cache, own, bars)


def _cached(hubs: list[Hub], spec: Spec, own: Path | None) -> HubFolder | None:
    for hub in hubs:
        for cache_dir in [_below(own, hub), None] if own is not None else [None]:
            try:
                path = hub.local(spec.name, spec.revision, cache_dir)
            except Exception:  # the libraries have many ways to say "not here"
                continue
            if is_complete(path):
                return HubFolder(path, hub.key, _revision(hub, spec, path))
    return None


def _reachable(hubs: list[Hub], spec: Spec) -> list[Hub]:
    """The hubs that answer; asked here because their libraries take up to a minute to give up."""
    hosts = {hub.key: host_of(hub.endpoint(), hub.title) for hub in hubs}
    up = reachable({host for host in hosts.values() if host is not None})
    answering = [hub for hub in hubs if hosts[hub.key] in up]
    if not answering:
        tried = ", ".join(str(hosts[hub.key] or hub.endpoint()) for hub in hubs)
        raise ModelError(
            f"{spec.text} is in no local cache, and no hub can be reached; tried: {tried}. Check the network or proxy, "
            "set a mirror (HF_ENDPOINT, MODELSCOPE_ENDPOINT), or use a folder, a .gguf file or a built-in name "
            "(fenlei models list)"
        )
    return answering


def _download(hubs: list[Hub], spec: Spec, cache: ModelCache, own: Path | None, bars: Bars) -> HubFolder:
    reasons: list[str] = []
    for hub in hubs:
        target = _below(own, hub)
        try:
            with _clean_output(bars.show):
                files = _wanted(hub.listing(spec.name, spec.revision), hub, spec)
                (target or cache.root).mkdir(parents=True, exist_ok=True)
                cache.need_space(sum(files.values()), f"fetching {spec.text}")
                path = hub.download(spec.name, spec.revision, target, sorted(files))
        except ModelError:
            raise
        except Exception as error:  # each library has kinds of its own; the user needs one message
            reasons.append(f"{hub.title}: {_reason(error)}")
            continue
        check_model_folder(path)
        return HubFolder(path, hub.key, _revision(hub, spec, path))
    raise ModelError(
        f"{spec.text} could not be fetched. {' | '.join(reasons)}. Check the name and revision; "
        "what has arrived is kept, run the command again to go on"
    )


def _wanted(listing: dict[str, int], hub: Hub, spec: Spec) -> dict[str, int]:
    """The files to fetch; refuses a repository that is no use before a single weight is downloaded."""
    files = {
        name: size
        for name, size in listing.items()
        if "/" not in name and _matches(name, WANTED) and not _matches(name, UNWANTED)
    }
    if any(name.endswith(".safetensors") for name in files):
        return files
    where = f"{spec.name} on {hub.title}"
    ggufs = sorted(name for name in listing if name.lower().endswith(".gguf"))
    if ggufs:
        raise ModelError(f"{where} holds GGUF files only: download one (e.g. {ggufs[0]}) and give it as ./{ggufs[0]}")
    pickles = sorted(name for name in listing if _matches(name, _PICKLES))
    if pickles:
        raise ModelError(
            f"{where} has its weights only as {pickles[0]}, a pickle, and unpickling can run code; "
            "fenlei reads safetensors only: take another release or revision of the model"
        )
    raise ModelError(f"{where} holds no safetensors weights; found: {', '.join(sorted(listing)[:8]) or 'no files'}")


@contextlib.contextmanager
def _clean_output(show: bool) -> Iterator[None]:
    """The libraries' bars go to standard error, or nowhere; standard output belongs to the caller."""
    with contextlib.redirect_stdout(sys.stderr if show else io.StringIO()):
        if show:
            yield
            return
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def _below(own: Path | None, hub: Hub) -> Path | None:
    return own / hub.key if own is not None else None


def _literal(names: list[str]) -> list[str]:
    return [glob.escape(name) for name in names]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _revision(hub: Hub, spec: Spec, path: Path) -> str | None:
    # Hugging Face names a snapshot's folder by its commit, ModelScope by branch or tag.
    return path.name if path.parent.name == "snapshots" else spec.revision


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _titles(hubs: list[Hub]) -> str:
    return " and ".join(hub.title for hub in hubs)
