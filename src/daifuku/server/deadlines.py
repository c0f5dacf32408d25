"""HTTP over a socket, with limits on how long a client may keep the server waiting."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def with_deadlines(*, header_s: float, slow_reader_s: float) -> type[H11Protocol]:
    """The protocol class of uvicorn, ending connections whose request is slow to come or whose answer nobody reads."""

    class _Deadlined(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            # To close would wait for the reader.
            self._reading = self.loop.call_later(slow_reader_s, self.transport.abort)

        def resume_writing(self) -> None:
            _stop(self._reading)
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            _stop(self._head)
            _stop(self._reading)
            super().connection_lost(exc)

        def _watch_head(self) -> None:
            """The clock runs from the first moment in which a head is awaited until it is there."""
            if self.conn.their_state is not h11.IDLE:
                _stop(self._head)
                self._head = None
            elif self._head is None:
                self._head = self.loop.call_later(header_s, self.transport.close)

    return _Deadlined


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
