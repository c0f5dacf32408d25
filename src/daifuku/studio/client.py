"""The videos API as the studio uses it: what any other client could call, and its errors as they are."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from daifuku.errors import DaifukuError

Video = Mapping[str, Any]
"""The object `video` of the API."""

TIMEOUT_S = 30.0
SILENCE_S = 60.0
"""After which an event stream is dead: the server says every 15 seconds that it is there."""


class Refused(DaifukuError):
    """The API does not do what it was asked, and says why."""

    def __init__(self, message: str, *, status: int = 0, code: str = "unreachable", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        """Of HTTP; 0 where there was no answer."""
        self.code = code
        self.param = param
        """The field of the request that it is about."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some videos, the newest first."""

    videos: list[Video]
    has_more: bool


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model that is served, and what a request to it may say."""

    name: str
    loras: list[str]
    fields: Mapping[str, Mapping[str, Any]]
    """JSON Schema of every field of a request."""


class Api:
    """One server, asked with one key. Every method raises Refused."""

    def __init__(self, http: httpx.AsyncClient, key: str = "") -> None:
        self._http = http
        # What cannot stand in a header is no key; the server is to say so.
        self._headers = {"Authorization": f"Bearer {key}"} if key.isascii() and key.isprintable() and key else {}

    async def model(self) -> Model:
        """What is served; refused with the code not_ready while it is being loaded."""
        (about,) = (await self._ask("GET", "/v1/models"))["data"]
        document = await self._ask("GET", "/openapi.json")
        fields = document["components"]["schemas"]["CreateVideo"]["properties"]
        return Model(name=about["id"], loras=about["loras"], fields=fields)

    async def num_tokens(self, prompt: str) -> tuple[int, int]:
        """Of a prompt, and how many the model reads."""
        found = await self._ask("POST", "/v1/tokens", {"prompt": prompt})
        return found["num_tokens"], found["max_tokens"]

    async def page(self, *, limit: int, after: str | None = None) -> Page:
        """Videos that come after another one in the list, the newest first."""
        query = f"?limit={limit}" + (f"&after={after}" if after else "")
        found = await self._ask("GET", f"/v1/videos{query}")
        return Page(videos=found["data"], has_more=found["has_more"])

    async def look(self, video_id: str) -> Video:
        """A video as it stands."""
        return await self._ask("GET", f"/v1/videos/{_checked(video_id)}")

    async def create(self, body: Mapping[str, Any]) -> Video:
        """A new job."""
        return await self._ask("POST", "/v1/videos", body)

    async def remix(self, video_id: str, changes: Mapping[str, Any]) -> Video:
        """The request of a completed job once more, with what is to be different."""
        return await self._ask("POST", f"/v1/videos/{_checked(video_id)}/remix", changes)

    async def cancel(self, video_id: str) -> Video:
        """Ends the job, unless it has ended."""
        return await self._ask("POST", f"/v1/videos/{_checked(video_id)}/cancel")

    async def delete(self, video_id: str) -> None:
        """Forgets the job and its files."""
        await self._ask("DELETE", f"/v1/videos/{_checked(video_id)}")

    async def events(self, video_id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """What happens to a job, as (name, data), up to its end."""
        path = f"/v1/videos/{_checked(video_id)}/events"
        timeout = httpx.Timeout(TIMEOUT_S, read=SILENCE_S)
        try:
            async with self._http.stream("GET", path, headers=self._headers, timeout=timeout) as answer:
                if answer.is_error:
                    await answer.aread()
                    raise _refusal(answer)
                name = ""
                async for line in answer.aiter_lines():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        yield name, json.loads(value)
        except httpx.HTTPError as error:
            raise _silence(error) from error

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = await self._http.request(method, path, json=body, headers=self._headers)
        except httpx.HTTPError as error:
            raise _silence(error) from error
        if answer.is_error:
            raise _refusal(answer)
        return answer.json()


def open_http(base_url: str, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """Connections to a server, for many `Api`s; no proxy of the environment comes between."""
    return httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT_S, transport=transport, trust_env=False)


def _checked(video_id: str) -> str:
    """Ids come back from the page, and must not turn into another path."""
    if not video_id.replace("_", "").isalnum() or not video_id.isascii():
        raise Refused("There is no such video.", status=404, code="not_found", param="id")
    return video_id


def _refusal(answer: httpx.Response) -> Refused:
    try:
        error = answer.json()["error"]
        return Refused(error["message"], status=answer.status_code, code=error["code"], param=error["param"])
    except (ValueError, KeyError, TypeError):
        return Refused(f"The server answered {answer.status_code}.", status=answer.status_code, code="http_error")


def _silence(error: httpx.HTTPError) -> Refused:
    return Refused(f"The server does not answer ({type(error).__name__}). Its log may say why.")
