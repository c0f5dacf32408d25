import asyncio
import base64
import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from daifuku.server.keys import ApiKey
from daifuku.server.pool import Unusable
from tests.unit.server.fakes import BODY, House, house

ASYNC = {"Prefer": "respond-async"}
WANTED = {"input": BODY}


def put(home: House, name: str, body: Any = None, **headers: str) -> Any:
    return home.client.put(f"/predictions/{name}", json=body or WANTED, headers={**ASYNC, **headers})


def status(home: House, name: str) -> str:
    return home.client.get(f"/predictions/{name}").json()["status"]


def until(home: House, name: str, wanted: str) -> None:
    deadline = time.monotonic() + 5
    while status(home, name) != wanted:
        assert time.monotonic() < deadline


def asked_and_left(home: House, method: str, path: str, headers: dict[str, str]) -> None:
    """A request whose client goes away as soon as it was sent."""

    async def _ask() -> None:
        messages = [{"type": "http.request", "body": json.dumps(WANTED).encode(), "more_body": False}]
        sent: list[Any] = []

        async def _receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        async def _send(message: Any) -> None:
            sent.append(message)

        raw = {"host": "localhost", "content-type": "application/json", **headers}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in raw.items()],
            "scheme": "http",
            "server": ("localhost", 80),
            "root_path": "",
        }
        async with asyncio.timeout(5):
            await home.client.app(scope, _receive, _send)  # type: ignore[arg-type]

    assert home.client.portal is not None
    home.client.portal.call(_ask)


def test_who_waits_gets_the_video_itself(home: House) -> None:
    answer = home.client.post("/predictions", json=WANTED)
    found = answer.json()
    assert (answer.status_code, found["status"], found["error"]) == (200, "succeeded", None)
    assert found["output"] == "data:video/mp4;base64," + base64.b64encode(b"0123456789 video").decode()
    assert found["input"]["prompt"] == BODY["prompt"] and found["input"]["seed"] == 1
    assert found["created_at"] <= found["started_at"] <= found["completed_at"]
    assert found["metrics"]["predict_time"] >= 0


def test_who_does_not_wait_gets_a_link_to_it_later(busy: House) -> None:
    answer = busy.client.post("/predictions", json=WANTED, headers=ASYNC)
    name = answer.json()["id"]
    assert answer.status_code == 202 and answer.json()["status"] in ("starting", "processing")
    assert answer.json()["urls"]["get"] == f"http://localhost/predictions/{name}"
    until(busy, name, "processing")
    assert busy.client.portal is not None
    busy.client.portal.call(busy.worker.go.set)
    until(busy, name, "succeeded")
    link = busy.client.get(f"/predictions/{name}").json()["output"]
    assert busy.client.get(link).content == b"0123456789 video"


def test_links_begin_with_the_public_address_where_one_is_set(tmp_path: Path) -> None:
    with house(tmp_path, settings={"public_url": "https://videos.example.org/"}) as home:
        found = put(home, "mine").json()
        assert found["urls"]["get"] == "https://videos.example.org/predictions/mine"


def test_a_stream_tells_of_the_start_the_steps_the_output_and_the_end(tmp_path: Path) -> None:
    steps = [{"event": "step", "stage": "sampling", "step": 1, "total": 2}]
    with house(tmp_path, script=[*steps, "wait", "done"]) as home:
        put(home, "mine")
        until(home, "mine", "processing")
        assert home.client.portal is not None

        async def _go_on() -> None:
            asyncio.get_running_loop().call_later(0.1, home.worker.go.set)

        home.client.portal.call(_go_on)
        answer = home.client.put("/predictions/mine", json=WANTED, headers={"Accept": "text/event-stream"})
        assert answer.headers["content-type"] == "text/event-stream"
        events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
        assert [name for name, _ in events] == [f"event: {n}" for n in ("start", "log", "output", "completed")]
        data = {name[7:]: json.loads(text[6:]) for name, text in events}
        assert data["start"] == {"id": "mine", "status": "processing"}
        assert data["log"]["data"] == " 45%|####------| 1/2 [sampling]\n"
        assert data["output"] == {"chunk": data["completed"]["output"], "index": 0}
        assert data["completed"] == home.client.get("/predictions/mine").json()


def test_a_name_means_the_same_prediction_each_time_and_another_input_is_refused(home: House) -> None:
    first, again = put(home, "mine"), put(home, "mine")
    assert first.json()["id"] == "mine" and again.status_code == 202
    assert home.client.post("/predictions", json={**WANTED, "id": "mine"}).json()["status"] == "succeeded"
    other = put(home, "mine", {"input": {**BODY, "seed": 2}})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "id_reused")
    assert len(home.client.get("/v1/videos").json()["data"]) == 1


