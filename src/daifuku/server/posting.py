"""Sending one JSON object to one address: it follows no redirect, and reads only so much."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import h11

from daifuku.server.targets import Target
from daifuku.version import VERSION

MAX_READ_BYTES = 64 * 1024
"""Of an answer, its head included."""


class NoAnswer(Exception):
    """What came, if anything, is no answer. The message says why in a word or two, and nothing that was sent."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Of the other side."""

    status: int
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


async def post(
    target: Target,
    address: str,
    content: bytes,
    *,
    headers: Mapping[str, str],
    with_content: bool = False,
) -> Answer:
    """The answer to `content`, sent to the address and nowhere else; without its content unless asked for.

    The certificate of https is checked against the host of the target. How long to wait is the caller's business: it
    may be cancelled at any moment. Raises NoAnswer.
    """
    secure = ssl.create_default_context() if target.scheme == "https" else None
    name = target.host if secure else None
    try:
        reader, writer = await asyncio.open_connection(address, target.port, ssl=secure, server_hostname=name)
        try:
            return await _exchange(reader, writer, _request(target, content, headers), content, with_content)
        finally:
            # Not closed in a friendly way: the other side might not let go.
            writer.transport.abort()
    except (OSError, h11.ProtocolError) as error:
        raise NoAnswer(type(error).__name__) from error


def _request(target: Target, content: bytes, headers: Mapping[str, str]) -> h11.Request:
    head = {
        "Host": target.shown_host,
        "User-Agent": f"daifuku/{VERSION}",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Connection": "close",
        **headers,
    }
    return h11.Request(method="POST", target=target.path, headers=list(head.items()))


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: h11.Request,
    content: bytes,
    with_content: bool,
) -> Answer:
    link = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_READ_BYTES)
    for event in (request, h11.Data(data=content), h11.EndOfMessage()):
        writer.write(link.send(event) or b"")
    await writer.drain()
    status, received, num_read = 0, bytearray(), 0
    while True:
        event = link.next_event()
        if event is h11.NEED_DATA:
            chunk = await reader.read(MAX_READ_BYTES)
            num_read += len(chunk)
            if num_read > MAX_READ_BYTES:
                raise NoAnswer("too long")
            link.receive_data(chunk)
        elif isinstance(event, h11.Response):
            status = event.status_code
            if not with_content:
                return Answer(status=status, content=b"")
        elif isinstance(event, h11.Data):
            received += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status=status, content=bytes(received))
        elif not isinstance(event, h11.InformationalResponse):
            raise NoAnswer("closed")
