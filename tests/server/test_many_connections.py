"""Eight times as many connections as may ask: one more is let in at the cost of one that has no use of its room."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.server.process import Server, receive, until
from tests.server.test_socket_limits import WHOLE, code_of, read_answers, still_answers

PLACES = 3
ALL = 8 * PLACES


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Its time for a head is 15 s, and for a connection that idles 75 s."""
    with Server(["news", "--max-connections", PLACES], hold=tmp_path_factory.mktemp("hold") / "hold") as found:
        yield found


@contextmanager
def opened(server: Server, number: int, *, asked: bool) -> Iterator[list[socket.socket]]:
    """Connections; those that have asked have an answer, too."""
    until(lambda: still_answers(server), "earlier connections are gone")
    found: list[socket.socket] = []
    try:
        for _ in range(number):
            found.append(server.connect())
            if asked:
                ask(found[-1])
        yield found
    finally:
        for connection in found:
            connection.close()


def ask(connection: socket.socket) -> None:
    connection.sendall(WHOLE)
    read_answers(connection, 1)


def ask_in_vain(connection: socket.socket) -> None:
    """It has room, but no place."""
    connection.sendall(WHOLE)
    assert code_of(receive(connection)) == (503, "too_many_connections")


def test_one_less_cuts_nobody_off(server):
    """Negative control: as long as there is room, nobody is closed, however long it has idled."""
    with opened(server, ALL - 1, asked=True) as idle:
        time.sleep(1.2)
        with server.connect() as connection:
            ask(connection)
        for one in idle:
            ask(one)


def test_the_one_that_has_idled_longest_makes_room(server):
    with opened(server, ALL, asked=True) as idle:
        time.sleep(1.2)
        with server.connect() as connection:
            ask(connection)
        assert receive(idle[0]) == b""
        for one in idle[1:]:
            ask(one)


def test_silent_ones_that_are_not_needed_stay(server):
    """Negative control of the next one."""
    with opened(server, ALL - 1, asked=False) as silent:
        time.sleep(2.2)
        with server.connect() as connection:
            ask_in_vain(connection)
        for one in silent[:PLACES]:
            ask(one)


def test_one_that_has_said_nothing_for_two_seconds_makes_room(server):
    with opened(server, ALL, asked=False) as silent:
        time.sleep(2.2)
        begin = time.monotonic()
        with server.connect() as connection:
            ask(connection)  # the first one had a place
        assert receive(silent[0]) == b""
        assert time.monotonic() - begin < 10
        ask(silent[1])


def test_nobody_makes_room_at_once(server):
    """Those who have just come may be about to ask: the new one is told, before it has asked."""
    with opened(server, ALL, asked=False) as silent:
        with server.connect() as connection:
            assert code_of(receive(connection)) == (503, "too_many_connections")
        ask_in_vain(silent[-1])


def test_one_that_was_refused_makes_room_first(server):
    with opened(server, ALL, asked=False) as silent:
        silent[-1].sendall(WHOLE)  # refused, and it does not close
        time.sleep(0.4)
        with server.connect() as connection:
            ask_in_vain(connection)
        for one in silent[:PLACES]:
            ask(one)
