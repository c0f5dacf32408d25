"""Videos as OpenAI's clients know them: create, list, look, download, delete, remix; and the models there are."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.types import Receive, Scope, Send

from daifuku.server.callers import ERRORS, Behind, Reader, Writer, takes
from daifuku.server.folder import DataFolder
from daifuku.server.problems import Problem, not_found
from daifuku.server.service import Service
from daifuku.server.tasks import FILES

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS)

POLL_AFTER_MS = 500
"""When clients that poll are told to come back."""


@router.post("/videos", status_code=202, openapi_extra=takes("CreateVideo"))
async def create(request: Request, service: Behind, key: Writer) -> JSONResponse:
    """Accept a job. When this answers 202, the job is on disk and comes to an end, whatever crashes."""
    service.model()
    body = await service.body(request)
    accepted = await service.accept(request, key, [service.new_job(key, body)], body)
    return await answered(service, accepted.jobs[0].id, key, replayed=accepted.replayed)


@router.get("/videos")
async def page(
    service: Behind,
    key: Reader,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> JSONResponse:
    """Jobs of this key, the newest first, or with order=asc the oldest."""
    from daifuku.server.store import Unknown

    try:
        newest_first = order == "desc"
        found = await service.database.read(
            lambda store: store.page(key.name, after=after, limit=limit + 1, newest_first=newest_first)
        )
    except Unknown as error:
        raise not_found() from error
    data = await service.shown(found[:limit])
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    more = len(found) > limit
    return JSONResponse({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})


@router.get("/videos/{video_id}")
async def look(video_id: str, service: Behind, key: Reader) -> JSONResponse:
    """How far a job is."""
    (shown,) = await service.shown([await service.look(key, video_id)])
    return JSONResponse(shown, headers={"openai-poll-after-ms": str(POLL_AFTER_MS)})


@router.delete("/videos/{video_id}")
async def delete(video_id: str, service: Behind, key: Writer) -> dict[str, Any]:
    """Cancel the job if it has not ended, and forget it and its files."""
    await service.delete(key, video_id)
    return {"id": video_id, "object": "video.deleted", "deleted": True}


@router.get("/videos/{video_id}/content", response_class=FileResponse)
async def content(
    video_id: str,
    service: Behind,
    key: Reader,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
) -> FileResponse:
    """A file of a completed job, or a range of its bytes."""
    job = await service.finished(key, video_id)
    assert job.result is not None, "a completed job has a result"
    return _Published(service.folder, job.id, variant, job.result["files"][variant]["sha256"])


@router.post("/videos/{video_id}/remix", status_code=202, openapi_extra=takes("Variation"))
async def remix(video_id: str, request: Request, service: Behind, key: Writer) -> JSONResponse:
    """The request of a completed job once more, with another prompt or anything else that the body changes."""
    service.model()
    body = await service.body(request)
    parent = await service.look(key, video_id)
    if parent.state != "completed":
        raise Problem(409, "not_completed", "Only a completed video can be remixed.")
    accepted = await service.accept(request, key, [service.new_job(key, body, parent)], body)
    return await answered(service, accepted.jobs[0].id, key, replayed=accepted.replayed)


@router.get("/models")
async def models(service: Behind, key: Reader) -> dict[str, Any]:
    """The model that is served."""
    return {"object": "list", "data": [_model(service)]}


@router.get("/models/{name:path}")
async def model(name: str, service: Behind, key: Reader) -> dict[str, Any]:
    """One model."""
    if name != service.model().name:
        raise Problem(404, "model_not_found", "There is no such model here.", param="model")
    return _model(service)


async def answered(service: Service, job_id: str, key: Reader, *, replayed: bool) -> JSONResponse:
    """202 with the job as it stands."""
    job = await service.database.read(lambda store: store.find(job_id))
    assert job is not None, "a job that was accepted is on disk"
    (shown,) = await service.shown([job])
    headers = {"openai-poll-after-ms": str(POLL_AFTER_MS), "Location": f"/v1/videos/{job_id}"}
    return JSONResponse(shown, 202, headers | ({"Idempotent-Replayed": "true"} if replayed else {}))


def _model(service: Service) -> dict[str, Any]:
    served = service.model()
    about = {"id": served.name, "object": "model", "created": 0, "owned_by": "daifuku"}
    return about | {"loras": sorted(served.loras)}


class _Published(FileResponse):
    """A file that stays while it is being sent."""

    def __init__(self, folder: DataFolder, job_id: str, variant: str, sha256: str) -> None:
        name, media_type = FILES[variant]
        headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, immutable", "X-Content-Type-Options": "nosniff"}
        path = folder.published(job_id, variant)
        super().__init__(path, 200, headers, media_type, filename=name.replace("video", job_id, 1))
        self._folder = folder
        self._job_id = job_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._folder.reading(self._job_id):
            try:
                self.stat_result = self.path_stat()
            except FileNotFoundError:
                gone = Problem(410, "expired", "The files of this video are not kept any more.")
                await gone.response()(scope, receive, send)
                return
            self.set_stat_headers(self.stat_result)
            await super().__call__(scope, receive, send)

    def path_stat(self) -> Any:
        """Size and time of the file. Raises FileNotFoundError."""
        import os

        return os.stat(self.path)
