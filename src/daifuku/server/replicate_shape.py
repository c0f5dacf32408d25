"""The part of Replicate's API that its client needs to make predictions: Cog's, but nobody waits unless he says so."""

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from daifuku.server import cog_shape
from daifuku.server.callers import ERRORS, Behind, Reader, Writer, takes
from daifuku.server.problems import Problem

router = APIRouter(prefix="/v1/predictions", tags=["Replicate"], responses=ERRORS)

MAX_WAIT_S = 60.0
"""With Prefer: wait, as at Replicate."""


@router.post("", status_code=201, openapi_extra=takes("ReplicateRequest"))
async def create(request: Request, service: Behind, key: Writer) -> JSONResponse:
    """Make a prediction. With Prefer: wait=SECONDS the answer comes when it has ended, or then."""
    model = service.model().name
    body = await service.body(request)
    if body.pop("version", model) != model:
        raise Problem(404, "model_not_found", f"There is no such version here. Try {model!r}.", param="version")
    prediction = await cog_shape.accepted(request, service, key, body)
    wait_s = _wait_s(cog_shape.preferences(request))
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await cog_shape.ended(service, prediction.job.id)
    now = await cog_shape.found(service, key, prediction.job.id)
    return JSONResponse(cog_shape.as_shown(service, request, now), 201)


@router.get("/{prediction_id}")
async def look(prediction_id: str, request: Request, service: Behind, key: Reader) -> JSONResponse:
    """A prediction as it is now."""
    return await cog_shape.look(prediction_id, request, service, key)


@router.post("/{prediction_id}/cancel")
async def cancel(prediction_id: str, request: Request, service: Behind, key: Writer) -> JSONResponse:
    """Cancel a prediction. One that has ended stays as it is."""
    return await cog_shape.cancel(prediction_id, request, service, key)


def _wait_s(preferences: dict[str, str]) -> float:
    """0 for at once."""
    if "wait" not in preferences:
        return 0.0
    said = preferences["wait"]
    return min(MAX_WAIT_S, float(said[:4])) if said.isascii() and said.isdecimal() else MAX_WAIT_S


def schemas() -> dict[str, Any]:
    """Of the OpenAPI document."""
    return {
        "ReplicateRequest": {
            "type": "object",
            "properties": {
                "version": {"type": "string", "description": "The name of the model."},
                "input": {"$ref": "#/components/schemas/Input"},
                "webhook": {"type": "string", "format": "uri"},
                "webhook_events_filter": cog_shape.EVENTS_FILTER,
            },
            "required": ["input"],
            "additionalProperties": False,
        }
    }
