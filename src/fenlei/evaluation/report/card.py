"""The model card: ``README.md`` of a classifier folder, in the form that model hubs render."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fenlei.artifact import CARD, Artifact
from fenlei.modeling.calibration import Calibration

# scripts that one language is written in; Latin letters may be any of hundreds
_SCRIPTS = {
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ja": re.compile(r"[\u3041-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7a3]"),
}
_TEXTS_READ = 1000
_LEAST_SHARE = 0.1
# what begins or ends a link, an image, an element, code, emphasis, a table cell or an entity in Markdown
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|&~$])")
# Hubs link bare addresses, some after all escapes are gone, so these are broken by a word joiner, which nobody sees.
_ADDRESS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)", re.IGNORECASE)
_FIGURES = (
    ("accuracy", "Accuracy", "accuracy"),
    ("macro_f1", "Macro-F1", "f1"),
    ("log_loss", "Log loss (nats)", None),
    ("ece", "Calibration error (ECE)", None),
)
_MOST_LABELS = 200


def model_card(
    name: str,
    labels: Mapping[str, Any],
    base_model: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    part: str = "test",
    calibration: Mapping[str, Any] | None = None,
    texts: Sequence[str] = (),
) -> str:
    """Writes the model card.

    Args:
        name: what the classifier is called.
        labels: content of labels.json.
        base_model: as in the manifest.
        config: the configuration, for training data and settings.
        metrics: of :func:`fenlei.evaluation.evaluate_predictions`; without them the card gives no figures.
        part: what they were measured on: ``test`` or ``dev``.
        calibration: content of calibration.json.
        texts: some that it was measured on; they say which language it is for.

    Returns:
        Markdown with a YAML head. Names from the data cannot become markup.
    """
    names = [str(label) for label in labels["names"]]
    parts = [
        _front_matter(name, base_model, (config or {}).get("lora", {}).get("method", "lora"), metrics, part, texts),
        f"# {escape(name)}\n",
        _what(names, base_model),
        _labels(names, labels.get("descriptions") or {}, metrics),
        _figures(metrics, part),
        _use(),
        _made(config or {}),
        _limits(calibration or {}, metrics),
    ]
    return "\n".join(p for p in parts if p)


def card_of_copy(
    path: str | Path,
    artifact: Artifact,
    labels: Mapping[str, Any],
    calibration: Mapping[str, Any],
    config: Mapping[str, Any],
) -> str:
    """The card of a classifier that is saved again: the old one where its figures still hold, else one without.

    Args:
        path: where it is saved.
        artifact: what it was loaded from.
        labels: the labels now, as in labels.json.
        calibration: the calibration now, as in calibration.json.
        config: the configuration.
    """
    same = labels == artifact.labels and calibration == Calibration.from_dict(artifact.calibration).to_dict()
    old = artifact.path / CARD
    if same and old.is_file():
        return old.read_text(encoding="utf-8")
    name = Path(path).resolve().name
    return model_card(name, labels, artifact.manifest["base_model"], config=config, calibration=calibration)


def escape(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    line = _ADDRESS.sub("\u2060", " ".join(str(text).split()))
    return _MARKUP.sub(r"\\\1", line)


def languages(texts: Sequence[str]) -> list[str]:
    """``zh``, ``ja``, ``ko``: those whose script has a tenth of the letters. Of others the script does not tell."""
    joined = "".join(texts[:_TEXTS_READ])
    letters = max(1, sum(map(str.isalpha, joined)))
    found = [code for code, script in _SCRIPTS.items() if len(script.findall(joined)) >= _LEAST_SHARE * letters]
    return [code for code in found if code != "zh" or "ja" not in found]  # Japanese is written with both


def _front_matter(
    name: str,
    base_model: Mapping[str, Any],
    method: str,
    metrics: Mapping[str, Any] | None,
    part: str,
    texts: Sequence[str],
) -> str:
    import yaml

    spec, whole = hub_id(base_model), method == "full"
    head: dict[str, Any] = {
        **({"language": found} if (found := languages(texts)) else {}),
        "tags": ["text-classification", "fenlei", *([] if whole else ["lora"])],
        "pipeline_tag": "text-classification",
        "library_name": "fenlei",
    }
    if spec:
        head["base_model"] = spec
        head["base_model_relation"] = "finetune" if whole else "adapter"
    if metrics:
        head["metrics"] = ["accuracy", "f1"]
        results = [
            {"type": kind, "name": title, "value": round(float(metrics[key]), 6)}
            for key, title, kind in _FIGURES
            if kind and key in metrics
        ]
        task = {"type": "text-classification", "name": "Text classification"}
        data = {"type": "private", "name": f"{part} set, {metrics['n']} rows", "split": part}
        head["model-index"] = [{"name": name, "results": [{"task": task, "dataset": data, "metrics": results}]}]
    return f"---\n{yaml.safe_dump(head, allow_unicode=True, sort_keys=False)}---\n"


def hub_id(base_model: Mapping[str, Any]) -> str | None:
    """The base model's id on a hub; None for a folder or file, which is a path on somebody's machine."""
    if base_model.get("source") in ("folder", "gguf"):
        return None
    spec = str(base_model.get("spec", "")).removeprefix("ms:").removeprefix("hf:").split("@")[0]
    return spec if re.fullmatch(r"[\w.-]+/[\w.-]+", spec) else None


def _what(names: Sequence[str], base_model: Mapping[str, Any]) -> str:
    spec = hub_id(base_model) or str(base_model.get("spec", "")).replace("\\", "/").rstrip("/").split("/")[-1]
    return (
        f"A text classifier: it chooses one of {len(names)} labels for a text and gives the probability of each. "
        f"It is {escape(spec)}, tuned with [fenlei](https://pypi.org/project/fenlei/).\n"
    )


def _labels(names: Sequence[str], descriptions: Mapping[str, str], metrics: Mapping[str, Any] | None) -> str:
    classes = (metrics or {}).get("per_class", {})
    heads = [
        "label",
        *(["meaning"] if descriptions else []),
        *(["precision", "recall", "F1", "rows"] if classes else []),
    ]
    lines = ["## Labels\n", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name in names[:_MOST_LABELS]:
        cells = [escape(name), *([escape(descriptions.get(name, ""))] if descriptions else [])]
        if classes:
            row = classes.get(name, {})
            cells += [f"{row[k]:.3f}" if k in row else "" for k in ("precision", "recall", "f1")]
            cells.append(str(row.get("support", "")))
        lines.append(f"| {' | '.join(cells)} |")
    if len(names) > _MOST_LABELS:
        lines.append(f"\nand {len(names) - _MOST_LABELS} more: see labels.json.")
    return "\n".join(lines) + "\n"


def _figures(metrics: Mapping[str, Any] | None, part: str) -> str:
    if not metrics:
        return "## Figures\n\nThis classifier was not evaluated on labelled rows.\n"
    sure = metrics.get("intervals") or {}
    where = {
        "test": f"On {metrics['n']} test rows, which were used for nothing else",
        "dev": f"On {metrics['n']} development rows, by which the weights and the calibration were chosen, so these "
        "figures flatter",
    }.get(part, f"On {metrics['n']} rows")
    lines = [f"## Figures\n\n{where}:\n", "| figure | value |", "|---|---|"]
    for key, title, _ in _FIGURES:
        if key in metrics:
            ends = sure.get(key)
            more = f" (95 % interval {ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
            lines.append(f"| {title} | {metrics[key]:.4f}{more} |")
    return "\n".join(lines) + "\n"


def _use() -> str:
    return (
        "## Use\n\n```bash\npip install fenlei\nfenlei predict THIS_FOLDER texts.jsonl --out predictions.jsonl\n"
        "fenlei serve THIS_FOLDER\n```\n\n```python\nfrom fenlei import TextClassifier\n\n"
        'classifier = TextClassifier.load("THIS_FOLDER")\n'
        'classifier.predict(["a text"])\nclassifier.predict_proba(["a text"])\n```\n\n'
        "The folder holds an adapter, or the whole model where its own weights were trained; the base model is fetched "
        "by name and checked against the hash in manifest.json. All files are JSON, text and safetensors: nothing in "
        "them runs code.\n"
    )


def _made(config: Mapping[str, Any]) -> str:
    rows = []
    for part, keys in (
        ("train", ("epochs", "learning_rate", "batch_size", "seed")),
        ("lora", ("method", "r", "alpha", "dropout")),
        ("prompt", ("preset", "max_length", "truncation")),
    ):
        values = config.get(part) or {}
        rows += [f"| {part}.{key} | {escape(str(values[key]))} |" for key in keys if key in values]
    return "\n".join(["## Training\n", "| setting | value |", "|---|---|", *rows]) + "\n" if rows else ""


def _limits(calibration: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> str:
    lines = [
        "## Limits\n",
        "- It always chooses one of the labels above, for a text that fits none of them too.",
        "- The figures hold for texts like those it was measured on; other sources, times or languages need their own "
        "evaluation: `fenlei evaluate THIS_FOLDER rows.jsonl`.",
        "- Long texts are shortened to the length in prompt.json; what is cut off is not read.",
    ]
    if calibration.get("method", "none") == "none":
        lines.append("- Its probabilities are not calibrated: `fenlei calibrate` does it with labelled rows.")
    if calibration.get("threshold") is not None:
        lines.append("- It declines to answer where it is not sure enough; the threshold is in calibration.json.")
    rare = [n for n, row in (metrics or {}).get("per_class", {}).items() if 0 < row.get("support", 0) < 20]
    if rare:
        shown = ", ".join(escape(n) for n in rare[:10])
        lines.append(f"- Fewer than 20 rows were measured of {shown}{' and others' if len(rare) > 10 else ''}.")
    lines.append("- What the base model learnt wrongly or unfairly may show in its answers.")
    return "\n".join(lines) + "\n"