def test_a_name_holds_after_a_restart_and_is_free_again_once_its_job_is_deleted(tmp_path: Path) -> None:
    with house(tmp_path) as home:
        put(home, "mine")
        until(home, "mine", "succeeded")
        (job,) = home.client.get("/v1/videos").json()["data"]
    with house(tmp_path) as home:
        assert put(home, "mine").json()["status"] == "succeeded"
        home.client.delete(f"/v1/videos/{job['id']}")
        assert home.client.get("/predictions/mine").status_code == 404
        put(home, "mine", {"input": {**BODY, "seed": 2}})
        until(home, "mine", "succeeded")


def test_each_tenant_has_names_of_its_own(tmp_path: Path) -> None:
    keys = [ApiKey(name=name, sha256=sha256(name.encode()).hexdigest()) for name in ("alice", "bob")]
    with house(tmp_path, keys=keys) as home:
        alice, bob = ({"Authorization": f"Bearer {name}"} for name in ("alice", "bob"))
        put(home, "mine", **alice)
        job_id = home.client.get("/v1/videos", headers=alice).json()["data"][0]["id"]
        for name in ("mine", job_id):
            assert home.client.get(f"/predictions/{name}", headers=bob).status_code == 404
            assert home.client.post(f"/predictions/{name}/cancel", headers=bob).status_code == 404
            assert home.client.get(f"/v1/predictions/{name}", headers=bob).status_code == 404
            assert home.client.get(f"/predictions/{name}", headers=alice).json()["id"] == "mine"
        assert put(home, "mine", {"input": {**BODY, "seed": 2}}, **bob).status_code == 202
        assert put(home, "other").status_code == 401
        assert home.client.get("/health-check").status_code == 200


@pytest.mark.parametrize("path, code", [("a%2Fb", 404), ("..%2F..", 404), ("a.b", 400), ("a" * 129, 400), ("%00", 400)])
def test_a_name_that_looks_like_a_path_is_refused(home: House, path: str, code: int) -> None:
    assert home.client.put(f"/predictions/{path}", json=WANTED).status_code == code
    assert home.client.get(f"/predictions/{path}").status_code == 404


@pytest.mark.parametrize(
    "change, code",
    [
        ({"input": None}, "invalid_value"),
        ({"input": [BODY]}, "invalid_value"),
        ({"input": {}}, "invalid_value"),
        ({"input": {**BODY, "num_outputs": 2}}, "unknown_field"),
        ({"inputs": BODY}, "unknown_field"),
        ({"id": 1}, "invalid_value"),
        ({"id": "../x"}, "invalid_value"),
        ({"id": "video_" + "0" * 32}, "invalid_value"),
        ({"created_at": 1}, "invalid_value"),
        ({"webhook_events_filter": ["done"]}, "invalid_value"),
        ({"webhook_events_filter": "start"}, "invalid_value"),
        ({"webhook_events_filter": [[]]}, "invalid_value"),
        ({"webhook": "https://example.org/"}, "webhook_refused"),
        ({"webhook": 7}, "webhook_refused"),
        ({"output_file_prefix": "https://example.org/"}, "uploads_not_supported"),
    ],
)
def test_what_is_not_offered_is_refused_in_words(home: House, change: dict[str, Any], code: str) -> None:
    answer = home.client.post("/predictions", json={**WANTED, **change}, headers=ASYNC)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert home.client.get("/v1/videos").json()["data"] == []


def test_a_body_whose_id_is_another_one_than_that_of_the_path_is_refused(home: House) -> None:
    assert put(home, "mine", {**WANTED, "id": "yours"}).status_code == 400
    assert put(home, "mine", {**WANTED, "id": "mine"}).status_code == 202


def test_a_full_queue_answers_429_and_takes_no_name(busy: House) -> None:
    put(busy, "running")
    until(busy, "running", "processing")
    assert [put(busy, f"n{n}").status_code for n in range(3)] == [202, 202, 429]
    assert busy.client.get("/predictions/n2").status_code == 404
    assert put(busy, "running").status_code == 202


def test_a_cancelled_prediction_stays_so(busy: House) -> None:
    put(busy, "mine")
    for _ in range(2):
        assert busy.client.post("/predictions/mine/cancel").json()["status"] == "canceled"
    assert busy.client.post("/predictions/other/cancel").status_code == 404


