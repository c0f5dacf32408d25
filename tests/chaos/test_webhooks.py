"""The end of a job is told to its webhook, whatever is killed."""

import json
import random
import time
from pathlib import Path

import pytest

from tests.chaos.live import LONG, SHORT, Live
from tests.unit.server.receiver import receiving

ASYNC = {"Prefer": "respond-async"}


def to(port: int, **settings: str) -> dict[str, str]:
    hosts = json.dumps([f"127.0.0.1:{port}"])
    return {"webhook_hosts": hosts, "webhook_private": "true", "webhook_retry_s": "0.2", **settings}


def ask(live: Live, name: str, url: str, body: dict) -> None:
    wish = {"input": body, "webhook": url, "webhook_events_filter": ["completed"]}
    assert live.http.put(f"/predictions/{name}", json=wish, headers=ASYNC).status_code == 202


@pytest.mark.slow
def test_an_end_that_was_on_its_way_when_the_server_was_killed_is_told_by_the_next_server(tmp_path: Path) -> None:
    with receiving("hangs", 200) as receiver, Live(tmp_path, settings=to(receiver.port, webhook_s="60")) as live:
        live.wait_ready()
        ask(live, "mine", receiver.url, SHORT)
        receiver.wait(1, 30)
        live.kill()
        live.start()
        first, second = receiver.wait(2, 30)
        assert first.content == second.content and second.json["status"] == "succeeded"
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        live.wait_ready()
        found = live.http.get("/predictions/mine").json()
        assert live.http.get(found["output"]).content[4:8] == b"ftyp"


@pytest.mark.slow
def test_an_end_that_nobody_heard_before_the_server_was_killed_is_told_by_the_next_server(tmp_path: Path) -> None:
    with receiving() as gone:
        pass
    with Live(tmp_path, settings=to(gone.port)) as live:
        live.wait_ready()
        ask(live, "mine", gone.url, SHORT)
        while live.http.get("/predictions/mine").json()["status"] != "succeeded":
            time.sleep(0.02)
        live.kill()
        with receiving(port=gone.port) as receiver:
            live.start()
            assert receiver.wait(1, 30)[0].json["id"] == "mine"


@pytest.mark.slow
def test_every_end_is_told_through_kills_at_any_moment(tmp_path: Path) -> None:
    chance, number = random.Random(5), 24
    with receiving(500, 200) as receiver, Live(tmp_path, settings=to(receiver.port)) as live:
        live.wait_ready()
        for index in range(number):
            ask(live, f"n{index}", receiver.url, SHORT | {"seed": index})
        for _ in range(6):
            time.sleep(chance.uniform(0, 1.5))
            live.kill()
            live.start()
            live.wait_ready()
        deadline = time.monotonic() + 120
        while len(names := {one.json["id"] for one in receiver.heard}) < number:
            assert time.monotonic() < deadline, f"{number - len(names)} ends were never told"
            time.sleep(0.05)
        assert {one.json["status"] for one in receiver.heard} == {"succeeded"}
        contents = {(one.json["id"], one.content) for one in receiver.heard}
        assert len(contents) == number


@pytest.mark.slow
def test_a_client_that_hangs_up_ends_its_job_and_one_with_a_name_does_not(tmp_path: Path) -> None:
    with Live(tmp_path) as live:
        live.wait_ready()
        for headers in ({}, {"Accept": "text/event-stream"}):
            with pytest.raises(Exception, match="timed out"):
                live.http.post("/predictions", json={"input": LONG}, headers=headers, timeout=0.3).read()
            with pytest.raises(Exception, match="timed out"):
                live.http.put(f"/predictions/n{len(headers)}", json={"input": LONG}, headers=headers, timeout=0.3)
        found = [job["id"] for job in live.http.get("/v1/videos?order=asc").json()["data"]]
        assert [live.wait(job_id)["status"] for job_id in found] == ["cancelled", "completed"] * 2
