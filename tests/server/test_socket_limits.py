"""Promise 18 on a socket: slow clients, many of them, 100 MB, what is no HTTP. A real process; fake classifiers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.server.process import Server, receive, until

MB = 1_000_000
HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
GOOD = b'{"text": "a"}'
WHOLE = HEAD + b"Content-Length: 13\r\n\r\n" + GOOD


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    hold = tmp_path_factory.mktemp("hold") / "hold"
    times = ["--head-seconds", 0.5, "--body-seconds", 1, "--send-seconds", 1, "--idle-seconds", 0.5]
    with Server(["news", *times, "--max-connections", 20], hold=hold) as found:
        yield found


def code_of(answer: bytes) -> tuple[int, str]:
    """Status and error code of a whole HTTP answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-content-type-options: nosniff" in head.lower(), answer
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """The same server with its guards off, or as good as: for negative controls."""
    hold = tmp_path_factory.mktemp("hold") / "hold"
    times = ["--head-seconds", 600, "--body-seconds", 600, "--send-seconds", 600]
    with Server(["news", *times, "--max-connections", 1000, "--max-body-bytes", 200 * MB], hold=hold) as found:
        yield found


def still_answers(server: Server) -> bool:
    with server.client() as client:
        return client.post("/v1/classify", json={"text": "好"}).status_code == 200