def test_a_prediction_that_failed_says_why(tmp_path: Path) -> None:
    with house(tmp_path, script=["die"]) as home:
        found = home.client.post("/predictions", json=WANTED).json()
        assert (found["status"], found["output"]) == ("failed", None)
        assert found["error"].startswith("worker_crashed: ")


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
def test_who_leaves_without_having_given_a_name_wants_the_video_no_more(busy: House, accept: str) -> None:
    asked_and_left(busy, "POST", "/predictions", {"accept": accept})
    assert [job["status"] for job in busy.client.get("/v1/videos").json()["data"]] == ["cancelled"]


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
def test_who_gave_a_name_may_leave_and_come_back(busy: House, accept: str) -> None:
    asked_and_left(busy, "PUT", "/predictions/mine", {"accept": accept})
    assert status(busy, "mine") in ("starting", "processing")
    assert busy.client.portal is not None
    busy.client.portal.call(busy.worker.go.set)
    assert busy.client.put("/predictions/mine", json=WANTED).json()["output"].startswith("data:")


def test_who_has_a_key_to_ask_with_again_may_leave_too(busy: House) -> None:
    asked_and_left(busy, "POST", "/predictions", {"idempotency-key": "once"})
    (job,) = busy.client.get("/v1/videos").json()["data"]
    assert job["status"] in ("queued", "in_progress")


def test_who_waits_when_the_server_is_about_to_end_is_told_where_it_goes_on(busy: House) -> None:
    put(busy, "running")
    until(busy, "running", "processing")

    async def _drain_soon() -> None:
        asyncio.get_running_loop().call_later(0.05, setattr, busy.service, "draining", True)

    assert busy.client.portal is not None
    busy.client.portal.call(_drain_soon)
    answer = busy.client.post("/predictions", json=WANTED)
    job_id = busy.client.get("/v1/videos?limit=1").json()["data"][0]["id"]
    assert answer.status_code == 503 and job_id in answer.json()["error"]["message"]
    assert status(busy, job_id) == "starting"


def test_the_health_says_how_the_server_is(busy: House) -> None:
    def _status() -> str:
        return busy.client.get("/health-check").json()["status"]

    assert _status() == "READY"
    put(busy, "running")
    until(busy, "running", "processing")
    assert _status() == "BUSY"
    busy.service.draining = True
    assert _status() == "DEFUNCT"
    setup = busy.client.get("/health-check").json()["setup"]
    assert setup["status"] == "succeeded" and setup["started_at"] <= setup["completed_at"]


def test_the_health_is_starting_while_there_is_no_model_and_failed_when_there_will_be_none(tmp_path: Path) -> None:
    with house(tmp_path, has_model=False) as home:
        home.worker.card = None
        assert home.client.get("/health-check").json()["status"] == "STARTING"
        assert home.client.post("/predictions", json=WANTED).status_code == 503
        assert home.client.portal is not None
        home.client.portal.call(home.service.dispatcher.failed.set_result, Unusable("no such model"))
        found = home.client.get("/health-check").json()
        assert (found["status"], found["setup"]["status"]) == ("SETUP_FAILED", "failed")


def test_the_openapi_document_describes_the_input_in_its_order(home: House) -> None:
    schemas = home.client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["Input"]["properties"]
    assert [fields[name]["x-order"] for name in ("prompt", "negative_prompt", "height", "width")] == [0, 1, 2, 3]
    assert fields["width"].items() >= {"default": 64, "minimum": 16, "maximum": 2048, "type": "integer"}.items()
    assert all(about.get("description") for about in fields.values())
    assert schemas["Output"] == {"title": "Output", "type": "string", "format": "uri"}
    assert home.client.post("/predictions", json=schemas["PredictionRequest"]["example"]).status_code == 200


def test_the_index_leads_to_what_there_is(home: House) -> None:
    found = home.client.get("/").json()
    assert home.client.get(found["openapi_url"]).status_code == 200
    assert home.client.get(found["healthcheck_url"]).json()["version"]["daifuku"] == found["daifuku_version"]
    assert home.client.post(found["predictions_url"], json=WANTED).status_code == 200


def test_replicate_s_shape_waits_only_as_long_as_it_is_told_to(busy: House) -> None:
    wanted = {**WANTED, "version": "tiny"}
    started = time.monotonic()
    at_once = busy.client.post("/v1/predictions", json=wanted)
    assert at_once.status_code == 201 and at_once.json()["status"] in ("starting", "processing")
    waited = busy.client.post("/v1/predictions", json=wanted, headers={"Prefer": "wait=1"})
    assert (waited.status_code, waited.json()["status"]) == (201, "starting")
    assert 1 <= time.monotonic() - started < 3
    assert busy.client.portal is not None
    busy.client.portal.call(busy.worker.go.set)
    done = busy.client.post("/v1/predictions", json=wanted, headers={"Prefer": "wait"}).json()
    assert done["status"] == "succeeded" and busy.client.get(done["output"]).content == b"0123456789 video"
    assert busy.client.post("/v1/predictions", json={**wanted, "version": "x"}).status_code == 404
