"""Data sets by id from ModelScope and Hugging Face, through their own libraries."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fenlei.data.tables import RawRow, Table, clean_values, iter_file, kind_of
from fenlei.errors import DataError, MissingDependency

PROBE_SECONDS = 2.0
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("validation", "dev", "valid", "val"),
    "test": ("test", "testing"),
}
_NOT_CACHED = ("CacheNotFound", "LocalEntryNotFoundError")
_PREFIXES = ("ms:", "hf:")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hub_id(source: str) -> tuple[str, str] | None:
    """Which hubs (``ms``, ``hf`` or both as ``ms hf``) and which id a source names, or None for a path.

    A bare ``ORG/NAME`` is an id unless such a path or a folder ORG is there, or it ends like a data file.
    """
    if source.startswith(_PREFIXES):
        return source[:2], source[3:].strip("/")
    if not _ID.fullmatch(source) or kind_of(Path(source)) is not None:
        return None
    path = Path(source)
    return None if path.exists() or path.parent.exists() else ("ms hf", source)


def hub_tables(source: str, *, role: str, split: str | None, offline: bool) -> list[Table]:
    """Rows of one split of a data set on a hub.

    Online, each hub is first probed with a TCP connection, so that a machine without a network gets its
    answer in seconds and not after the libraries' retries; of a hub out of reach the local cache is searched.

    Args:
        source: ``ms:ORG/NAME``, ``hf:ORG/NAME``, or ``ORG/NAME`` (ModelScope first, then Hugging Face).
        role: ``train``, ``dev``, ``test`` or ``predict``; picks the split.
        split: take this split instead.
        offline: use local caches only.

    Raises:
        DataError: no hub has it or none can be reached; says what was tried.
    """
    hubs, name = hub_id(source) or ("ms hf", source)
    if not name:
        raise DataError(f"{source!r}: expected ms:ORG/NAME or hf:ORG/NAME")
    reached = set() if offline else _probe(hubs.split())
    tried: list[str] = []
    for hub in hubs.split():
        online = hub in reached
        title = {"ms": "ModelScope", "hf": "Hugging Face"}[hub]
        place = title if online else f"{title}'s local cache"
        try:
            return _load(hub, name, role, split, online)
        except ImportError as error:
            raise MissingDependency(f"{source}: {error}; pip install datasets modelscope") from None
        except Exception as error:  # the libraries raise dozens of kinds, not all under one base
            missing = type(error).__name__ in _NOT_CACHED
            tried.append(f"{place}: " + ("it is not there" if missing else _first_line(error)))
    state = "offline" if offline else ("" if reached else "no hub can be reached")
    advice = "Go online, or download it elsewhere and give the folder or file" if not reached else "Check the id"
    raise DataError(
        f"{source}: data set not found{f' ({state})' if state else ''}; tried:\n  "
        + "\n  ".join(tried)
        + f"\n{advice}; data.split chooses another split than {split or '/'.join(_splits_of(role))}"
    )


def is_saved(folder: Path) -> bool:
    """Whether ``datasets``' ``save_to_disk`` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def saved_rows(folder: Path, *, role: str, split: str | None) -> Table | None:
    """Rows of a folder written by ``datasets``' ``save_to_disk``, or None for any other folder.

    Raises:
        DataError: the folder is damaged or lacks the split.
    """
    if not is_saved(folder):
        return None
    several = (folder / "dataset_dict.json").is_file()
    import datasets

    try:
        data: Any = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{folder}: cannot be read as a saved data set: {_first_line(error)}") from None
    name = str(folder)
    if several:
        wanted = (split,) if split else _splits_of(role)
        used = next((candidate for candidate in wanted if candidate in data), None)
        if used is None:
            raise DataError(
                f"{folder}: no split {' or '.join(wanted)}; it has {', '.join(data)}; set data.split to one of them"
            )
        name, data = f"{folder}/{used}", data[used]
    return Table(name, dataset_rows(data))


