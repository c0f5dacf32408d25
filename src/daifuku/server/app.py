"""The ASGI application: the shapes of the API on one service, and what every request passes on its way in."""

import sqlite3
from collections.abc import Callable
from time import monotonic
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daifuku.server import cog_shape, health_shape, native_shape, openai_shape, replicate_shape, tokens_shape
from daifuku.server.asks import Served
from daifuku.server.keys import Doorkeeper
from daifuku.server.logs import Log
from daifuku.server.metrics import Metrics
from daifuku.server.problems import Problem
from daifuku.server.service import Service
from daifuku.server.settings import LOOPBACK, Settings
from daifuku.version import VERSION

SHAPES = (
    native_shape.router,
    openai_shape.router,
    tokens_shape.router,
    cog_shape.router,
    replicate_shape.router,
    health_shape.router,
)
"""The order matters: /v1/videos/batch comes before /v1/videos/{id}."""


Around = Callable[[ASGIApp], ASGIApp]
"""Puts something around the API, behind the entrance: a page that uses it."""


def build_app(service: Service, doorkeeper: Doorkeeper, log: Log, around: Around | None = None) -> ASGIApp:
    """The application of a service that is about to run."""
    app = FastAPI(
        title="Daifuku",
        version=VERSION,
        description="Text to video with Mochi 1: jobs that outlive a crash.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service, app.state.doorkeeper = service, doorkeeper
    for router in SHAPES:
        app.include_router(router)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(sqlite3.OperationalError, _disk)
    app.add_exception_handler(Exception, _unforeseen)
    app.state.log = log
    app.openapi = lambda: _openapi(app, service)
    hosts = None if doorkeeper.keys else {*LOOPBACK, *service.settings.allowed_hosts}
    return _Entrance(app if around is None else around(app), hosts=hosts, metrics=service.metrics, log=log)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _invalid(request: Request, error: Exception) -> Response:
    """Of a query or a path; what was sent is left out."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return Problem(400, "invalid_value", f"{name}: {first['msg'].lower()}.", param=name).response()


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "no_route", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    text = {404: "There is nothing here.", 405: "This cannot be done here."}.get(error.status_code, "No.")
    return Problem(error.status_code, code, text, headers=error.headers).response()


async def _disk(request: Request, error: Exception) -> Response:
    """A full disk, for the most part: nothing of the request was stored, and it works again when there is room."""
    request.app.state.log.warning("the jobs could not be read or changed", {"error": str(error)})
    message = "The disk of the server takes nothing more; nothing was stored."
    return Problem(507, "insufficient_storage", message, headers={"Retry-After": "10"}).response()


async def _unforeseen(request: Request, error: Exception) -> Response:
    """The client is told nothing."""
    return Problem(500, "internal", "Something went wrong on the server.").response()


class _Entrance:
    """Refuses strange hosts, counts, and notes what nobody foresaw."""

    def __init__(self, app: ASGIApp, *, hosts: set[str] | None, metrics: Metrics, log: Log) -> None:
        self._app = app
        self._hosts = hosts
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = monotonic()

        async def _send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"], monotonic() - started)
            await send(message)

        if not self._is_known(scope):
            # A page of some other site may have its name point here.
            await Problem(403, "unknown_host", "This server is not known by that name.").response()(
                scope, receive, _send
            )
            return
        try:
            await self._app(scope, receive, _send)
        except Exception as error:  # noqa: BLE001 (it has been answered; the log says what kind it was)
            self._log.warning("a request went wrong", {"route": _route(scope), "error": type(error).__name__})

    def _is_known(self, scope: Scope) -> bool:
        if self._hosts is None:
            return True
        found = [value for name, value in scope["headers"] if name == b"host"]
        host = found[0].decode("latin-1") if len(found) == 1 else ""
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name.lower() in self._hosts

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        known = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE") else "other"
        self._metrics.requests.labels(known, route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "none")


def _openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    served = service.served or Served(name="", defaults={}, loras={}, max_work=service.settings.max_work)
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    create = served.schema()
    variation = {name: value for name, value in create.items() if name != "required"}
    document.setdefault("components", {})["schemas"] = {
        "CreateVideo": create,
        "Variation": variation | {"example": {"prompt": "a small blue ball bouncing on a gray background"}},
        "Batch": _batch(service.settings),
        "Decoding": {
            "type": "object",
            "properties": {"fps": create["properties"]["fps"]},
            "additionalProperties": False,
            "example": {"fps": 10},
        },
        **cog_shape.schemas(served),
        **replicate_shape.schemas(),
        "Error": _ERROR,
    }
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    return document


def _batch(settings: Settings) -> dict[str, Any]:
    one = {"$ref": "#/components/schemas/CreateVideo"}
    requests = {"type": "array", "items": one, "minItems": 1, "maxItems": settings.max_batch}
    return {
        "type": "object",
        "properties": {"requests": requests},
        "required": ["requests"],
        "additionalProperties": False,
        "example": {"requests": [{"prompt": "a red ball", "seed": 1}, {"prompt": "a red ball", "seed": 2}]},
    }


_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
