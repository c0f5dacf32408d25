"""Predictions as clients of Cog know them: they wait, read a stream, or have a webhook told, under names of theirs."""

import asyncio
import base64
import hashlib
import json
import platform
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from daifuku.server.asks import REQUEST_FIELDS, Served
from daifuku.server.callers import ERRORS, Behind, Reader, Writer, takes
from daifuku.server.jobs import Job
from daifuku.server.keys import ApiKey
from daifuku.server.predictions import EVENTS, NameReused, Predictions, Wish, log_line, shown
from daifuku.server.problems import Problem
from daifuku.server.service import JOB_ID, Service
from daifuku.server.streams import STILL_HERE, STILL_HERE_S, EventStream, Left, event, unless_left
from daifuku.server.targets import BadTarget
from daifuku.server.tasks import FILES, VIDEO
from daifuku.version import VERSION

router = APIRouter(tags=["Cog"], responses=ERRORS)

LOOK_S = 1.0
"""Somebody who waits hears after that time at the latest that the server is about to end."""

EVENTS_FILTER = {"type": "array", "items": {"enum": list(EVENTS)}}
"""JSON Schema of what a webhook is told about; all of it where the list is empty."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_FIELDS = ("input", "id", "created_at", "webhook", "webhook_events_filter", "output_file_prefix")
_STREAMED: dict[str, Any] = {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The prediction when it has ended, or events until then.", **_STREAMED},
    202: {"description": "With Prefer: respond-async, the prediction as it is now."},
}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A job, and what its client calls it."""

    job: Job
    name: str


@router.get("/")
async def index() -> dict[str, str]:
    """Where things are."""
    return {
        "daifuku_version": VERSION,
        "openapi_url": "/openapi.json",
        "healthcheck_url": "/health-check",
        "predictions_url": "/predictions",
        "predictions_idempotent_url": "/predictions/{prediction_id}",
        "predictions_cancel_url": "/predictions/{prediction_id}/cancel",
    }


@router.get("/health-check")
async def health(service: Behind) -> dict[str, Any]:
    """Always 200; `status` says how it is. BUSY still takes predictions: they wait in the queue."""
    dispatcher = service.dispatcher
    setup: dict[str, Any] = {"started_at": _time(service.started_at), "status": "starting", "logs": ""}
    status, num_ready = "STARTING", dispatcher.num_ready()
    if dispatcher.ready_at is not None:
        setup |= {"completed_at": _time(dispatcher.ready_at), "status": "succeeded"}
    if dispatcher.failed.done():
        status, setup["status"] = "SETUP_FAILED", "failed"
    elif service.draining:
        status = "DEFUNCT"
    elif num_ready:
        status = "BUSY" if dispatcher.num_running() >= num_ready else "READY"
    return {"status": status, "setup": setup, "version": {"daifuku": VERSION, "python": platform.python_version()}}


@router.post("/predictions", openapi_extra=takes("PredictionRequest"), responses=_ANSWERS)
async def create(request: Request, service: Behind, key: Writer) -> Response:
    """Make a prediction: the answer comes when it has ended, or at once with Prefer: respond-async."""
    service.model()
    body = await service.body(request)
    return await _answered(request, service, key, await accepted(request, service, key, body))


@router.put("/predictions/{prediction_id}", openapi_extra=takes("PredictionRequest"), responses=_ANSWERS)
async def create_once(prediction_id: str, request: Request, service: Behind, key: Writer) -> Response:
    """The same under a name of the client's: with that name and input again it is the same prediction."""
    service.model()
    body = await service.body(request)
    if body.get("id", prediction_id) != prediction_id:
        raise Problem(400, "invalid_value", "id is another one than that of the path.", param="id")
    found = await accepted(request, service, key, {**body, "id": prediction_id})
    return await _answered(request, service, key, found)


@router.get("/predictions/{prediction_id}")
async def look(prediction_id: str, request: Request, service: Behind, key: Reader) -> JSONResponse:
    """A prediction as it is now; also a job that was not made here, by its id."""
    return JSONResponse(as_shown(service, request, await found(service, key, prediction_id)))


