"""What reaches the transport, in which order, and in how many pieces."""

from __future__ import annotations

import asyncio

import pytest

from fenlei.server.cork import CorkedTransport


class Transport:
    """Notes what is asked of it."""

    def __init__(self):
        self.calls, self.closing = [], False

    def write(self, data):
        self.calls.append(bytes(data))

    def write_eof(self):
        self.calls.append("eof")

    def close(self):
        self.calls.append("close")
        self.closing = True

    def abort(self):
        self.calls.append("abort")
        self.closing = True

    def is_closing(self):
        return self.closing

    def get_write_buffer_size(self):
        return 100

    def get_extra_info(self, name):
        return f"its {name}"


def run(what):
    """What the transport was asked, at the end of ``what`` and after the loop's next turn."""

    async def main():
        inner = Transport()
        what(CorkedTransport(inner, asyncio.get_running_loop()))
        at_once = list(inner.calls)
        await asyncio.sleep(0)
        return at_once, inner.calls

    return asyncio.run(main())


def writes(*pieces, then=None):
    def what(transport):
        for piece in pieces:
            transport.write(piece)
        if then is not None:
            getattr(transport, then)()

    return what


def test_head_and_body_are_one_piece():
    assert run(writes(b"head ", b"body", b"")) == ([b"head body"], [b"head body"])


def test_a_head_alone_goes_with_the_next_turn():
    assert run(writes(b"head")) == ([], [b"head"])


def test_pieces_of_a_stream_keep_their_order():
    assert run(writes(b"a", b"b", b"c"))[1] == [b"ab", b"c"]
    assert run(writes(b"a", b"b", b"c", b"d"))[1] == [b"ab", b"cd"]


@pytest.mark.parametrize(("name", "noted"), [("close", "close"), ("write_eof", "eof")])
def test_what_was_kept_goes_before_the_end(name, noted):
    assert run(writes(b"answer", then=name)) == ([b"answer", noted], [b"answer", noted])


def test_a_connection_that_is_cut_off_gets_nothing_more():
    assert run(writes(b"answer", then="abort"))[1] == ["abort"]


def test_nothing_is_written_after_the_end():
    def what(transport):
        transport.write(b"answer")
        transport._transport.closing = True

    assert run(what)[1] == []


def test_what_is_kept_is_not_taken_yet():
    def what(transport):
        assert transport.get_write_buffer_size() == 100
        transport.write(b"12345")
        assert transport.get_write_buffer_size() == 105
        assert transport.get_extra_info("name") == "its name"

    assert run(what)[1] == [b"12345"]