class TestHundredMegabytes:
    @pytest.mark.parametrize("how", ["length", "chunked", "lying"])
    @pytest.mark.parametrize("path", ["/v1/classify", "/v1/models", "/nothing"])
    def test_memory_stays(self, server, how, path):
        assert still_answers(server)
        before = server.memory
        piece = b"x" * MB
        with server.connect() as connection:
            length = {"length": b"Content-Length: 100000000\r\n", "chunked": b"Transfer-Encoding: chunked\r\n",
                      "lying": b"Content-Length: 5\r\n"}[how]  # fmt: skip
            connection.sendall(HEAD.replace(b"/v1/classify", path.encode()) + length + b"\r\n")
            most = 0
            try:
                for _ in range(100):
                    connection.sendall(b"%x\r\n%s\r\n" % (MB, piece) if how == "chunked" else piece)
                    most = max(most, server.memory)
                if how == "chunked":
                    connection.sendall(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server need not take it all
            answer = receive(connection)
        assert most - before < 50 * MB
        expected = {("/v1/classify", "length"): b" 413 ", ("/v1/classify", "chunked"): b" 413 ",
                    ("/v1/classify", "lying"): b" 400 "}  # fmt: skip
        assert expected.get((path, how), b" 40") in answer.split(b"\r\n")[0] + b" ", answer[:300]
        assert still_answers(server)

    def test_a_client_that_waits_for_leave_sends_nothing(self, server):
        with server.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n")
            answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 413 ")


class TestSlow:
    def test_a_body_that_does_not_come(self, server):
        with server.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: 13\r\n\r\n{")
            assert code_of(receive(connection)) == (408, "body_timeout")

    def test_a_body_that_drips(self, server):
        """The time counts for the whole body, not from byte to byte."""
        with server.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
            ended = threading.Event()

            def drip():
                try:
                    while not ended.wait(0.05):
                        connection.sendall(b" ")
                except OSError:
                    pass

            thread = threading.Thread(target=drip)
            thread.start()
            answer = receive(connection)
            ended.set()
            thread.join()
        assert code_of(answer) == (408, "body_timeout")

    def test_a_head_that_does_not_come(self, server):
        with server.connect() as connection:
            connection.sendall(HEAD)
            assert code_of(receive(connection)) == (408, "head_timeout")

    def test_nothing_at_all(self, server):
        with server.connect() as connection:
            assert receive(connection) == b""

    def test_nothing_after_an_answer(self, server):
        with server.connect() as connection:
            connection.sendall(WHOLE + b"POST /v1")
            answer = receive(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"head_timeout"' in answer

    def test_the_others_do_not_wait(self, server):
        """Ten clients that send nothing more: the next one is served."""
        slow = [server.connect() for _ in range(10)]
        for connection in slow:
            connection.sendall(HEAD + b"Content-Length: 13\r\n\r\n{")
        assert still_answers(server)
        for connection in slow:
            connection.close()

    def test_a_client_that_does_not_read(self, server):
        """Answers of many megabytes that nobody takes: the server lets go."""
        with unread(server) as connection:
            until(lambda: closed(connection), "the server closes the connection")
        assert still_answers(server)


class TestWithoutTheGuards:
    """Negative controls: what the server that is tested above refuses, one without limits takes."""

    LONGER_S = 2.0  # than the limits of the other server

    def test_memory(self, patient):
        before, most = patient.memory, 0
        with patient.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: 100000000\r\n\r\n")
            for _ in range(99):
                connection.sendall(b"x" * MB)
                most = max(most, patient.memory)
        assert most - before > 50 * MB

    @pytest.mark.parametrize("slow", ["head", "body"])
    def test_slow(self, patient, slow):
        with patient.connect() as connection:
            cut = len(HEAD) if slow == "head" else len(WHOLE) - 5
            connection.sendall(WHOLE[:cut])
            time.sleep(self.LONGER_S)
            connection.sendall(WHOLE[cut:])
            read_answers(connection, 1)

    def test_many(self, patient):
        taken = [patient.connect() for _ in range(30)]
        assert still_answers(patient)
        for connection in taken:
            connection.close()

    def test_a_client_that_does_not_read(self, patient):
        with unread(patient) as connection:
            time.sleep(self.LONGER_S)
            assert not closed(connection)


@contextmanager
def unread(server: Server) -> Iterator[socket.socket]:
    """A connection of a client that asks for much and takes nothing."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(120)
        connection.sendall(b"GET /assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
        yield connection


def closed(connection: socket.socket) -> bool:
    """Whether the other side has reset the connection."""
    try:
        connection.send(b"\r\n")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def test_too_many_connections(server):
    until(lambda: still_answers(server), "earlier connections are gone")
    taken = [server.connect() for _ in range(20)]
    try:
        answers = []
        for _ in range(5):
            with server.connect() as connection:
                connection.sendall(WHOLE)
                answers.append(receive(connection))
        refused = [answer for answer in answers if code_of(answer) == (503, "too_many_connections")]
        assert len(refused) == len(answers)
        assert b"Retry-After: 1" in refused[0]
    finally:
        for connection in taken:
            connection.close()
    until(lambda: still_answers(server), "there is room again")


class TestAllPlacesTaken:
    """Who watches a busy server is not to take it for a dead one; and a connection that idles takes no place."""

    @pytest.fixture(scope="class")
    def small(self, tmp_path_factory):
        with Server(["news", "--max-connections", 3], hold=tmp_path_factory.mktemp("hold") / "hold") as found:
            yield found

    @pytest.fixture
    def taken(self, small):
        until(lambda: still_answers(small), "earlier connections are gone")
        found = [small.connect() for _ in range(3)]
        yield found
        for connection in found:
            connection.close()

    @pytest.mark.parametrize("path", [b"/health/live", b"/health/ready", b"/metrics", b"/metrics?a=b"])
    def test_how_it_is(self, small, taken, path):
        for pieces in ([path], [path[:3], path[3:]]):
            with small.connect() as connection:
                connection.sendall(b"GET " + pieces[0])
                connection.sendall(b"".join(pieces[1:]) + b" HTTP/1.1\r\nHost: localhost\r\n")
                connection.sendall(b"\r\n" + WHOLE)
                answer = receive(connection)
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert b"connection: close" in answer.lower()
            assert answer.count(b"HTTP/1.1 ") == 1, "and nothing else"

    @pytest.mark.parametrize(
        "sent",
        [WHOLE, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /health/live/ HTTP/1.1\r\n", b"x" * 300],
        ids=range(4),
    )
    def test_nothing_else(self, small, taken, sent):
        with small.connect() as connection:
            connection.sendall(sent)
            assert code_of(receive(connection)) == (503, "too_many_connections")

    def test_one_has_gone_meanwhile(self, small, taken):
        with small.connect() as connection:
            for other in taken[:2]:
                other.close()
            until(lambda: still_answers(small), "there is room")
            connection.sendall(WHOLE)
            read_answers(connection, 1)
            connection.sendall(WHOLE)
            read_answers(connection, 1)

    def test_one_that_idles_takes_no_place(self, small, taken):
        for connection in taken:
            connection.sendall(WHOLE)
            read_answers(connection, 1)
        with small.connect() as connection:
            connection.sendall(WHOLE)
            read_answers(connection, 1)
        for connection in taken:
            connection.sendall(WHOLE)
            read_answers(connection, 1)

    def test_one_that_idled_asks_again(self, small, taken):
        """It is told that all places are taken; probes are answered. Never is it cut off without a word."""
        asking, idle = taken[:2], taken[2]
        idle.sendall(WHOLE)
        read_answers(idle, 1)
        for connection in asking:
            connection.sendall(HEAD)
        with small.connect() as third:
            third.sendall(HEAD)
            time.sleep(0.1)
            idle.sendall(WHOLE)
            assert code_of(receive(idle)) == (503, "too_many_connections")

    def test_probes_on_one_that_idled(self, small, taken):
        taken[2].sendall(WHOLE)
        read_answers(taken[2], 1)
        with small.connect() as third:
            third.sendall(HEAD)
            time.sleep(0.1)
            taken[2].sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" + WHOLE)
            answer = receive(taken[2])
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert answer.count(b"HTTP/1.1 ") == 1

    def test_a_head_that_does_not_come(self, small, taken):
        """Without a place, too; head-seconds are 15 here, and it is told when they are over."""
        with small.connect() as connection:
            connection.sendall(b"GET /hea")
            assert code_of(receive(connection)) == (408, "head_timeout")


def test_an_idle_connection_is_closed_in_the_end(tmp_path):
    with Server(["news", "--idle-seconds", 0.5, "--head-seconds", 600], hold=tmp_path / "hold") as server:
        for refused in (b"", HEAD.replace(b"application/json", b"text/plain") + b"Content-Length: 13\r\n\r\n"):
            with server.connect() as connection:
                connection.sendall(refused or WHOLE)
                read_answers(connection, 1, b"unsupported_media_type" if refused else b'"timings"')
                if refused:  # the rest of a body that nobody wants; then it idles
                    connection.sendall(GOOD)
                assert receive(connection) == b""


def test_head_has_no_body(server):
    with server.connect() as connection:
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = receive(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: " in head.lower()
    assert body == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
    ],
    ids=range(9),
)
def test_no_http(server, sent):
    with server.connect() as connection:
        connection.sendall(sent)
        assert code_of(receive(connection)) == (400, "invalid_http")
    assert still_answers(server)


def test_pipelined_and_kept_alive(server):
    with server.connect() as connection:
        connection.sendall(WHOLE * 3)
        read_answers(connection, 3)
        connection.sendall(WHOLE)
        read_answers(connection, 1)


def read_answers(connection: socket.socket, count: int, mark: bytes = b'"timings"') -> None:
    """Reads until something has come so many times."""
    found = b""
    while found.count(mark) < count:
        more = connection.recv(65_536)
        assert more, "the server has closed the connection"
        found += more


def test_a_refused_body_leaves_the_connection_usable(server):
    """What is left of a small refused body is read and dropped; the next request is the next one."""
    with server.connect() as connection:
        connection.sendall(HEAD.replace(b"application/json", b"text/plain") + b"Content-Length: 13\r\n\r\n" + GOOD)
        read_answers(connection, 1, b"unsupported_media_type")
        connection.sendall(WHOLE)
        read_answers(connection, 1)


def test_ranges_are_ignored(server):
    ranges = "bytes=" + ",".join(f"{n}-" for n in range(500))
    with server.client() as client:
        for path in ("/", "/assets/docs.js", "/openapi.json"):
            whole = client.get(path)
            ranged = client.get(path, headers={"Range": ranges})
            assert (ranged.status_code, ranged.content) == (200, whole.content)
            assert "content-range" not in ranged.headers


def test_no_upgrade(server):
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "x" * 22 + "==",
        "Sec-WebSocket-Version": "13",
    }
    with server.client() as client:
        assert client.get("/v1/classify", headers=headers).status_code == 405
