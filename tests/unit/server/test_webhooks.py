import base64
import itertools
import sqlite3
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from replicate.webhook import Webhooks, WebhookSigningSecret

from daifuku.errors import InvalidRequest
from daifuku.server.database import connect
from daifuku.server.feed import Progress
from daifuku.server.jobs import Job, NewJob
from daifuku.server.predictions import EVENTS, Predictions, Wish
from daifuku.server.store import Room, Store
from daifuku.server.targets import Policy
from daifuku.server.webhooks import Manner, read_secret
from tests.unit.server.fakes import BODY, SILENT, House, house
from tests.unit.server.hostile import HOSTILE_URLS, REBOUND
from tests.unit.server.receiver import Receiver, receiving

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdefghijklmnop").decode()
ASYNC = {"Prefer": "respond-async"}
RESULT: dict[str, Any] = {"files": {}, "frames_sha256": "f", "timings": {}}


def to(receiver: Receiver, **changes: Any) -> Manner:
    """Webhooks to that receiver alone."""
    policy = Policy(hosts=frozenset({f"127.0.0.1:{receiver.port}"}), private=True)
    return replace(SILENT, policy=policy, timeout_s=0.6, **changes)


def ask(home: House, url: object, events: Sequence[str] = ("completed",), name: str = "mine") -> Any:
    body = {"input": BODY, "webhook": url, "webhook_events_filter": list(events)}
    return home.client.put(f"/predictions/{name}", json=body, headers=ASYNC)


def outbox(folder: Path) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(folder / "jobs.sqlite")
    try:
        return connection.execute("SELECT name, tries FROM outbox").fetchall()
    finally:
        connection.close()


def until_settled(folder: Path) -> None:
    deadline = time.monotonic() + 5
    while outbox(folder):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_end_is_told_with_the_prediction_signed_as_replicate_s_client_checks_it(tmp_path: Path) -> None:
    with receiving() as receiver, house(tmp_path, manner=to(receiver, secret=read_secret(SECRET))) as home:
        assert ask(home, receiver.url).status_code == 202
        (heard,) = receiver.wait(1)
        assert heard.path == "/hook?a=b" and heard.headers["content-type"] == "application/json"
        assert heard.headers["host"] == f"127.0.0.1:{receiver.port}"
        assert heard.json == home.client.get("/predictions/mine").json()
        assert heard.json["status"] == "succeeded"
        assert home.client.get(heard.json["output"]).content == b"0123456789 video"
        text = heard.content.decode()
        Webhooks.validate(headers=heard.headers, body=text, secret=WebhookSigningSecret(key=SECRET), tolerance=60)
        other = WebhookSigningSecret(key="whsec_" + base64.b64encode(b"x" * 24).decode())
        with pytest.raises(ValueError, match="invalid"):
            Webhooks.validate(headers=heard.headers, body=text, secret=other)
        until_settled(tmp_path)
        assert 'daifuku_webhooks_total{event="completed",outcome="ok"} 1.0' in home.client.get("/metrics").text


def test_without_a_secret_nothing_is_signed(tmp_path: Path) -> None:
    with receiving() as receiver, house(tmp_path, manner=to(receiver)) as home:
        ask(home, receiver.url)
        (heard,) = receiver.wait(1)
        assert "webhook-signature" not in heard.headers and heard.headers["webhook-id"]


def test_the_course_is_told_to_who_asks_for_it(tmp_path: Path) -> None:
    step = {"event": "step", "stage": "sampling", "step": 1, "total": 2}
    with receiving() as receiver, house(tmp_path, manner=to(receiver), script=[step, "wait", "done"]) as home:
        ask(home, receiver.url, EVENTS)
        first, second = receiver.wait(2)
        assert (first.json["status"], second.json["status"]) == ("processing", "processing")
        assert "1/2 [sampling]" in second.json["logs"]
        assert home.client.portal is not None
        home.client.portal.call(home.worker.go.set)
        assert [one.json["status"] for one in receiver.wait(4)[2:]] == ["succeeded", "succeeded"]
        kinds = [one.headers["webhook-id"].split("_")[2] for one in receiver.heard]
        assert kinds[:2] == ["start", "logs"] and set(kinds[2:]) == {"output", "completed"}


