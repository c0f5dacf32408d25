from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from daifuku.studio.client import open_http
from daifuku.studio.mount import MAX_BODY_BYTES, is_open, studio_at
from daifuku.studio.page import MAX_CALLS, build_page

HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A stand-in for the API with the page around it; the page asks an address where nobody is."""
    api = Starlette(routes=[Route("/{rest:path}", lambda _: PlainTextResponse("the API"), methods=["GET", "POST"])])
    app = studio_at("http://127.0.0.1:9")(api)
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as client:
        yield client


def test_a_browser_at_the_front_door_is_sent_to_the_page_and_others_reach_the_api(client: TestClient) -> None:
    answer = client.get("/", headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (307, "/studio/")
    assert client.get("/", headers={"Accept": "application/json"}).text == "the API"
    assert client.get("/v1/videos", headers=HTML).text == client.get("/studiow", headers=HTML).text == "the API"
    assert client.post("/", headers=HTML).text == "the API"


def test_the_page_comes_with_rules_that_keep_it_on_this_machine(client: TestClient) -> None:
    answer = client.get("/studio/")
    assert answer.status_code == 200 and "Daifuku" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "frame-ancestors 'none'" in policy


def test_the_page_takes_no_fonts_and_no_analytics_from_elsewhere(client: TestClient) -> None:
    config = client.get("/studio/config").json()
    assert config["analytics_enabled"] is False and config["stylesheets"] == []


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/config"),
        ("GET", "/config/"),
        ("GET", "/assets/index.js"),
        ("GET", "/gradio_api/heartbeat/abc"),
        ("POST", "/gradio_api/queue/join"),
    ],
)
def test_what_the_page_needs_is_open(method: str, path: str) -> None:
    assert is_open(method, path)


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://elsewhere.example"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/open"),
        ("GET", "/gradio_api/info"),
        ("GET", "/monitoring"),
        ("POST", "/login"),
        ("POST", "/"),
        ("GET", "/assets/../gradio_api/info"),
        ("GET", "/assetsx"),
    ],
)
def test_every_other_route_of_gradio_is_closed(client: TestClient, method: str, path: str) -> None:
    assert not is_open(method, path)
    assert client.request(method, f"/studio{path}").status_code == 404


def test_a_call_that_is_too_large_is_not_read(client: TestClient) -> None:
    body = {"data": ["x" * MAX_BODY_BYTES], "fn_index": 0, "session_hash": "a"}
    assert client.post("/studio/gradio_api/queue/join", json=body).status_code == 413


def test_more_pages_can_be_open_than_gradio_allows_by_itself() -> None:
    page = build_page(open_http("http://127.0.0.1:9"))
    assert page._queue.max_thread_count == MAX_CALLS > 40
