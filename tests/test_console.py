"""A console that never ends the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from fenlei.console import LastingConsole


@pytest.fixture
def unread():
    """The writing end of a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as file:
        yield file
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # closing it writes once more


def test_a_reader_that_went_away_ends_nothing(unread):
    console = LastingConsole(file=unread)
    console.print("one")
    console.print("two")
    assert console.quiet
    unread.flush()  # as Python does at its end


def test_richs_own_console_would_end_the_process(unread, monkeypatch):
    """Negative control."""
    put = os.dup2
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # it would take pytest's own stdout away
    with pytest.raises(SystemExit):
        Console(file=unread).print("one")
    monkeypatch.setattr(os, "dup2", put)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize(("kind", "raises"), [(LastingConsole, False), (Console, True)])
def test_a_log_file_on_a_full_disk(kind, raises):
    file = open("/dev/full", "w", buffering=1)
    console = kind(file=file)
    try:
        console.print("one")
        raised = False
    except OSError:
        raised = True
    assert raised == raises
    assert bool(console._buffer) == raises, "the line is not tried again with the next one"
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    file.close()
