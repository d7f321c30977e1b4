"""The classifiers of a server: several, by name, on one copy of the base weights; added and removed while it runs."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fenlei.artifact import MANIFEST, read_artifact
from fenlei.classifier import TextClassifier
from fenlei.errors import ConfigError, FenleiError

if TYPE_CHECKING:
    from fenlei.modeling.shared import SharedBase

# no dot in front: a name is part of a path in a request, and "." and ".." mean something else there
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
# computed beginnings of prompts, of all classifiers together
_PREFIX_BYTES = 512 << 20
_T = TypeVar("_T")


class UnknownModel(FenleiError):
    """No classifier has the name that was asked for."""


@dataclass(frozen=True, eq=False)
class Served:
    """A classifier that can be asked by name.

    Attributes:
        name: its name.
        classifier: itself.
        created: when it was saved, in Unix seconds.
    """

    name: str
    classifier: TextClassifier
    created: int


class Models:
    """Classifiers by name; the first one answers where no name is given.

    They share one base model, each with an adapter, encoder, calibration and computed prompt beginnings of its own, so
    a classifier answers as if it were alone. A classifier whose training changed the base model's own weights
    (``lora.method=full``) is served alone.

    All forward passes are made by one thread, see :meth:`on_scoring_thread`: torch uses all cores for one, so two at a
    time would only slow each other down.

    Use :meth:`open` to make one, and :meth:`close` when done.
    """

    def __init__(self, base: SharedBase | None, model: str | None, overrides: Sequence[str]) -> None:
        self._base, self._model, self._overrides = base, model, tuple(overrides)
        self._served: dict[str, Served] = {}
        self._coming: set[str] = set()
        self._lock = threading.Lock()
        self._batch_tokens: int | None = None
        self.scoring = ThreadPoolExecutor(1, thread_name_prefix="fenlei-score")

    @classmethod
    def open(
        cls, runs: Sequence[tuple[str | None, Path]], *, model: str | None = None, overrides: Sequence[str] = ()
    ) -> Models:
        """Loads classifiers and their base model.

        Args:
            runs: (name, run folder or classifier folder) each; without a name, the folder's name is taken.
            model: where the base model is now, if its spec no longer leads to it.
            overrides: settings of this machine for all classifiers, as for :meth:`fenlei.TextClassifier.load`.

        Raises:
            ConfigError: no classifier, a bad name, or one that is there twice.
            ArtifactError: a folder is not a whole classifier, or cannot share the base model of the first one.
            ModelError: the base model cannot be found or loaded.
        """
        if not runs:
            raise ConfigError("no classifier to serve; give a run folder or classifier folder")
        named = [(default_name(path) if name is None else name, Path(path)) for name, path in runs]
        for number, (name, path) in enumerate(named):
            _check_name(name)
            before = dict(named[:number])
            if name in before:
                raise ConfigError(
                    f"{path}: the name {name!r} is taken by {before[name]}; give it another one: NAME={path}"
                )
        self = cls(_shared_base(named[0][1], model, overrides), model, overrides)
        try:
            for name, path in named:
                self.add(name, path)
        except BaseException:
            self.close()
            raise
        return self

    def get(self, name: str | None = None) -> Served:
        """A classifier by its name; the first one for None.

        Raises:
            UnknownModel: there is none; lists the names.
        """
        with self._lock:
            found = next(iter(self._served.values()), None) if name is None else self._served.get(name)
            if found is None:
                raise UnknownModel(f"no classifier is called {name!r:.80}; there are: {', '.join(self._served)}")
            return found

    def names(self) -> list[str]:
        """All names, the one that answers by default first."""
        with self._lock:
            return list(self._served)

    def add(self, name: str, folder: Path) -> Served:
        """Loads one more classifier; the others answer meanwhile.

        Call it from a thread of its own, not from the event loop: it takes seconds, and it waits for its turn to make
        a first forward pass.

        Args:
            name: 1 to 64 letters, digits, ``.``, ``_`` and ``-``, the first one no dot.
            folder: run folder or classifier folder.

        Raises:
            ConfigError: the name is taken or not a name, or settings do not fit.
            ArtifactError: the folder is not a whole classifier, or it cannot share the base model.
            ModelError: the model fails on it.
        """
        with self._reserved(name):
            if self._base is None and self._served:
                (only,) = self._served
                raise ConfigError(
                    f"{folder}: {only!r}, which is served, has a model of its own (lora.method=full or the like), so "
                    f"nothing can share its weights; give {folder} a server of its own"
                )
            classifier = TextClassifier.load(folder, model=self._model, overrides=self._overrides, base=self._base)
            served = Served(name, classifier, _created(classifier))
            predictor = classifier.predictor
            if self._batch_tokens is not None:
                predictor.batch_tokens = self._batch_tokens
            self.on_scoring_thread(predictor.warm)
            if self._base is not None:
                _release_with(served)
            with self._lock:
                self._served[name] = served
                self._divide_memory()
        return served

    def remove(self, name: str) -> None:
        """Takes a classifier out. Requests that have it already are still answered; its memory is free after the last.

        Where it was the default, the next one takes its place.

        Raises:
            UnknownModel: there is none of this name.
            ConfigError: it is the only one.
        """
        with self._lock:
            if name not in self._served:
                raise UnknownModel(f"no classifier is called {name!r:.80}; there are: {', '.join(self._served)}")
            if len(self._served) == 1:
                raise ConfigError(f"{name!r} is the only classifier; add another one first, or stop the server")
            del self._served[name]
            self._divide_memory()

    def use_batch_tokens(self, tokens: int) -> None:
        """Forward passes of this many tokens, also for classifiers that are added later."""
        with self._lock:
            self._batch_tokens = tokens
            for served in self._served.values():
                served.classifier.predictor.batch_tokens = tokens

    def on_scoring_thread(self, work: Callable[[], _T]) -> _T:
        """Does something with the model between two forward passes, and waits for it."""
        return self.scoring.submit(work).result()

    def close(self) -> None:
        """Ends the scoring thread after the forward pass in progress; what waits for it is dropped."""
        self.scoring.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _reserved(self, name: str) -> Iterator[None]:
        _check_name(name)
        with self._lock:
            if name in self._served or name in self._coming:
                raise ConfigError(f"the name {name!r} is taken; choose another one, or remove that classifier first")
            self._coming.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._coming.discard(name)

    def _divide_memory(self) -> None:
        for served in self._served.values():
            served.classifier.predictor.keep_prefixes(_PREFIX_BYTES // len(self._served))


def default_name(path: Path) -> str:
    """A name for a classifier: that of its folder, with other characters replaced.

    For the folder ``classifier`` in a run folder, that of the run folder.
    """
    folder = Path(path).resolve()
    if folder.name == "classifier" and (folder / MANIFEST).is_file():
        folder = folder.parent
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip(".-")[:64] or "classifier"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r:.80} cannot be a classifier's name: expected 1 to 64 letters (A-Z, a-z), digits, '.', '_' and "
            "'-', the first one no dot"
        )


def _shared_base(path: Path, model: str | None, overrides: Sequence[str]) -> SharedBase | None:
    """The base model of the first classifier; None where that has a model of its own."""
    from fenlei.inference.loading import can_share, load_base, stored_settings

    artifact = read_artifact(path)
    if not can_share(artifact):
        return None
    return load_base(
        artifact, TextClassifier(config=stored_settings(artifact, path, model), overrides=overrides).config
    )


def _created(classifier: TextClassifier) -> int:
    try:
        return int(datetime.fromisoformat(classifier.manifest["created"]).timestamp())
    except (KeyError, TypeError, ValueError):
        return int(time.time())


def _release_with(served: Served) -> None:
    """Frees the adapter as soon as the last request lets go of its classifier, without waiting for the collector."""
    from fenlei.modeling.shared import release

    weakref.finalize(served, release, served.classifier.predictor.model).atexit = False
