"""How long a prompt is for the model, before anything is made of it."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from daifuku.request import GenerateRequest
from daifuku.server.callers import ERRORS, Behind, Reader
from daifuku.server.problems import Problem
from daifuku.server.tokens import counter, max_tokens

router = APIRouter(prefix="/v1", tags=["Daifuku"], responses=ERRORS)

_MAX_CHARACTERS = GenerateRequest.__dataclass_fields__["prompt"].metadata["max_length"]
_BODY = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "maxLength": _MAX_CHARACTERS}},
    "required": ["prompt"],
    "additionalProperties": False,
    "example": {"prompt": "a small red ball bouncing on a gray background"},
}


@router.post("/tokens", openapi_extra={"requestBody": {"content": {"application/json": {"schema": _BODY}}}})
async def tokens(request: Request, service: Behind, key: Reader) -> dict[str, Any]:
    """Tokens of a prompt, the end mark included, and how many the model reads; the rest of the prompt is left out."""
    service.model()
    body = await service.body(request)
    prompt = body.get("prompt")
    if set(body) != {"prompt"} or not isinstance(prompt, str) or len(prompt) > _MAX_CHARACTERS:
        message = f"A body has one field, prompt: a text of at most {_MAX_CHARACTERS} characters."
        raise Problem(400, "invalid_value", message, param="prompt")
    card = service.dispatcher.card
    assert card is not None, "a model is served"
    if card.tokenizer is None:
        raise Problem(404, "no_tokenizer", "The model does not say how it counts tokens.")
    path = Path(card.tokenizer)
    count = (await asyncio.to_thread(counter, path))(prompt)
    return {"object": "tokens", "num_tokens": count, "max_tokens": max_tokens(path)}