def test_steps_are_told_at_most_twice_a_second(tmp_path: Path) -> None:
    with receiving() as receiver, house(tmp_path, manner=to(receiver), script=["wait"]) as home:
        ask(home, receiver.url, ["logs"])
        job_id = home.client.get("/v1/videos").json()["data"][0]["id"]
        assert home.client.portal is not None
        started = time.monotonic()
        for step in range(60):
            home.client.portal.call(home.service.feed.report, job_id, Progress(stage="sampling", step=step, total=60))
            time.sleep(0.01)
        receiver.wait(2)
        assert len(receiver.heard) <= 1 + (time.monotonic() - started) / 0.5


@pytest.mark.parametrize(
    "bad",
    [
        500,
        404,
        302,
        "hangs",
        "closes",
        "drips",
        "huge",
        b"HTTP/1.1 301 Away\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
        b"\0" * 100,
    ],
    ids=repr,
)
def test_who_does_not_hear_is_told_again(tmp_path: Path, bad: int | str | bytes) -> None:
    with receiving(bad, 200) as receiver, house(tmp_path, manner=to(receiver)) as home:
        ask(home, receiver.url)
        first, second = receiver.wait(2)
        assert first.content == second.content
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        until_settled(tmp_path)
        assert receiver.connections == 2
        # What the operating system has taken before anybody read it.
        assert receiver.num_sent < 32 * 2**20


def test_who_never_hears_is_told_so_often_and_no_more(tmp_path: Path) -> None:
    with receiving(500) as receiver, house(tmp_path, manner=to(receiver)) as home:
        ask(home, receiver.url)
        receiver.wait(3)
        until_settled(tmp_path)
        time.sleep(0.1)
        assert len(receiver.heard) == 3
        assert "a webhook was given up" in home.log.getvalue()
        assert "/hook" not in home.log.getvalue()


def test_pauses_double(tmp_path: Path) -> None:
    times: list[float] = []
    with receiving(500) as receiver, house(tmp_path, manner=to(receiver, tries=4, retry_s=0.1)) as home:
        ask(home, receiver.url)
        for number in range(1, 5):
            receiver.wait(number)
            times.append(time.monotonic())
    first, second, third = (after - before for before, after in itertools.pairwise(times))
    assert first >= 0.08 and second >= 0.18 and third >= 0.38


def test_what_was_not_told_is_told_by_the_next_server(tmp_path: Path) -> None:
    with receiving(500) as receiver:
        manner = replace(to(receiver), retry_s=3600.0)
        with house(tmp_path, manner=manner) as home:
            ask(home, receiver.url)
            receiver.wait(1)
            while outbox(tmp_path) != [("mine", 1)]:
                time.sleep(0.01)
        connection = sqlite3.connect(tmp_path / "jobs.sqlite")
        connection.execute("UPDATE outbox SET due_at = 0")
        connection.commit()
        connection.close()
        receiver.answers[:] = [200]
        with house(tmp_path, manner=manner):
            assert receiver.wait(2)[1].json["status"] == "succeeded"
            until_settled(tmp_path)


def test_an_end_that_is_just_being_told_is_told_to_nobody_else_and_keeps_no_other_waiting(tmp_path: Path) -> None:
    with receiving("hangs", 200) as receiver, house(tmp_path, manner=replace(to(receiver), timeout_s=5.0)) as home:
        ask(home, receiver.url, name="slow")
        receiver.wait(1)
        for number in range(4):
            ask(home, receiver.url, name=f"n{number}")
        heard = [one.json["id"] for one in receiver.wait(5)]
        assert heard[0] == "slow" and sorted(heard[1:]) == ["n0", "n1", "n2", "n3"]


@pytest.mark.parametrize("way", ["cancel", "delete", "die"])
def test_every_end_is_told(tmp_path: Path, way: str) -> None:
    script = ["die"] if way == "die" else ["wait"]
    with receiving() as receiver, house(tmp_path, manner=to(receiver), script=script) as home:
        ask(home, receiver.url)
        if way == "cancel":
            home.client.post("/predictions/mine/cancel")
        elif way == "delete":
            home.client.delete(f"/v1/videos/{home.client.get('/v1/videos').json()['data'][0]['id']}")
        assert receiver.wait(1)[0].json["status"] == ("failed" if way == "die" else "canceled")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    connection = connect(tmp_path / "jobs.sqlite")
    yield Store(connection)
    connection.close()


def running(store: Store, events: Sequence[str] = EVENTS) -> Job:
    wish = Wish(name="n", input_sha256="x", base_url="http://a", webhook="http://b/", events=events)
    new = NewJob(tenant="a", model="tiny", request={})
    Predictions(store).accept(wish, [new], Room(queue=9), None, 0.0)
    job = store.claim(1.0, 30.0)
    assert job is not None
    return job


