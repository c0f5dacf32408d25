"""Puts the page beside the API in one ASGI application, and leaves open only what the page needs."""

import asyncio
from collections.abc import Callable, Iterable

import gradio as gr
from fastapi import FastAPI
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daifuku.studio.client import open_http
from daifuku.studio.look import ICON, SCRIPT, STYLE, theme
from daifuku.studio.page import build_page

PATH = "/studio"

OPEN: tuple[tuple[str, str], ...] = (
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/theme.css"),
    ("GET", "/assets/"),
    ("GET", "/static/"),
    ("GET", "/gradio_api/startup-events"),
    ("GET", "/gradio_api/heartbeat/"),
    ("GET", "/gradio_api/queue/data"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/cancel"),
    ("POST", "/gradio_api/reset"),
)
"""What of Gradio's routes the page uses: (method, path; with a slash at its end whatever begins so).

Closed are those for uploads, for files of this machine, for requests to other machines, and for its own API."""

MAX_BODY_BYTES = 2**20
"""Of a call: what stands in the form, several times over."""

BODY_S = 30.0
"""For a body to arrive."""

HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'none'; base-uri 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
"""The browser itself refuses to ask any other machine for anything."""


def studio_at(address: str) -> Callable[[ASGIApp], ASGIApp]:
    """From an API, and the address that it is reached at, to the API with its page at /studio."""

    def _around(api: ASGIApp) -> ASGIApp:
        blocks = build_page(open_http(address))
        return WithStudio(api, blocks, _mounted(blocks))

    return _around


class WithStudio:
    """Sends what is for the page to the page, and all else to the API.

    Who asks for / and reads HTML is sent to the page; the API answers others there.
    """

    def __init__(self, api: ASGIApp, blocks: gr.Blocks, page: ASGIApp) -> None:
        self._api = api
        self._blocks = blocks
        self._page = page
        self._starting = asyncio.Lock()
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path in ("/", "/favicon.ico", PATH) or path.startswith(f"{PATH}/")):
            await self._api(scope, receive, send)
        elif path == "/favicon.ico":
            await Response(ICON, media_type="image/svg+xml")(scope, receive, send)
        elif path == "/":
            wants_page = scope["method"] in ("GET", "HEAD") and b"text/html" in _header(scope, b"accept")
            answer = RedirectResponse(f"{PATH}/") if wants_page else self._api
            await answer(scope, receive, send)
        elif path == PATH:
            await RedirectResponse(f"{PATH}/")(scope, receive, send)
        elif not is_open(scope["method"], path.removeprefix(PATH)):
            await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
        else:
            await self._start()
            await self._page_of(scope, receive, _with_headers(send))

    async def _page_of(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio, which reads whole bodies into memory: only small ones, and read in time, get there."""
        try:
            message = await _whole(receive)
        except TimeoutError:
            message = None
        if message is None:
            await PlainTextResponse("This is too large, or too slow.", 413)(scope, receive, send)
            return
        messages = [message]

        async def _again() -> Message:
            return messages.pop() if messages else await receive()

        await self._page(scope, _again, send)

    async def _start(self) -> None:
        """Gradio's own tasks, in the loop that serves; they end with it."""
        async with self._starting:
            if not self._has_started:
                self._blocks.run_startup_events()
                await self._blocks.run_extra_startup_events()
                self._has_started = True


def is_open(method: str, path: str) -> bool:
    """Whether the page needs that route of Gradio."""
    asked = "GET" if method == "HEAD" else method
    plain = path if path == "/" else path.rstrip("/")
    return ".." not in path and any(
        asked == verb and (path.startswith(route) if route.endswith("/") and route != "/" else plain == route)
        for verb, route in OPEN
    )


def _mounted(blocks: gr.Blocks) -> ASGIApp:
    """The page at its path, without what Gradio would add."""
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        PATH,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=STYLE,
        head=f"<script>{SCRIPT}</script>",
    )


async def _whole(receive: Receive) -> Message | None:
    """The body of a request in one message; None where it is too large. Raises TimeoutError."""
    body = b""
    async with asyncio.timeout(BODY_S):
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                return None
            if not message.get("more_body", False):
                return {**message, "body": body}


def _with_headers(send: Send) -> Send:
    async def _send(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *HEADERS]
        await send(message)

    return _send


def _header(scope: Scope, name: bytes) -> bytes:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return b", ".join(value for each, value in headers if each == name)
