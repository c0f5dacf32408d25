"""Whether the server lives, whether it can work, and its figures."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from daifuku.server.callers import Behind, Watcher

router = APIRouter(tags=["Health"])


@router.get("/livez")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


@router.get("/readyz", responses={503: {"description": "Not now."}})
async def ready(service: Behind) -> JSONResponse:
    """Whether a job that comes now would be made soon: 503 while no worker has a model, and when the end is near."""
    num_ready = service.dispatcher.num_ready()
    status = "draining" if service.draining else "ready" if num_ready else "no worker is ready"
    return JSONResponse({"status": status, "workers": num_ready}, 200 if status == "ready" else 503)


@router.get("/metrics", response_class=Response)
async def metrics(service: Behind, key: Watcher) -> Response:
    """For Prometheus."""
    service.metrics.ready.set(service.dispatcher.num_ready())
    service.metrics.queued.set(await service.database.read(lambda store: store.num_queued()))
    return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")