@pytest.mark.parametrize("end", ["complete", "fail", "bury", "cancel", "delete", "recover"])
def test_the_row_of_the_outbox_is_written_in_the_transaction_that_ends_the_job(store: Store, end: str) -> None:
    job = running(store)
    assert Predictions(store).due(9.0, 9) == []
    store.connection.execute("BEGIN")
    {
        "complete": lambda: store.complete(job.id, job.fence, RESULT, 1, 2.0),
        "fail": lambda: store.fail(job.id, job.fence, "x", "x", 2.0),
        "bury": lambda: store.bury(job.id, job.fence, max_deaths=1, now=2.0),
        "cancel": lambda: store.cancel("a", job.id, 2.0),
        "delete": lambda: store.delete("a", job.id, 2.0),
        "recover": lambda: store.recover(max_restarts=1, now=2.0),
    }[end]()
    (due,) = Predictions(store).due(2.0, 9)
    assert (due.job_id, due.name, due.tries) == (job.id, "n", 0)
    store.connection.execute("ROLLBACK")
    assert Predictions(store).due(9.0, 9) == []


def test_who_does_not_want_to_hear_of_the_end_is_not_told(store: Store) -> None:
    job = running(store, ["start"])
    assert store.complete(job.id, job.fence, RESULT, 1, 2.0)
    assert Predictions(store).due(9.0, 9) == []


def test_what_is_forgotten_of_a_job_is_forgotten_whole(store: Store) -> None:
    job = running(store)
    store.fail(job.id, job.fence, "x", "x", 2.0)
    assert store.forget(10.0**9, 10.0**9) == 1
    assert Predictions(store).due(9.0, 9) == [] and Predictions(store).find("a", "n") == ("n", "n")


def test_no_hostile_url_and_no_hostile_name_ever_leads_to_a_connection(tmp_path: Path) -> None:
    found = list(REBOUND)

    async def _look_up(host: str, port: int) -> Sequence[str]:
        return [found.pop()]

    with receiving() as receiver:
        # The same port, on which somebody listens.
        hostile = [url.replace("8017", str(receiver.port)) if isinstance(url, str) else url for url in HOSTILE_URLS]
        policy = Policy(anywhere=True, look_up=_look_up)
        manner = replace(SILENT, policy=policy, tries=1, retry_s=0.0, timeout_s=0.3)
        with house(tmp_path, manner=manner) as home:
            refused = [ask(home, url).json()["error"]["code"] for url in hostile]
            assert set(refused) == {"webhook_refused"} and len(refused) > 80
            for number in range(len(REBOUND)):
                assert ask(home, f"http://name{number}.org:{receiver.port}/", name=f"n{number}").status_code == 202
                home.client.put(f"/predictions/n{number}", json={"input": BODY})
            until_settled(tmp_path)
            assert found == []
            assert home.log.getvalue().count('"why": "BadTarget"') == len(REBOUND)
        assert receiver.connections == 0


CERTIFICATE = Path(__file__).parent / "hooks.example.org.pem"
"""Of that name, signed by itself, with its key; worth nothing outside this test."""


@pytest.mark.parametrize(
    "host, trusted, heard",
    [("hooks.example.org", True, True), ("hooks.example.org", False, False), ("other.example.org", True, False)],
)
def test_the_checked_address_has_to_prove_that_it_is_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, trusted: bool, heard: bool
) -> None:
    async def _look_up(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    if trusted:
        found = ssl.create_default_context(cafile=str(CERTIFICATE))
        monkeypatch.setattr(ssl, "create_default_context", lambda: found)
    with receiving(certificate=CERTIFICATE) as receiver:
        policy = Policy(hosts=frozenset({f"{host}:{receiver.port}"}), private=True, look_up=_look_up)
        with house(tmp_path, manner=replace(SILENT, policy=policy, tries=1)) as home:
            assert ask(home, f"https://{host}:{receiver.port}/").status_code == 202
            home.client.put("/predictions/mine", json={"input": BODY})
            until_settled(tmp_path)
            assert len(receiver.heard) == int(heard)


def test_a_secret_stands_in_the_setting_or_in_a_file_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    assert read_secret(SECRET) == read_secret(str(file)) == b"0123456789abcdefghijklmnop"
    assert read_secret(None) is None
    for wrong in ("whsec_c2hvcnQ=", "whsec_!!!", str(tmp_path / "none"), "whsec_", str(tmp_path)):
        with pytest.raises(InvalidRequest) as caught:
            read_secret(wrong)
        assert wrong not in str(caught.value) or wrong == "whsec_"
