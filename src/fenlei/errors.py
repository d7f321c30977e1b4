"""The few kinds of error that fenlei raises for its users.

Every message says what was expected, what was found and where, and what to do next. The command line prints
the message without a traceback and ends with :attr:`FenleiError.exit_code`.
"""

from __future__ import annotations


class FenleiError(Exception):
    """Something the user can mend. ``exit_code`` is what the command line ends with.

    Attributes:
        note: the message as key and values, where a report words it in other languages too (a
            :class:`fenlei.evaluation.notes.Note`).
    """

    exit_code = 2
    note: object | None = None


class ConfigError(FenleiError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class DataError(FenleiError):
    """A data file cannot be read, or its rows do not fit."""


class ModelError(FenleiError):
    """A model cannot be found, fetched, verified or loaded."""


class ArtifactError(FenleiError):
    """A run folder or classifier folder is missing, incomplete, changed or of another version."""


class TrainingError(FenleiError):
    """Training cannot start or cannot go on, e.g. the loss is no longer finite."""


class Interrupted(FenleiError):
    """The run was told to stop; what was done is saved and the message says how to go on.

    Args:
        message: what happened and how to go on.
        signal_number: the signal that said so; 2 is Ctrl-C.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # as a shell counts


class StopNow(KeyboardInterrupt):
    """A signal that ends the work in progress at once; what is caught nowhere else still ends with the right code."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class MissingDependency(FenleiError):
    """An optional package is needed; the message names the extra that installs it."""


def need_extra(package: str, extra: str) -> MissingDependency:
    """Builds the error for an optional part whose package is not installed.

    Args:
        package: the import that failed, e.g. ``"fastapi"``.
        extra: the extra of fenlei that brings it, e.g. ``"serve"``.
    """
    return MissingDependency(f"this needs the package {package!r}: pip install 'fenlei[{extra}]'")
