"""What a route gets of its request: the service behind it, and the key of who asks."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Request

from daifuku.server.keys import METRICS, READ, WRITE, ApiKey
from daifuku.server.problems import Problem, busy
from daifuku.server.service import Service


def _service(request: Request) -> Service:
    return request.app.state.service


def caller(scope: str) -> Callable[[Request], Awaitable[ApiKey]]:
    """A dependency that lets in whose key has the scope, as often as it may. Raises Problem."""

    async def _find(request: Request) -> ApiKey:
        doorkeeper = request.app.state.doorkeeper
        key = doorkeeper.find(request.headers.get("authorization"))
        if key is None:
            headers = {"WWW-Authenticate": "Bearer"}
            raise Problem(401, "invalid_api_key", "An API key is needed: Authorization: Bearer KEY.", headers=headers)
        if (wait_s := doorkeeper.wait_s(key)) > 0:
            request.app.state.service.metrics.refused.labels("rate_limit").inc()
            raise busy("Too many requests with this key.", wait_s, code="rate_limit")
        if scope not in key.scopes:
            raise Problem(403, "missing_scope", f"This key has no scope {scope}.")
        return key

    return _find


Behind = Annotated[Service, Depends(_service)]
Reader = Annotated[ApiKey, Depends(caller(READ))]
Writer = Annotated[ApiKey, Depends(caller(WRITE))]
Watcher = Annotated[ApiKey, Depends(caller(METRICS))]

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, text in {
        400: "The request can never work.",
        401: "No key.",
        403: "The key may not do this.",
        404: "There is no such video.",
        408: "The body took too long.",
        409: "The job is in another state, or the Idempotency-Key came with another body.",
        410: "The files are not kept any more.",
        413: "The body is too large.",
        415: "The body is of another kind.",
        429: "Too much for now; Retry-After says when it may work.",
        503: "The model is being loaded, or the server is about to end.",
        507: "The disk of the server is full; nothing was stored.",
    }.items()
}
"""Answers that any route may give."""


def takes(schema: str, *, required: bool = True) -> dict[str, Any]:
    """What a route says in the OpenAPI document about its body."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": required, "content": content}}