def dataset_rows(data: Any) -> Iterator[RawRow]:
    """Rows of a ``datasets`` data set; class numbers become the class names that it carries."""
    names = {
        column: feature.names
        for column, feature in (data.features or {}).items()
        if type(feature).__name__ == "ClassLabel"
    }
    for number, row in enumerate(data, start=1):
        for column, classes in names.items():
            value = row[column]
            known = isinstance(value, int) and 0 <= value < len(classes)
            row[column] = classes[value] if known else None  # -1 marks an unlabelled row
        yield RawRow(number, clean_values(row))


def split_of(file: Path) -> str | None:
    """The role (``train``, ``dev``, ``test``) that a file's name tells, or None."""
    words = set(re.split(r"[^a-z]+", file.name.lower()))
    found = [role for role, names in SPLIT_NAMES.items() if words & set(names)]
    return found[0] if len(found) == 1 else None


def _splits_of(role: str) -> tuple[str, ...]:
    if role == "predict":
        return (*SPLIT_NAMES["test"], *SPLIT_NAMES["dev"], *SPLIT_NAMES["train"])
    return SPLIT_NAMES[role]


def _load(hub: str, name: str, role: str, split: str | None, online: bool) -> list[Table]:
    """One split; code from the data set never runs, as ``trust_remote_code`` is nowhere passed."""
    import datasets

    path: str | None = None
    if hub == "ms":
        from modelscope.hub.snapshot_download import snapshot_download

        path = str(snapshot_download(repo_id=name, repo_type="dataset", local_files_only=not online))
    elif not online:
        from huggingface_hub import snapshot_download as hf_snapshot

        path = str(hf_snapshot(name, repo_type="dataset", local_files_only=True))
    plain = _plain_files(Path(path), role) if path and not split else []
    if path and plain:
        return [
            Table(
                f"{hub}:{name}/{file.relative_to(path).as_posix()}",
                iter_file(file),
                f"{file.name}:" if len(plain) > 1 else "",
            )
            for file in plain
        ]
    # the long form keeps `datasets` from taking a local folder that has the id as its path
    target = path or (f"hf://datasets/{name}" if os.path.isdir(name) else name)
    splits = (split,) if split else _splits_of(role)
    for number, used in enumerate(splits, start=1):
        try:
            data = datasets.load_dataset(target, split=used)
        except ValueError as error:
            if number == len(splits) or "split" not in str(error):
                raise
        else:
            return [Table(f"{hub}:{name}/{used}", dataset_rows(data))]
    raise AssertionError("unreachable: the last split returns or raises")


def _plain_files(folder: Path, role: str) -> list[Path]:
    """Text files of a snapshot that are plainly one split in one folder: our readers name their lines.

    Anything else (Parquet with class names, several configurations) is left to `datasets`.
    """
    files = [file for file in sorted(folder.rglob("*")) if kind_of(file) not in (None, "parquet")]
    for wanted in ("test", "dev", "train") if role == "predict" else (role,):
        chosen = [file for file in files if split_of(file) == wanted]
        if chosen:
            return chosen if len({file.parent for file in chosen}) == 1 else []
    return []


def _probe(hubs: list[str]) -> set[str]:
    """The hubs that accept a TCP connection, all tried at once within :data:`PROBE_SECONDS`."""
    reached: set[str] = set()

    def knock(hub: str) -> None:
        if reachable(_endpoint(hub)):
            reached.add(hub)

    # threads, since a name server that does not answer blocks for longer than any socket timeout
    threads = [threading.Thread(target=knock, args=(hub,), daemon=True) for hub in hubs]
    end = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return set(reached)


def reachable(url: str) -> bool:
    """Whether the host of a URL, or the proxy that leads to it, accepts a TCP connection."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(host):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), PROBE_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _endpoint(hub: str) -> str:
    """Where the hub's own library will connect to; both libraries let the environment name a mirror."""
    if hub == "hf":
        return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    url = os.environ.get("MODELSCOPE_ENDPOINT") or domain
    return url if "://" in url else f"https://{url}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: " + (text.splitlines()[0][:300] if text else "no message")
