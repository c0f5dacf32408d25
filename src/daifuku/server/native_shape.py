"""What Daifuku adds: events as they happen, batches, cancelling, and decoding once more."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from daifuku.server.callers import ERRORS, Behind, Reader, Writer, takes
from daifuku.server.feed import Progress
from daifuku.server.keys import ApiKey
from daifuku.server.openai_shape import answered
from daifuku.server.problems import Problem
from daifuku.server.service import Service
from daifuku.server.streams import STILL_HERE, STILL_HERE_S, EventStream, event

router = APIRouter(prefix="/v1", tags=["Daifuku"], responses=ERRORS)


@router.post("/videos/batch", status_code=202, openapi_extra=takes("Batch"))
async def batch(request: Request, service: Behind, key: Writer) -> JSONResponse:
    """Accept several jobs, all of them or none."""
    service.model()
    body = await service.body(request)
    requests, most = body.get("requests"), service.settings.max_batch
    if set(body) != {"requests"} or not isinstance(requests, list) or not 1 <= len(requests) <= most:
        raise Problem(400, "invalid_value", f"A batch is a list of 1 to {most} requests.", param="requests")
    if not all(isinstance(one, dict) for one in requests):
        raise Problem(400, "invalid_value", "A request of a batch is a JSON object.", param="requests")
    accepted = await service.accept(request, key, [service.new_job(key, one) for one in requests], body)
    return JSONResponse({"object": "list", "data": await service.shown(accepted.jobs)}, 202)


@router.post("/videos/{video_id}/cancel")
async def cancel(video_id: str, service: Behind, key: Writer) -> JSONResponse:
    """Cancel a job. One that has ended stays as it is."""
    (shown,) = await service.shown([await service.cancel(key, video_id)])
    return JSONResponse(shown)


@router.post("/videos/{video_id}/decode", status_code=202, openapi_extra=takes("Decoding", required=False))
async def decode(video_id: str, request: Request, service: Behind, key: Writer) -> JSONResponse:
    """Make the frames of a completed job once more from its latents, without sampling."""
    service.model()
    body = await service.body(request)
    job = service.new_decoding(key, body, await service.finished(key, video_id))
    accepted = await service.accept(request, key, [job], body)
    return await answered(service, accepted.jobs[0].id, key, replayed=accepted.replayed)


@router.get(
    "/videos/{video_id}/events",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(video_id: str, service: Behind, key: Reader) -> Response:
    """Server-sent events: queued, running, preview, and done at the end. Who reads slowly misses some."""
    await service.look(key, video_id)
    return EventStream(_happening(service, key, video_id))


async def _happening(service: Service, key: ApiKey, video_id: str) -> AsyncIterator[bytes]:
    said: dict[str, Any] = {}
    with service.feed.following(video_id) as bell:
        while True:
            bell.clear()
            if service.feed.is_running(video_id):
                news = list(_news(service.feed.progress(video_id)))
                ended = False
            else:
                try:
                    job = await service.look(key, video_id)
                except Problem:
                    # It was deleted.
                    yield event("done", {"id": video_id, "object": "video.deleted", "deleted": True})
                    return
                (shown,) = await service.shown([job])
                ended = job.has_ended
                news = [("done", shown)] if ended else []
                if job.state == "queued":
                    news = [("queued", {"position": shown["queue_position"]})]
            for name, data in news:
                if said.get(name) != data:
                    said[name] = data
                    yield event(name, data)
            if ended:
                return
            try:
                async with asyncio.timeout(STILL_HERE_S):
                    await bell.wait()
            except TimeoutError:
                yield STILL_HERE


def _news(progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
    about = {"stage": progress.stage, "step": progress.step, "total": progress.total, "progress": progress.percent}
    yield "running", about
    if progress.preview is not None:
        yield "preview", {"step": progress.preview_step, "image": f"data:image/png;base64,{progress.preview}"}
