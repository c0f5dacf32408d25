"""Server-sent events, and noticing that nobody reads them any more."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

STILL_HERE_S = 15.0
"""Silence after which a stream says that it lives."""

STILL_HERE = b": still here\n\n"


class Left(Exception):
    """Nobody waits for the answer any more."""


def event(name: str, data: Any) -> bytes:
    """One event as it is sent."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream(Response):
    """An event stream that ends when its reader leaves; `if_left` is awaited then."""

    def __init__(self, chunks: AsyncIterator[bytes], if_left: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.headers["content-type"] = "text/event-stream"
        del self.headers["content-length"]
        self._chunks = chunks
        self._if_left = if_left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await unless_left(self._send(send), receive)
        except Left:
            if self._if_left is not None:
                await self._if_left()

    async def _send(self, send: Send) -> None:
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_left(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What the work returns. Raises Left where the client leaves before; the work is given up then."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Left
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