@router.post("/predictions/{prediction_id}/cancel")
async def cancel(prediction_id: str, request: Request, service: Behind, key: Writer) -> JSONResponse:
    """Cancel a prediction. One that has ended stays as it is."""
    known = await found(service, key, prediction_id)
    job = await service.cancel(key, known.job.id)
    return JSONResponse(as_shown(service, request, Prediction(job=job, name=known.name)))


async def accepted(request: Request, service: Service, key: ApiKey, body: Mapping[str, Any]) -> Prediction:
    """A prediction that is on disk. Raises Problem."""
    values = _checked(body)
    wish = Wish(
        name=values.get("id"),
        input_sha256=hashlib.sha256(json.dumps(values["input"], sort_keys=True).encode()).hexdigest(),
        base_url=base_url(service, request),
        webhook=_webhook(service, values.get("webhook")),
        events=values.get("webhook_events_filter") or EVENTS,
    )
    new = service.new_job(key, values["input"])
    try:
        stored = await service.accept(
            request, key, [new], body, how=lambda store, *rest: Predictions(store).accept(wish, *rest)
        )
    except NameReused as error:
        raise Problem(409, "id_reused", "A prediction with this id had another input before.", param="id") from error
    (job,) = stored.jobs
    if wish.webhook is not None and not stored.replayed:
        service.deliverer.follow(job.id)
    return Prediction(job=job, name=wish.name or job.id)


async def found(service: Service, key: ApiKey, name: str) -> Prediction:
    """A prediction of that key by its client's name, or any job by its id. Raises Problem."""
    job_id, its_name = await service.database.read(lambda store: Predictions(store).find(key.name, name))
    return Prediction(job=await service.look(key, job_id), name=its_name)


def as_shown(service: Service, request: Request, prediction: Prediction, output: str | None = None) -> dict[str, Any]:
    """The prediction as Cog's clients see it."""
    job = prediction.job
    progress = service.feed.progress(job.id)
    return shown(job, progress, name=prediction.name, base_url=base_url(service, request), output=output)


def base_url(service: Service, request: Request) -> str:
    """Of links: what the operator says, else how the server was asked."""
    return (service.settings.public_url or str(request.base_url)).rstrip("/")


async def ended(service: Service, job_id: str) -> Job | None:
    """The job when it has ended; None where the server is about to end before."""
    with service.feed.following(job_id) as bell:
        while not service.draining:
            bell.clear()
            if not service.feed.is_running(job_id):
                job = await service.database.read(lambda store: store.find(job_id))
                assert job is not None, "a job that somebody waits for has not ended long ago"
                if job.has_ended:
                    return job
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await bell.wait()
    return None


async def _answered(request: Request, service: Service, key: ApiKey, prediction: Prediction) -> Response:
    """In the way that the request asks for. Who leaves cancels, unless a name of his or a key lets him come back."""
    job_id = prediction.job.id
    comes_back = prediction.name != job_id or "idempotency-key" in request.headers

    async def _leave() -> None:
        if not comes_back and not service.draining:
            with suppress(Problem):
                await service.cancel(key, job_id)

    if "respond-async" in preferences(request):
        return JSONResponse(as_shown(service, request, prediction), 202)
    if "text/event-stream" in request.headers.get("accept", ""):
        return EventStream(_happening(service, request, prediction), _leave)
    try:
        job = await unless_left(ended(service, job_id), request.receive)
    except Left:
        await _leave()
        return Response(status_code=202)
    if job is None:
        raise Problem(
            503,
            "not_ready",
            f"The server is about to end. The prediction is kept and goes on after that: /predictions/{job_id}.",
            headers={"Retry-After": "5"},
        )
    last = Prediction(job=job, name=prediction.name)
    return JSONResponse(as_shown(service, request, last, await _inline(service, job)))


def preferences(request: Request) -> dict[str, str]:
    """What the Prefer header says, by name."""
    parts = [part.strip() for part in request.headers.get("prefer", "").lower().split(",")]
    return {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in parts)}


