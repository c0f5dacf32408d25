import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from daifuku.studio.client import Api, Refused, open_http
from tests.unit.studio.samples import FIELDS, video

Answer = Callable[[httpx.Request], httpx.Response]


def asked(answer: Answer, deed: Callable[[Api], Any], key: str = "") -> Any:
    """What comes of a call to a server that answers so."""

    async def _ask() -> Any:
        async with open_http("http://there", httpx.MockTransport(answer)) as http:
            return await deed(Api(http, key))

    return asyncio.run(_ask())


def test_a_key_goes_along_with_every_request() -> None:
    seen: list[str | None] = []

    def _answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization"))
        return httpx.Response(200, json=video())

    asked(_answer, lambda api: api.look(video()["id"]), key="secret")
    asked(_answer, lambda api: api.look(video()["id"]))
    assert seen == ["Bearer secret", None]


@pytest.mark.parametrize("key", ["schlüssel", "a\r\nX-More: 1", "a\0b"])
def test_what_cannot_stand_in_a_header_is_no_key(key: str) -> None:
    def _answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=video() | {"seen": request.headers.get("Authorization")})

    assert asked(_answer, lambda api: api.look(video()["id"]), key=key)["seen"] is None


def test_an_error_of_the_api_keeps_its_words_its_field_and_its_code() -> None:
    error = {"message": "width=65 does not work. Try 64.", "type": "x", "param": "width", "code": "invalid_value"}
    with pytest.raises(Refused, match="Try 64") as refused:
        asked(lambda _: httpx.Response(400, json={"error": error}), lambda api: api.create({"width": 65}))
    assert (refused.value.param, refused.value.code, refused.value.status) == ("width", "invalid_value", 400)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"error": 3}'])
def test_an_answer_from_something_else_is_refused_with_its_status(content: bytes) -> None:
    with pytest.raises(Refused, match="502"):
        asked(lambda _: httpx.Response(502, content=content), lambda api: api.page(limit=3))


def test_a_server_that_is_not_there_is_said_to_be_silent() -> None:
    def _answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(Refused, match="does not answer"):
        asked(_answer, lambda api: api.num_tokens("a"))


@pytest.mark.parametrize("video_id", ["", "../models", "video_1/cancel", "video_1?x=1", "vidéo_1"])
def test_an_id_cannot_lead_to_another_path(video_id: str) -> None:
    with pytest.raises(Refused, match="no such video"):
        asked(lambda _: pytest.fail("it was asked"), lambda api: api.delete(video_id))


def test_events_come_one_after_the_other_and_signs_of_life_are_passed_over() -> None:
    lines = 'event: queued\ndata: {"position": 2}\n\n: still here\n\nevent: done\ndata: {"id": "a: b"}\n\n'

    async def _events(api: Api) -> list[tuple[str, dict[str, Any]]]:
        return [event async for event in api.events("video_1")]

    found = asked(lambda _: httpx.Response(200, content=lines.encode()), _events)
    assert found == [("queued", {"position": 2}), ("done", {"id": "a: b"})]


def test_events_of_a_strange_video_are_refused() -> None:
    async def _events(api: Api) -> None:
        async for _ in api.events("video_1"):
            pass

    error = {"message": "There is no such video.", "type": "x", "param": "id", "code": "not_found"}
    with pytest.raises(Refused) as refused:
        asked(lambda _: httpx.Response(404, json={"error": error}), _events)
    assert refused.value.status == 404


def test_the_model_comes_with_its_loras_and_the_schema_of_a_request() -> None:
    def _answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny", "loras": ["style"]}]})
        return httpx.Response(200, json={"components": {"schemas": {"CreateVideo": {"properties": FIELDS}}}})

    model = asked(_answer, lambda api: api.model())
    assert (model.name, model.loras, model.fields) == ("tiny", ["style"], FIELDS)


def test_a_page_says_where_it_goes_on() -> None:
    def _answer(request: httpx.Request) -> httpx.Response:
        assert dict(request.url.params) == {"limit": "2", "after": "video_9"}
        return httpx.Response(200, json={"data": [video(1)], "has_more": True})

    page = asked(_answer, lambda api: api.page(limit=2, after="video_9"))
    assert [each["id"] for each in page.videos] == [video(1)["id"]] and page.has_more


def test_a_remix_sends_only_what_is_different() -> None:
    def _answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/videos/video_1/remix" and json.loads(request.content) == {"seed": 3}
        return httpx.Response(202, json=video())

    asked(_answer, lambda api: api.remix("video_1", {"seed": 3}))
