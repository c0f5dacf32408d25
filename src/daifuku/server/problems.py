"""Answers that are errors, in the shape of OpenAI's API. None repeats what the client sent."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastapi.responses import JSONResponse

from daifuku.errors import InvalidRequest
from daifuku.request import GenerateRequest
from daifuku.values import shown

TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
TYPES |= {409: "conflict_error", 429: "rate_limit_error"}


_FIELDS = frozenset(each.name for each in fields(GenerateRequest))


class Problem(Exception):
    """Ends a request with this answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """As it goes out."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


def busy(message: str, retry_after_s: float, *, code: str = "queue_full") -> Problem:
    """Too much for now: it works later."""
    return Problem(429, code, message, headers={"Retry-After": str(max(1, round(retry_after_s)))})


def not_found() -> Problem:
    """There is no such video, or it is somebody else's: nobody can tell which."""
    return Problem(404, "not_found", "There is no such video.", param="id")


def of_request(error: InvalidRequest, sent: Mapping[str, Any]) -> Problem:
    """What is wrong with a request in its own words, but for those of the client: only numbers are quoted back."""
    message = str(error)
    for value in _texts(sent):
        message = message.replace(shown(value), "what was sent")
    first = re.match(r"\w+", message)
    param = first[0] if first is not None and first[0] in _FIELDS else None
    return Problem(400, "invalid_value", message, param=param)


def _texts(value: Any) -> list[Any]:
    """Whatever in a body is no number, the longest first."""
    found: list[Any] = []
    if isinstance(value, Mapping):
        found = [one for pair in value.values() for one in _texts(pair)]
    elif isinstance(value, list):
        found = [one for each in value for one in _texts(each)]
    if not isinstance(value, int | float):
        found.append(value)
    return sorted(found, key=lambda one: -len(shown(one)))
