"""All checks of a data set, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable

from fenlei.config import DataConfig
from fenlei.data.checks.duplicates import check_exact, check_near, first_rows
from fenlei.data.checks.labels import check_labels, label_counts
from fenlei.data.checks.languages import Languages, check_languages
from fenlei.data.checks.lengths import Measure, TokenLengths, check_tokens, lengths, summarize_tokens
from fenlei.data.checks.report import CheckReport, Finding, SplitSummary, TokenSummary, in_order
from fenlei.data.checks.rows import check_rows
from fenlei.data.checks.settings import CheckSettings
from fenlei.data.checks.table import LabelIndex, Progress, Source, Split, read_split
from fenlei.data.checks.texts import check_texts, scripts
from fenlei.data.labels import LabelSet
from fenlei.errors import ConfigError, DataError, FenleiError

# labels of the training data -> what measures rows
MakeMeasure = Callable[[LabelSet], Measure]


def check_data(
    train: Source,
    *,
    dev: Source | None = None,
    test: Source | None = None,
    config: DataConfig | None = None,
    settings: CheckSettings | None = None,
    tokens: MakeMeasure | None = None,
    seed: int = 42,
    offline: bool = False,
    progress: Progress = lambda *_: None,
) -> CheckReport:
    """Looks at data before anything is trained on them.

    Args:
        train: training data: a file, a folder, a data set id, or rows.
        dev: development data.
        test: test data.
        config: how files are read: columns, aliases, labels, encoding.
        settings: from when on something is reported.
        tokens: makes what measures token lengths of the label set; without it they are left out.
        seed: seed of the sample whose tokens are counted.
        offline: hub data sets from local caches only.
        progress: called with what is done, how much of it, and of how much (or None).

    Raises:
        DataError: a source as a whole cannot be read, or has no rows.
    """
    start = time.monotonic()
    config, settings = config or DataConfig(), settings or CheckSettings()
    labels = LabelIndex()
    sample = settings.token_sample if tokens else 0
    splits = [
        read_split(name, source, config, settings, labels, sample=sample, seed=seed, offline=offline, progress=progress)
        for name, source in (("train", train), ("dev", dev), ("test", test))
        if source is not None
    ]
    findings: list[Finding] = []
    for split in splits:
        findings += check_rows(split, config)
    used = [split for split in splits if len(split)]
    remarks: list[str] = []
    measured: dict[str, TokenSummary] = {}
    if used and used[0].name == "train":
        findings += check_labels(used[0], used[1:], config, settings)
    languages: dict[str, Languages] = {}
    if used:
        findings += _content(used, settings, progress)
        languages = {split.name: check_languages(split, settings) for split in used}
        findings += [finding for found in languages.values() for finding in found.findings]
        remarks += dict.fromkeys(found.remark for found in languages.values() if found.remark)
    if used and tokens is not None:
        found, measured, more = _tokens(used, config, settings, tokens, progress)
        findings += found
        remarks += more
    summaries = tuple(_summary(split, measured.get(split.name), languages.get(split.name)) for split in splits)
    return CheckReport(summaries, in_order(findings), tuple(remarks), time.monotonic() - start)


def _content(used: list[Split], settings: CheckSettings, progress: Progress) -> list[Finding]:
    """Findings about the texts themselves."""
    findings = list(check_exact(used, settings))
    findings += check_near(used, settings, lambda done, total: progress("comparing near duplicates", done, total))
    for number, split in enumerate(used):
        progress("looking at the texts", number, len(used))
        findings += check_texts(split, first_rows(split), settings)
    progress("looking at the texts", len(used), len(used))
    return findings


def _tokens(
    used: list[Split], config: DataConfig, settings: CheckSettings, tokens: MakeMeasure, progress: Progress
) -> tuple[list[Finding], dict[str, TokenSummary], list[str]]:
    findings: list[Finding] = []
    measured: dict[str, TokenSummary] = {}
    remarks: list[str] = []
    try:
        names = config.labels or dict.fromkeys(
            name for split in used[:1] for name in [*label_counts(split), *split.candidates]
        )
        measure = tokens(LabelSet(tuple(names), descriptions=config.descriptions, aliases=config.aliases))
    except DataError:
        return findings, measured, ["token lengths: not measured, the labels must be mended first"]
    except ConfigError as error:
        return [_refused(used[0], error)], measured, remarks
    for number, split in enumerate(used):
        progress("counting tokens", number, len(used))
        try:
            found: TokenLengths = measure(split.sample)
        except ConfigError as error:
            findings.append(_refused(split, error))
            continue
        except FenleiError as error:
            remarks.append(f"token lengths of {split.name}: not measured: {error}")
            continue
        summary = measured[split.name] = summarize_tokens(found, len(split))
        findings += check_tokens(split, found, summary, settings)
        if summary.rows < summary.of:
            remarks.append(f"token lengths of {split.name}: a seeded sample of {summary.rows:,} of {summary.of:,} rows")
    progress("counting tokens", len(used), len(used))
    return findings, measured, remarks


def _refused(split: Split, error: ConfigError) -> Finding:
    """The prompt does not fit the labels or the length: training would end with the same words."""
    title = "the prompt cannot be made"
    return Finding("prompt-refused", "error", split.name, title, len(split), len(split), str(error))


def _summary(split: Split, tokens: TokenSummary | None, languages: Languages | None) -> SplitSummary:
    if not len(split):
        return SplitSummary(split.name, split.source, split.read, 0, {}, None, None, {})
    return SplitSummary(
        name=split.name,
        source=split.source,
        read=split.read,
        used=len(split),
        labels=label_counts(split),
        characters=lengths(split.characters.length),
        tokens=tokens,
        scripts=scripts(split),
        languages=languages.rows if languages else {},
    )
