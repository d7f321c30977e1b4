"""From a classifier folder to a :class:`Predictor`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenlei.artifact import ADAPTER, TOKENIZER, Artifact
from fenlei.config import PromptConfig, RunConfig, read_yaml
from fenlei.data.labels import LabelSet
from fenlei.errors import ArtifactError, ModelError
from fenlei.inference.predictor import Predictor
from fenlei.modeling.calibration import Calibration
from fenlei.prompting import ChatFrame, PromptEncoder

if TYPE_CHECKING:
    from fenlei.modeling.sources import ModelFolder


def stored_settings(artifact: Artifact, path: Path, model: str | None = None) -> dict[str, Any]:
    """The settings that a classifier brings along, as nested values.

    Args:
        artifact: the folder.
        path: the run folder or classifier folder that was named; a run folder knows where its model cache is.
        model: where the base model is, if its spec no longer leads to it.

    Raises:
        ArtifactError: a setting is missing or wrong.
    """
    base = artifact.manifest["base_model"]
    try:
        values: dict[str, Any] = {
            "model": {
                "spec": model or base["spec"],
                "dtype": base["dtype"],
                "quantization": base.get("quantization", "none"),  # classifiers of earlier versions had none
            },
            "prompt": PromptConfig(**artifact.prompt["prompt"]).model_dump(),
            "data": {"candidates": artifact.prompt["candidates"], **artifact.prompt["columns"]},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(artifact, error) from error
    cache_dir = _cache_dir_of(path)
    if cache_dir is not None:
        values["model"]["cache_dir"] = cache_dir
    return values


def load_predictor(artifact: Artifact, config: RunConfig) -> Predictor:
    """Everything that a classifier folder needs to answer.

    Args:
        artifact: the folder.
        config: the settings of :func:`stored_settings` and those of this machine; of ``calibration``, those that were
            given count.

    Raises:
        ArtifactError: a file of the folder holds what cannot be, or the base model is not the one it was trained on.
        ConfigError: a ``calibration`` setting that cannot be changed here.
        ModelError: the base model cannot be found or loaded.
    """
    from fenlei.modeling.adapter import load_adapter
    from fenlei.modeling.loading import load_model, load_tokenizer

    try:
        labels = LabelSet.from_dict(artifact.labels)
        chat = ChatFrame.from_dict(artifact.prompt["chat"])
        calibration = _calibration(artifact, labels)
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(artifact, error) from error
    calibration = calibration.with_settings(config.calibration)
    tokenizer = load_tokenizer(artifact.path / TOKENIZER, config.model)
    codes = artifact.prompt.get("codes")
    if config.prompt.answer == "code" and (not isinstance(codes, dict) or set(codes) != set(labels.names)):
        raise ArtifactError(
            f"{artifact.path}: prompt.answer=code, but prompt.json does not give every label a code; "
            "load it with the prompt settings that it was trained with"
        )
    encoder = PromptEncoder(tokenizer, config.prompt, labels, config.data.candidates, chat, codes)
    model: Any
    if artifact.weights == ADAPTER:
        folder = _find_base(artifact, config)
        _require_same_base(artifact, folder.weights_sha256(), folder.path)
        model = load_adapter(load_model(folder.path, config.model), artifact.path / ADAPTER)
    else:  # a model of its own: the one that it began as is not needed any more
        model = load_model(artifact.path / artifact.weights, config.model)
    return Predictor(
        model,
        encoder,
        pad_id=int(tokenizer.pad_token_id),
        calibration=calibration,
        inference=config.inference,
    )


def _calibration(artifact: Artifact, labels: LabelSet) -> Calibration:
    """What calibration.json says.

    Raises:
        ValueError: it says what cannot be.
    """
    try:
        found = Calibration.from_dict(artifact.calibration)
        strange = [name for name in found.bias if name not in labels.names]
        if strange:
            raise ValueError(f"bias: {strange[0]!r} is none of the labels")
    except ValueError as error:
        raise ValueError(f"calibration.json: {error}") from error
    return found


def _wrong(artifact: Artifact, error: Exception) -> ArtifactError:
    return ArtifactError(f"{artifact.path}: a setting in it is missing or wrong: {error}")


def _find_base(artifact: Artifact, config: RunConfig) -> ModelFolder:
    """The base model: where it was, or by its spec at the revision that was trained on."""
    from fenlei.modeling.sources import resolve

    base = artifact.manifest["base_model"]
    specs = [config.model.spec]
    if config.model.spec == base["spec"]:
        pinned = {"huggingface": "hf", "modelscope": "ms"}.get(base["source"])
        if base.get("path") and Path(base["path"]).exists():
            specs.insert(0, base["path"])
        elif pinned and base.get("revision"):
            name = base["spec"].split(":", 1)[-1].split("@", 1)[0]
            specs.insert(0, f"{pinned}:{name}@{base['revision']}")
    for spec in specs:
        try:
            return resolve(spec, cache_dir=config.model.cache_dir, offline=config.model.offline)
        except ModelError as error:
            last = error
    raise ModelError(f"{artifact.path}: its base model cannot be found: {last}. Say where it is with model.spec=...")


def _cache_dir_of(run_dir: Path) -> str | None:
    """The model cache that the run used, so that nothing is fetched twice on one machine."""
    stored = run_dir / "config.yaml"
    if not stored.is_file():
        return None
    found = read_yaml(stored).get("model", {}).get("cache_dir")
    return found if found and Path(found).is_dir() else None


def _require_same_base(artifact: Artifact, found: Mapping[str, str], path: Path) -> None:
    expected = artifact.manifest["base_model"].get("sha256") or {}
    if expected and sorted(expected.values()) != sorted(found.values()):
        raise ArtifactError(
            f"{artifact.path}: was trained on other weights than those in {path} (base model "
            f"{artifact.manifest['base_model']['spec']}); give the right ones with model.spec=..."
        )
