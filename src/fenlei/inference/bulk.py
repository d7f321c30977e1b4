"""Predictions for a file of any size: in constant memory, in the order of the input, each row exactly once.

Rows go through the classifier in chunks. The lines of a chunk are appended to files beside the output and forced to
disk; then the journal says how many bytes of them are valid and how many rows they stand for. A process that dies at
any instant leaves a journal that is true and, perhaps, a torn tail that it does not speak of. The run that goes on cuts
the tail off, reads the rows that are done again (their hash must be the same) and continues with the next chunk. Chunks
are cut by the content of the input alone and predicted by themselves, so the result is the same to the byte.

A row that cannot be read, that the classifier refuses (candidates that leave no room for a text) or whose scores are
not finite is put aside with its reason.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from fenlei.artifact import library_versions
from fenlei.config import RunConfig
from fenlei.data import LabelSet, StreamedRow, stream_examples
from fenlei.data.probe import RowCount, data_files, estimate_rows, fingerprint
from fenlei.data.readers import SHOWN, rejected_line, require_good_rows
from fenlei.errors import DataError, FenleiError
from fenlei.inference.ahead import one_ahead
from fenlei.inference.chunks import CHUNK_BYTES, CHUNK_ROWS, Chunk, check_columns, iter_chunks, skip_done
from fenlei.inference.journal import OUTPUT_FORMAT, PUBLISHING, Counts, Journal
from fenlei.inference.output import Output, discard
from fenlei.inference.records import json_line, make_record, typed_line
from fenlei.inference.refusals import BulkPredictor, encode_rows, score_rows
from fenlei.inference.store import Store, publish
from fenlei.modeling.prediction import Prediction

# these have no influence on what is written; every other setting, a future one too, has
_NO_INFLUENCE = {
    "": ("preset", "out", "lora", "train", "speed", "tracking", "report"),
    "data": ("train", "dev", "test", "dev_fraction", "on_bad_row"),
    "model": ("spec", "offline", "trust_remote_code", "cache_dir"),  # weights are held against their hash on loading
}
# files of more bytes take a while to hash
_LARGE = 4 << 30
# so many rows refused and none answered is no fault of the rows
_ALL_REFUSED = 16


class BulkClassifier(Protocol):
    """What a bulk prediction needs of a classifier; :class:`fenlei.TextClassifier` is one."""

    config: RunConfig

    @property
    def labels(self) -> LabelSet:
        """The label set."""

    @property
    def predictor(self) -> BulkPredictor:
        """What reads rows and scores them. Asked for only once nothing is wrong with the input: loading takes time."""


class Progress(Protocol):
    """Who is told how it goes."""

    def start(self, done: int, total: RowCount | None) -> None:
        """Prediction begins; so many rows are done already."""

    def advance(self, rows: int) -> None:
        """So many more rows are done."""

    def note(self, text: str) -> None:
        """What is being done that is no prediction."""


class NoProgress:
    """Nobody is told."""

    def start(self, done: int, total: RowCount | None) -> None:
        """Nothing."""

    def advance(self, rows: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Selection:
    """Which part of the input is wanted, and in which chunks it is done.

    Attributes:
        limit: the first so many rows only.
        columns: columns of the input to carry over; None for all.
        chunk_rows: most rows in a chunk.
        chunk_bytes: a chunk ends with the row that reaches this size.
    """

    limit: int | None = None
    columns: tuple[str, ...] | None = None
    chunk_rows: int = CHUNK_ROWS
    chunk_bytes: int = CHUNK_BYTES


@dataclass(frozen=True)
class BulkResult:
    """What came of it.

    Attributes:
        counts: rows read, written, rejected and so on, over all sittings.
        out: the predictions.
        rejected: the bad rows with their reasons; None where there are none.
    """

    counts: Counts
    out: Path
    rejected: Path | None


def predict_file(
    classifier: BulkClassifier,
    source: str | Path,
    output: Output,
    *,
    classifier_sha256: str,
    machine: Mapping[str, Any] | None = None,
    selection: Selection | None = None,
    progress: Progress | None = None,
) -> BulkResult:
    """Predicts every row of a source into the output that :func:`~fenlei.inference.output.open_output` holds.

    Bad rows go to ``<out>.rejected.jsonl`` with their reasons. With ``data.on_bad_row=stop`` rows that cannot be read
    end the run before anything is predicted, and one that the classifier refuses ends it where it comes.

    Args:
        classifier: it labels the rows.
        source: file, folder or data set id.
        output: where predictions go; says whether a run goes on or begins.
        classifier_sha256: hash of the classifier's manifest: a run goes on only with the same classifier.
        machine: what else the last digits of a score depend on, e.g. :func:`fenlei.modeling.machine.machine_of`; a run
            goes on only where it is the same.
        selection: which rows and columns.
        progress: is told how it goes.

    Raises:
        DataError: the input cannot be read or has no usable row; the run cannot go on because something changed; or
            the disk is full. What is done is kept, save that a run that ends before its first prediction leaves
            nothing.
        FenleiError: the classifier refuses the first rows one and all; the kind and the reason are those of the first.
    """
    run = _Run(classifier, source, output, selection or Selection(), progress or NoProgress())
    return run.do(classifier_sha256, machine or {})


class _Run:
    def __init__(
        self, classifier: BulkClassifier, source: str | Path, output: Output, selection: Selection, progress: Progress
    ) -> None:
        self.classifier, self.source, self.output = classifier, source, output
        self.selection, self.progress = selection, progress
        self.paths = output.paths
        self.make_line = typed_line if self.paths.suffix == ".parquet" else json_line
        self.stops = classifier.config.data.on_bad_row == "stop"
        self.refused = 0
        self.noted: set[str] = set()

    def do(self, classifier_sha256: str, machine: Mapping[str, Any]) -> BulkResult:
        identity = self._identity(classifier_sha256, machine)
        journal = self.output.journal
        if journal is not None:
            journal.require_same(identity, self.paths.shown)
        if journal is None or journal.stage != PUBLISHING:
            journal = self._predict(identity, journal)
        publish(self.paths, journal, self.progress.note)
        counts = journal.counts
        if not counts.written:
            raise DataError(self._nothing_usable(counts))
        shown = self.paths.rejected.name
        return BulkResult(counts, self.paths.shown, self.paths.shown.with_name(shown) if counts.rejected else None)

    def _predict(self, identity: dict[str, Any], journal: Journal | None) -> Journal:
        """Does all chunks that are not done; the journal after the last one."""
        if journal is None:
            if self.stops:
                self.progress.note("looking for bad rows")
                require_good_rows(self.source, self._rows())
            if self.selection.columns:
                check_columns(self.selection.columns, self._rows())
        chunks = iter_chunks(self._rows(), self.selection.chunk_rows, self.selection.chunk_bytes)
        if journal is not None and journal.counts.read:
            self.progress.note(f"reading again the {journal.counts.read} rows that are done")
            skip_done(chunks, journal.counts.read, journal.consumed, self.source)
        first = next(chunks, None)  # what is wrong with the input as a whole shows here, before anything is written
        if first is None and journal is None:
            raise DataError(f"{self.source}: no rows; expected at least one row with a text")
        total, predictor = self._total(), self.classifier.predictor
        begun = journal or Journal(identity, overwrite=self.output.overwrite)
        store = Store(self.paths, begun, total.rows if total else None)
        try:
            with store:
                self.progress.start(begun.counts.read, total)
                # while the model scores a chunk, the next one is read and tokenized
                prepared = one_ahead(_prepare(predictor, itertools.chain([first] if first else [], chunks)))
                with contextlib.closing(prepared):
                    for item in prepared:
                        self._do_chunk(predictor, *item, store)
                return store.journal
        except FenleiError:
            if journal is None and not store.journal.counts.written and not store.disk_failed:
                discard(self.paths)
            raise

    def _do_chunk(self, predictor: BulkPredictor, chunk: Chunk, prompts: list[Any], store: Store) -> None:
        self._end_if_told_to(chunk, prompts, store)
        answers = score_rows(predictor, chunk.rows, prompts, self.progress.advance, partial(self._note_once, "memory"))
        self._end_if_told_to(chunk, answers, store)
        self._look_at_refused(chunk, answers, store)
        lines = [self._line(row, p) for row, p in zip(chunk.rows, answers, strict=True) if not isinstance(p, Exception)]
        bad = [
            rejected_line(row.source, str(reason), row.found)
            for row, reason in zip(chunk.rows, answers, strict=True)
            if isinstance(reason, Exception)
        ]
        predictions = [p for p in answers if not isinstance(p, Exception)]
        counts = Counts(
            read=len(chunk.rows),
            written=len(lines),
            rejected=len(bad),
            shortened=sum(prediction.truncated for prediction in predictions),
            abstained=sum(prediction.abstained for prediction in predictions),
        )
        store.add(counts, chunk.consumed, b"".join(lines), "".join(bad).encode("utf-8"))
        self.progress.advance(len(bad))

    def _end_if_told_to(self, chunk: Chunk, answers: list[Any], store: Store) -> None:
        """With ``data.on_bad_row=stop``, the first bad row is the end.

        Raises:
            FenleiError: of the row's own kind.
        """
        if not self.stops:
            return
        for row, error in zip(chunk.rows, answers, strict=True):
            if isinstance(error, FenleiError):
                go_on = "go on with --resume" if store.journal.counts.written else "begin again with"
                raise type(error)(
                    f"{row.source}: {error}\nTo put such rows aside, {go_on} data.on_bad_row=skip"
                ) from error

    def _look_at_refused(self, chunk: Chunk, answers: list[Any], store: Store) -> None:
        """Says that rows are refused, once; ends a run whose rows are refused one and all.

        Raises:
            FenleiError: of the first row's kind; something other than the rows is at fault.
        """
        refused = [
            (row, error)
            for row, error in zip(chunk.rows, answers, strict=True)
            if row.example is not None and isinstance(error, FenleiError)
        ]
        if not refused:
            return
        self.refused += len(refused)
        row, error = refused[0]
        written = store.journal.counts.written + sum(not isinstance(answer, Exception) for answer in answers)
        if not written and self.refused >= _ALL_REFUSED:
            raise type(error)(
                f"{self.source}: the classifier can answer none of the first {self.refused} rows, e.g. "
                f"{row.source}: {error}"
            ) from error
        self._note_once("refused", f"put aside, as every such row: {row.source}: {error}")

    def _note_once(self, kind: str, text: str) -> None:
        """Tells the first of many like notes."""
        if kind not in self.noted:
            self.noted.add(kind)
            self.progress.note(text)

    def _line(self, row: StreamedRow, prediction: Prediction) -> bytes:
        assert row.example is not None
        assert row.columns is not None
        return self.make_line(make_record(row.example, row.columns, prediction, self.selection.columns))

    def _rows(self) -> Iterator[StreamedRow]:
        config = self.classifier.config
        rows = stream_examples(
            self.source,
            config.data,
            need_label=False,
            role="predict",
            offline=config.model.offline,
            labels=self.classifier.labels,
        )
        return itertools.islice(rows, self.selection.limit)

    def _total(self) -> RowCount | None:
        total, limit = estimate_rows(self.source), self.selection.limit
        if total is None or limit is None:
            return total
        return RowCount(min(total.rows, limit), total.exact)

    def _content(self) -> str:
        """A hash of the input: of its files, or of the rows that are wanted where there are none or not all of them."""
        files = data_files(self.source) if self.selection.limit is None else []
        if files:
            if sum(file.stat().st_size for file in files) > _LARGE:
                self.progress.note("looking through the input, so that --resume notices a change")
            return fingerprint(self.source)
        digest = ""
        for chunk in iter_chunks(self._rows(), self.selection.chunk_rows, self.selection.chunk_bytes):
            digest = chunk.consumed
        return digest

    def _identity(self, classifier_sha256: str, machine: Mapping[str, Any]) -> dict[str, Any]:
        """What the output depends on; keys as the user knows them, for the message when one has changed."""
        config = self.classifier.config.model_dump(mode="json")
        versions = {**library_versions(), "numpy": version("numpy")}
        if self.paths.suffix == ".parquet":
            versions["pyarrow"] = version("pyarrow")
        identity: dict[str, Any] = {
            "the output format": OUTPUT_FORMAT,
            "INPUT": str(self.source),
            "the content of INPUT": self._content()[:16],
            "RUN (hash of its classifier)": classifier_sha256[:16],
            "--limit": self.selection.limit,
            "--columns": None if self.selection.columns is None else ",".join(self.selection.columns),
            "the size of a chunk": f"{self.selection.chunk_rows} rows or {self.selection.chunk_bytes} bytes",
            **{f"the version of {name}": found for name, found in versions.items()},
            **machine,
        }
        for group, values in config.items():
            if group not in _NO_INFLUENCE[""]:
                skipped = _NO_INFLUENCE.get(group, ())
                identity.update({f"{group}.{name}": value for name, value in values.items() if name not in skipped})
        return identity

    def _nothing_usable(self, counts: Counts) -> str:
        lines = [f"{self.source}: none of its {counts.read} rows can be used:"]
        with self.paths.rejected.open(encoding="utf-8", newline="\n") as handle:
            for text in itertools.islice(handle, SHOWN):
                row = json.loads(text)
                lines.append(f"  {row['source']}: {row['reason']}")
        if counts.read > SHOWN:
            lines.append(f"  ... and {counts.read - SHOWN} more, all in {self.paths.rejected}")
        return "\n".join(lines)


def _prepare(predictor: BulkPredictor, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Any]]]:
    """Each chunk with the prompts of its rows."""
    for chunk in chunks:
        yield chunk, encode_rows(predictor, chunk.rows)
