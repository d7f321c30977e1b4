"""From a classifier folder to a :class:`Predictor`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fenlei.artifact import ADAPTER, TOKENIZER, Artifact
from fenlei.config import InferenceConfig, PromptConfig, RunConfig, read_yaml
from fenlei.data.labels import LabelSet
from fenlei.errors import ArtifactError, ConfigError, ModelError
from fenlei.inference.predictor import Predictor
from fenlei.modeling.calibration import Calibration
from fenlei.prompting import ChatFrame, PromptEncoder

if TYPE_CHECKING:
    from fenlei.modeling.shared import SharedBase
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
            "inference": {"answers": _answers(artifact)},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(artifact, error) from error
    cache_dir = _cache_dir_of(path)
    if cache_dir is not None:
        values["model"]["cache_dir"] = cache_dir
    return values


def load_predictor(artifact: Artifact, config: RunConfig, base: SharedBase | None = None) -> Predictor:
    """Everything that a classifier folder needs to answer.

    Args:
        artifact: the folder.
        config: the settings of :func:`stored_settings` and those of this machine; of ``calibration``, those that were
            given count.
        base: the base model where it is in memory already; it is shared.

    Raises:
        ArtifactError: a file of the folder holds what cannot be, or the base model is not the one it was trained on.
        ConfigError: a ``calibration`` setting that cannot be changed here, or ``inference.answers`` changed without it.
        ModelError: the base model cannot be found or loaded.
    """
    from fenlei.modeling.loading import load_tokenizer

    if base is not None:
        require_shareable(artifact, config, base)
    try:
        labels = LabelSet.from_dict(artifact.labels)
        chat = ChatFrame.from_dict(artifact.prompt["chat"])
        calibration = _calibration(artifact, labels)
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(artifact, error) from error
    calibration = calibration.with_settings(config.calibration)
    _require_same_answers(artifact, config, calibration)
    # one tokenizer takes ten times the memory of an adapter, and classifiers on one base model mostly have the same
    key = tuple(sorted(item for item in artifact.manifest["files"].items() if item[0].startswith(f"{TOKENIZER}/")))
    tokenizer, plain = (None, None) if base is None else base.tokenizer(key)
    if tokenizer is None:
        tokenizer = load_tokenizer(artifact.path / TOKENIZER, config.model)
    codes = artifact.prompt.get("codes")
    if config.prompt.answer == "code" and (not isinstance(codes, dict) or set(codes) != set(labels.names)):
        raise ArtifactError(
            f"{artifact.path}: prompt.answer=code, but prompt.json does not give every label a code; "
            "load it with the prompt settings that it was trained with"
        )
    encoder = PromptEncoder(tokenizer, config.prompt, labels, config.data.candidates, chat, codes, plain)
    if base is not None:
        base.keep_tokenizer(key, tokenizer, encoder.plain)
    return Predictor(
        _load_weights(artifact, config, base),
        encoder,
        pad_id=int(tokenizer.pad_token_id),
        calibration=calibration,
        inference=config.inference,
    )


def load_base(artifact: Artifact, config: RunConfig) -> SharedBase:
    """The base model of a classifier, to be shared by several.

    Raises:
        ArtifactError: the weights that are found are not those that the classifier was trained on.
        ModelError: it cannot be found or loaded.
    """
    from fenlei.modeling.loading import load_model
    from fenlei.modeling.shared import SharedBase

    folder = _find_base(artifact, config)
    _require_same_base(artifact, folder.weights_sha256(), folder.path)
    return SharedBase(load_model(folder.path, config.model), config.model, folder.weights_sha256(), folder.spec)


def can_share(artifact: Artifact) -> bool:
    """Whether a classifier says which base model it needs, and leaves that model's weights as they are."""
    from fenlei.modeling.shared import require_frozen_base

    if artifact.weights != ADAPTER or not artifact.manifest["base_model"].get("sha256"):
        return False
    try:
        require_frozen_base(artifact.path / ADAPTER)
    except ArtifactError:
        return False
    return True


def require_shareable(artifact: Artifact, config: RunConfig, base: SharedBase) -> None:
    """Makes sure that a classifier can use a base model that is in memory.

    Raises:
        ArtifactError: it has or changes weights of its own, was trained on other ones, or needs them in another form.
    """
    from fenlei.modeling.shared import require_frozen_base

    own = artifact.manifest["base_model"]
    if artifact.weights != ADAPTER:
        raise ArtifactError(
            f"{artifact.path}: was trained with lora.method=full, so it is a model of its own and shares no weights "
            "with other classifiers; give it a server of its own"
        )
    require_frozen_base(artifact.path / ADAPTER)
    expected = own.get("sha256") or {}
    if sorted(expected.values()) != sorted(base.sha256.values()):
        raise ArtifactError(
            f"{artifact.path}: was trained on {own['spec']} (sha256 {_short(expected)}), in memory is {base.spec} "
            f"(sha256 {_short(base.sha256)}); classifiers share a server only if they share their base model: give "
            "this one a server of its own, or train it on the other base model"
        )
    if (difference := base.differing_setting(config.model)) is not None:
        raise ArtifactError(
            f"{artifact.path}: needs its base model with {difference}; give all classifiers the same setting, e.g. "
            f"{difference.split(',')[0]}, or give this one a server of its own"
        )


def _short(hashes: Mapping[str, str]) -> str:
    return ", ".join(sorted(value[:12] for value in hashes.values())) or "unknown"


def _load_weights(artifact: Artifact, config: RunConfig, base: SharedBase | None) -> Any:
    """The model with the adapter, or the model that was trained as a whole."""
    from fenlei.modeling.adapter import load_adapter
    from fenlei.modeling.loading import load_model

    if artifact.weights != ADAPTER:  # a model of its own: the one that it began as is not needed any more
        return load_model(artifact.path / artifact.weights, config.model)
    model = load_base(artifact, config).model if base is None else base.view()
    return load_adapter(model, artifact.path / ADAPTER)


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


def _answers(artifact: Artifact) -> str:
    # classifiers of earlier versions had no choice
    return str(artifact.prompt.get("answers", InferenceConfig().answers))


def _require_same_answers(artifact: Artifact, config: RunConfig, calibration: Calibration) -> None:
    stored = _answers(artifact)
    if config.inference.answers == stored or (calibration.is_identity and calibration.threshold is None):
        return
    raise ConfigError(
        f"{artifact.path}: was calibrated with inference.answers={stored}; with {config.inference.answers} its scores "
        "are others. Leave the setting out, or give calibration.method=none calibration.threshold=null as well"
    )


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
