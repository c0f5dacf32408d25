"""What server and worker say to each other: JSON objects, each after its length, over a Unix socket."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

MAX_BYTES = 8 * 2**20
"""Of one message; a longer one breaks the connection."""

_LENGTH = struct.Struct(">I")

Message = dict[str, Any]


class BrokenMessage(Exception):
    """What came is no message."""


def packed(message: Mapping[str, Any]) -> bytes:
    """A message as it travels. Raises BrokenMessage where it is too long."""
    body = json.dumps(message, allow_nan=False).encode()
    if len(body) > MAX_BYTES:
        raise BrokenMessage(f"a message has {len(body)} bytes, more than {MAX_BYTES}")
    return _LENGTH.pack(len(body)) + body


def unpacked(body: bytes) -> Message:
    """The inverse of `packed`, without the length. Raises BrokenMessage."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BrokenMessage("a message is no JSON") from error
    if not isinstance(message, dict):
        raise BrokenMessage("a message is no object")
    return message


def checked_length(head: bytes) -> int:
    """Raises BrokenMessage where more is announced than a message may have."""
    (length,) = _LENGTH.unpack(head)
    if length > MAX_BYTES:
        raise BrokenMessage(f"a message of {length} bytes was announced, more than {MAX_BYTES}")
    return length


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end. Raises BrokenMessage."""
    try:
        head = await reader.readexactly(_LENGTH.size)
        return unpacked(await reader.readexactly(checked_length(head)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Channel:
    """The worker's end of the socket. Any of its threads may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = sock.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError where nobody listens any more."""
        content = packed(message)
        with self._sending:
            self._socket.sendall(content)

    def receive(self) -> Message | None:
        """The next message; None at the end. Raises BrokenMessage."""
        head = self._file.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        body = self._file.read(length := checked_length(head))
        return unpacked(body) if len(body) == length else None
