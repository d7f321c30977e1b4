"""The classifier folder: what is in it, and that it is whole.

    classifier/
      manifest.json      written last: versions, base model, sha256 of every other file
      labels.json        names, descriptions, aliases
      prompt.json        templates, length, truncation, rule for candidates, codes of the labels
      calibration.json   temperature, bias, threshold for abstaining, what they did on dev
      adapter/           LoRA weights (safetensors) and their configuration; or
      model/             the whole model, where its own weights were trained
      tokenizer/         the tokenizer's files
      README.md          the model card, for people and hubs

JSON and safetensors only: nothing in it can run code. A folder without a manifest is not a classifier.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fenlei.durable import aside, disk_full_message, fsync_tree, is_disk_full, replace_folder, size_of, write_bytes
from fenlei.durable import write_json as write_json
from fenlei.errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ADAPTER = "adapter"
MODEL = "model"
TOKENIZER = "tokenizer"
CARD = "README.md"
_LIBRARIES = ("fenlei", "torch", "transformers", "peft", "tokenizers")


@dataclass(frozen=True)
class Artifact:
    """A classifier folder that was checked.

    Attributes:
        path: the folder.
        manifest: its manifest; ``base_model`` says which model the adapter belongs to.
        labels: content of labels.json.
        prompt: content of prompt.json.
        calibration: content of calibration.json.
    """

    path: Path
    manifest: dict[str, Any]
    labels: dict[str, Any]
    prompt: dict[str, Any]
    calibration: dict[str, Any]

    @property
    def weights(self) -> str:
        """The folder with what was trained: ``adapter``, or ``model`` for a whole model."""
        return MODEL if f"{MODEL}/config.json" in self.manifest.get("files", {}) else ADAPTER


def write_artifact(
    path: str | Path,
    *,
    labels: Mapping[str, Any],
    prompt: Mapping[str, Any],
    calibration: Mapping[str, Any],
    base_model: Mapping[str, Any],
    save_weights: Callable[[Path], None],
    needed: int | None = None,
    card: str | None = None,
    created: str | None = None,
) -> Path:
    """Writes a classifier folder: whole or not at all.

    Everything goes into a staging folder beside the target, the manifest last, and one rename publishes it. An
    earlier classifier of the same name is replaced only then.

    Args:
        path: the folder to write.
        labels: content of labels.json.
        prompt: content of prompt.json.
        calibration: content of calibration.json.
        base_model: id, source, revision and weight hashes of the base model.
        save_weights: writes ``adapter/`` or ``model/``, and ``tokenizer/``, into the folder it is given.
        needed: bytes that the folder will take, where known: for the message when the disk is full.
        card: the model card, see :func:`fenlei.evaluation.report.model_card`.
        created: when the classifier was made, where that was before now, as in a manifest.

    Raises:
        ArtifactError: the target holds something that is not a classifier, or cannot be written.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target}: is a file; a classifier needs a folder of its own")
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise ArtifactError(f"{target}: exists and is not a classifier folder; choose another place")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, content in (("labels", labels), ("prompt", prompt), ("calibration", calibration)):
            write_json(staging / f"{name}.json", content)
        if card is not None:
            write_bytes(staging / CARD, card.encode("utf-8", "replace"))
        save_weights(staging)
        manifest = {
            "format_version": FORMAT_VERSION,
            "created": created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "libraries": library_versions(),
            "base_model": dict(base_model),
            "files": file_hashes(staging),
        }
        write_json(staging / MANIFEST, manifest)
        staging.chmod(0o755)
        fsync_tree(staging)
        replace_folder(staging, target)
    except Exception as error:
        if is_disk_full(error):  # whatever library it came through
            shutil.rmtree(staging, ignore_errors=True)
            raise ArtifactError(
                f"{disk_full_message(error, target, 'the classifier', needed)}. Make room and save it again; "
                "after training, --resume does only that"
            ) from error
        if isinstance(error, OSError):
            raise ArtifactError(f"{target}: cannot write the classifier: {error}") from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def replace_card(path: str | Path, card: str) -> Path:
    """Gives a classifier folder another model card; the folder is replaced as a whole, so it is never half new.

    Weights and tokenizer are linked, not copied, where the disk can do that.

    Args:
        path: the classifier folder, or the run folder that holds it.
        card: the new card.

    Raises:
        ArtifactError: no whole classifier there, or it cannot be written.
    """
    artifact = read_artifact(path)

    def keep_weights(folder: Path) -> None:
        for part in (artifact.weights, TOKENIZER):
            shutil.copytree(artifact.path / part, folder / part, copy_function=_link)

    return write_artifact(
        artifact.path,
        labels=artifact.labels,
        prompt=artifact.prompt,
        calibration=artifact.calibration,
        base_model=artifact.manifest["base_model"],
        save_weights=keep_weights,
        card=card,
        created=artifact.manifest.get("created"),
        needed=size_of(artifact.path),  # where nothing can be linked
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not on every disk
        shutil.copy2(source, target)


def read_artifact(path: str | Path) -> Artifact:
    """Opens a classifier folder, or the one in a run folder, and checks every file against the manifest.

    Raises:
        ArtifactError: not a classifier, of a newer format, or a file is missing or was changed.
    """
    folder = find_classifier(path)
    manifest = read_json(folder / MANIFEST)
    found = manifest.get("format_version")
    if found != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / MANIFEST}: format version {found!r}, this fenlei reads {FORMAT_VERSION}; "
            "pip install -U fenlei, or train again"
        )
    for name, expected in manifest.get("files", {}).items():
        file = folder / name
        if not _inside(file, folder) or not file.is_file():
            raise ArtifactError(f"{folder}: {name} is missing; copy the classifier folder again")
        if sha256_of(file) != expected:
            raise ArtifactError(f"{file}: was changed or damaged since it was saved; copy the folder again")
    parts = {name: read_json(folder / f"{name}.json") for name in ("labels", "prompt", "calibration")}
    return Artifact(path=folder, manifest=manifest, **parts)


def find_classifier(path: str | Path) -> Path:
    """The classifier folder that ``path`` is or holds.

    Raises:
        ArtifactError: there is none; says what was found instead.
    """
    folder = Path(path)
    inner = folder / "classifier"
    # the last two: a crash in the moment between the two renames that replace a classifier
    for candidate in (folder, inner, aside(inner), aside(folder)):
        if (candidate / MANIFEST).is_file():
            return candidate
    if not folder.exists():
        raise ArtifactError(f"{folder}: no such run or classifier folder")
    if (folder / "checkpoints").is_dir():
        raise ArtifactError(
            f"{folder}: training has not finished, so there is no classifier yet; "
            f"go on with: fenlei train --out {folder} --resume"
        )
    raise ArtifactError(f"{folder}: neither a run folder nor a classifier folder (no {MANIFEST})")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ArtifactError: missing, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path with ``/``."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): sha256_of(f) for f in files}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a classifier depends on."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _inside(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())
