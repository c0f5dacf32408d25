"""Log lines: one JSON object each, made of what the server itself knows and never of what users write."""

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

Value = str | int | float | bool | None


@runtime_checkable
class Writable(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> Any:
        """Takes a text."""
        ...


class Log:
    """Writes events with a few plain values. There is no way to hand it a request."""

    def __init__(self, stream: Writable | None = None, *, level: str = "INFO") -> None:
        self._logger = logging.Logger("daifuku.server", getattr(logging, level.upper()))
        handler = logging.StreamHandler(sys.stderr if stream is None else stream)
        handler.setFormatter(_Lines())
        self._logger.addHandler(handler)

    def info(self, event: str, values: Mapping[str, Value]) -> None:
        """Something happened that should happen."""
        self._logger.info(event, extra={"values": values})

    def warning(self, event: str, values: Mapping[str, Value]) -> None:
        """Something happened that somebody may have to look at."""
        self._logger.warning(event, extra={"values": values})


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return json.dumps(line | dict(getattr(record, "values", {})))
