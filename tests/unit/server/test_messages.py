import socket
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifuku.server.messages import MAX_BYTES, BrokenMessage, Channel, checked_length, packed, unpacked

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=9,
)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), JSON))
def test_a_message_arrives_as_it_was_sent(message: dict) -> None:
    content = packed(message)
    assert checked_length(content[:4]) == len(content) - 4
    assert unpacked(content[4:]) == message


@given(st.binary())
def test_what_is_no_message_is_refused_and_nothing_else_happens(content: bytes) -> None:
    with suppress(BrokenMessage):
        assert isinstance(unpacked(content), dict)


def test_a_message_that_is_too_long_is_neither_sent_nor_awaited() -> None:
    with pytest.raises(BrokenMessage):
        packed({"text": "x" * MAX_BYTES})
    with pytest.raises(BrokenMessage):
        checked_length((MAX_BYTES + 1).to_bytes(4, "big"))


def test_a_channel_ends_where_the_other_side_does_even_within_a_message() -> None:
    for sent in (b"", b"\0\0", b"\0\0\0\5{}"):
        ours, theirs = socket.socketpair()
        theirs.sendall(packed({"n": 1}) + sent)
        theirs.close()
        channel = Channel(ours)
        assert channel.receive() == {"n": 1}
        assert channel.receive() is None
        ours.close()