async def _inline(service: Service, job: Job) -> str | None:
    """The video as a data URL; None where there is none."""
    if job.state != "completed" or job.files_gone_at is not None:
        return None
    with service.folder.reading(job.id), suppress(FileNotFoundError):
        content = await asyncio.to_thread(service.folder.published(job.id, VIDEO).read_bytes)
        return f"data:{FILES[VIDEO][1]};base64,{base64.b64encode(content).decode()}"
    return None


async def _happening(service: Service, request: Request, prediction: Prediction) -> AsyncIterator[bytes]:
    """start when a worker takes it, log with each step, output with the link to the video, completed."""
    job_id, started, said = prediction.job.id, False, ""
    with service.feed.following(job_id) as bell:
        while True:
            bell.clear()
            job = None
            running = service.feed.is_running(job_id)
            if not running:
                job = await service.database.read(lambda store: store.find(job_id))
                assert job is not None, "a job that somebody follows has not ended long ago"
            if not started and (running or (job is not None and job.started_at is not None)):
                started = True
                yield event("start", {"id": prediction.name, "status": "processing"})
            if running and (line := log_line(service.feed.progress(job_id))) != said:
                said = line
                yield event("log", {"source": "stderr", "data": line})
            if job is not None and job.has_ended:
                last = as_shown(service, request, Prediction(job=job, name=prediction.name))
                if last["output"] is not None:
                    yield event("output", {"chunk": last["output"], "index": 0})
                yield event("completed", last)
                return
            try:
                async with asyncio.timeout(STILL_HERE_S):
                    await bell.wait()
            except TimeoutError:
                yield STILL_HERE


def _checked(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a body that are not null. Raises Problem."""
    values = {name: value for name, value in body.items() if value is not None}
    if not set(values) <= set(_FIELDS):
        raise Problem(400, "unknown_field", "There is a field beside input that a prediction does not have.")
    if "output_file_prefix" in values:
        text = "Videos are not uploaded anywhere. Fetch the link of the output."
        raise Problem(400, "uploads_not_supported", text, param="output_file_prefix")
    if not isinstance(values.get("input"), dict):
        raise Problem(400, "invalid_value", "input is an object with the fields of a request.", param="input")
    name = values.get("id", "a")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Problem(400, "invalid_value", "id has 1 to 128 letters, digits, - and _.", param="id")
    if JOB_ID.fullmatch(name):
        raise Problem(400, "invalid_value", "An id of this form is one that the server gives.", param="id")
    if not isinstance(values.get("created_at", ""), str):
        raise Problem(400, "invalid_value", "created_at is a time in words of ISO 8601.", param="created_at")
    events = values.get("webhook_events_filter", [*EVENTS])
    if not isinstance(events, list) or not all(isinstance(one, str) and one in EVENTS for one in events):
        text = f"webhook_events_filter is a list of {', '.join(EVENTS)}."
        raise Problem(400, "invalid_value", text, param="webhook_events_filter")
    return values


def _webhook(service: Service, url: object) -> str | None:
    if url is None:
        return None
    try:
        service.deliverer.check(url)
    except BadTarget as error:
        text = f"webhook is not an address to send to. {error}"
        raise Problem(400, "webhook_refused", text, param="webhook") from error
    assert isinstance(url, str), "what was checked is a text"
    return url


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def schemas(served: Served) -> dict[str, Any]:
    """Of the OpenAPI document: what Cog's clients look for, and the body."""
    create = served.schema()
    fields = [(name, create["properties"][name]) for name in REQUEST_FIELDS]
    return {
        "Input": {
            "title": "Input",
            "type": "object",
            "properties": {name: about | {"x-order": order} for order, (name, about) in enumerate(fields)},
            "required": create["required"],
            "additionalProperties": False,
        },
        "Output": {"title": "Output", "type": "string", "format": "uri"},
        "PredictionRequest": {
            "type": "object",
            "properties": {
                "input": {"$ref": "#/components/schemas/Input"},
                "id": {"type": "string", "pattern": f"^{_NAME.pattern}$"},
                "created_at": {"type": "string"},
                "webhook": {"type": "string", "format": "uri"},
                "webhook_events_filter": EVENTS_FILTER,
            },
            "required": ["input"],
            "additionalProperties": False,
            "example": {"input": create["example"]},
        },
    }
