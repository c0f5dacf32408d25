import json
import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from daifuku.server.keys import ApiKey
from daifuku.server.store import Store
from daifuku.server.tasks import ModelCard
from tests.unit.server.fakes import BODY, FakeWorker, House, house

STRANGE_ID = "video_" + "0" * 32


def submit(home: House, body: Any = None, **headers: str) -> Any:
    return home.client.post("/v1/videos", json=body or BODY, headers=headers)


def test_a_job_is_accepted_made_and_handed_out(home: House) -> None:
    answer = submit(home)
    assert answer.status_code == 202 and answer.json()["status"] in ("queued", "in_progress", "completed")
    job = home.until_ended(answer.json()["id"])
    assert (job["status"], job["progress"], job["size"], job["seconds"]) == ("completed", 100, "64x64", "1.55")
    content = home.client.get(f"/v1/videos/{job['id']}/content")
    assert content.content == b"0123456789 video" and content.headers["content-type"] == "video/mp4"
    assert content.headers["etag"] == f'"{job["files"]["video"]["sha256"]}"'


def test_a_range_of_a_file_is_handed_out(home: House) -> None:
    job_id = submit(home).json()["id"]
    home.until_ended(job_id)
    path = f"/v1/videos/{job_id}/content?variant=thumbnail"
    part = home.client.get(path, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"2345", "bytes 2-5/20")
    assert home.client.get(path, headers={"Range": "bytes=99-"}).status_code == 416


def test_the_same_key_and_body_are_the_same_job_and_another_body_is_refused(home: House) -> None:
    key = {"Idempotency-Key": "once"}
    first, again = submit(home, **key), submit(home, **key)
    assert first.json()["id"] == again.json()["id"] and again.headers["idempotent-replayed"] == "true"
    other = submit(home, BODY | {"seed": 2}, **key)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert len(home.client.get("/v1/videos").json()["data"]) == 1


def test_a_full_queue_answers_429_and_stores_nothing(busy: House) -> None:
    running = submit(busy).json()["id"]
    while busy.client.get(f"/v1/videos/{running}").json()["status"] != "in_progress":
        pass
    assert [submit(busy).json()["queue_position"] for _ in range(2)] == [0, 1]
    refused = submit(busy)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert len(busy.client.get("/v1/videos").json()["data"]) == 3


def test_a_batch_is_accepted_whole_or_not_at_all(busy: House) -> None:
    both = busy.client.post("/v1/videos/batch", json={"requests": [BODY, BODY | {"seed": 2}]})
    assert both.status_code == 202 and [job["seed"] for job in both.json()["data"]] == [1, 2]
    assert busy.client.post("/v1/videos/batch", json={"requests": [BODY, BODY | {"width": 65}]}).status_code == 400
    assert busy.client.post("/v1/videos/batch", json={"requests": [BODY, BODY]}).status_code == 429
    assert len(busy.client.get("/v1/videos").json()["data"]) == 2


def test_a_cancelled_job_hands_out_nothing_and_stays_cancelled(busy: House) -> None:
    job_id = submit(busy).json()["id"]
    assert busy.client.post(f"/v1/videos/{job_id}/cancel").json()["status"] == "cancelled"
    assert busy.client.post(f"/v1/videos/{job_id}/cancel").json()["status"] == "cancelled"
    assert busy.client.get(f"/v1/videos/{job_id}/content").status_code == 409
    assert not any((busy.service.folder.root / "videos").iterdir())


def test_a_job_ends_failed_after_its_third_worker_died(tmp_path: Path) -> None:
    with house(tmp_path, script=["die"]) as home:
        job = home.until_ended(submit(home).json()["id"])
        assert (job["status"], job["attempts"]) == ("failed", 3)
        assert job["error"] == {
            "code": "worker_crashed",
            "message": "The worker died 3 times while it made this video.",
        }
        home.worker.script = ["done"]
        assert home.until_ended(submit(home).json()["id"])["status"] == "completed"


def test_a_disk_that_takes_no_video_fails_that_job_and_no_other(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def _full(job: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(home.service.folder, "publish", _full)
        job = home.until_ended(submit(home).json()["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "unwritable")
    assert home.until_ended(submit(home).json()["id"])["status"] == "completed"


def test_a_video_whose_name_may_not_last_is_withdrawn(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def _sync(path: Path) -> None:
        if path.name == "videos":
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("daifuku.server.folder.sync", _sync)
        job = home.until_ended(submit(home).json()["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "unwritable")
    assert not any((home.service.folder.root / "videos").iterdir())


def test_a_full_disk_is_said_and_stores_nothing_until_there_is_room(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def _full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(home.service.database, "change", _full)
        refused = submit(home)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "insufficient_storage")
    assert int(refused.headers["retry-after"]) >= 1
    assert home.client.get("/v1/videos").json()["data"] == []
    assert home.until_ended(submit(home).json()["id"])["status"] == "completed"


def test_a_worker_that_cannot_be_started_for_now_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daifuku.server.dispatcher.RETRY_S", (0.01,))
    ready, failures = FakeWorker.ready, [OSError(24, "Too many open files")] * 2

    async def _ready(self: FakeWorker) -> ModelCard:
        if failures:
            raise failures.pop()
        return await ready(self)

    monkeypatch.setattr(FakeWorker, "ready", _ready)
    with house(tmp_path) as home:
        assert home.until_ended(submit(home).json()["id"])["status"] == "completed"
        assert home.log.getvalue().count("no worker could be started") == 2


def test_a_worker_that_lost_its_job_leaves_what_another_published(busy: House) -> None:
    job_id = submit(busy).json()["id"]
    while busy.client.get(f"/v1/videos/{job_id}").json()["status"] != "in_progress":
        pass

    def _finish_elsewhere(store: Store) -> None:
        assert store.put_back(job_id, 1)
        other = store.claim(0.0, 30.0)
        assert other is not None
        draft = busy.service.folder.draft(other)
        draft.mkdir()
        (draft / "video.mp4").write_bytes(b"the other's")
        busy.service.folder.publish(other)
        result = {"files": {"video": {"bytes": 11, "sha256": "x"}}, "frames_sha256": "f", "timings": {}}
        assert store.complete(job_id, other.fence, result, 11, 1.0)

    portal = busy.client.portal
    assert portal is not None
    portal.call(busy.service.database.change, _finish_elsewhere)
    portal.call(busy.worker.go.set)
    busy.until_ended(submit(busy).json()["id"])
    assert busy.client.get(f"/v1/videos/{job_id}/content").content == b"the other's"


def test_a_decoding_whose_latents_have_gone_meanwhile_fails_in_words(home: House) -> None:
    parent = submit(home).json()["id"]
    home.until_ended(parent)
    home.worker.script = ["wait", "done"]
    running = submit(home).json()["id"]
    job_id = home.client.post(f"/v1/videos/{parent}/decode").json()["id"]
    home.service.folder.withdraw(parent)
    home.client.post(f"/v1/videos/{running}/cancel")
    assert home.until_ended(job_id)["error"]["code"] == "missing"


def test_a_page_goes_on_after_the_job_that_is_named(home: House) -> None:
    ids = [submit(home).json()["id"] for _ in range(5)]
    first = home.client.get("/v1/videos?limit=2&order=asc").json()
    assert [job["id"] for job in first["data"]] == ids[:2] and first["has_more"]
    rest = home.client.get(f"/v1/videos?limit=3&order=asc&after={first['last_id']}").json()
    assert [job["id"] for job in rest["data"]] == ids[2:] and not rest["has_more"]
    assert home.client.get(f"/v1/videos?after={STRANGE_ID}").status_code == 404


def test_a_remix_keeps_the_seed_and_changes_the_prompt(home: House) -> None:
    parent = submit(home).json()["id"]
    home.until_ended(parent)
    remix = home.client.post(f"/v1/videos/{parent}/remix", json={"prompt": "a blue ball", "steps": 8}).json()
    assert (remix["prompt"], remix["seed"], remix["num_inference_steps"]) == ("a blue ball", 1, 8)
    assert remix["remixed_from_video_id"] == parent


def test_another_tenant_s_job_looks_like_none_on_every_route(tmp_path: Path) -> None:
    keys = [ApiKey(name=name, sha256=sha256(name.encode()).hexdigest()) for name in ("alice", "bob")]
    with house(tmp_path, keys=keys) as home:
        alice, bob = ({"Authorization": f"Bearer {name}"} for name in ("alice", "bob"))
        job_id = submit(home, **alice).json()["id"]
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/content"),
            ("GET", "/events"),
            ("POST", "/cancel"),
            ("POST", "/remix"),
            ("POST", "/decode"),
        ):
            body = {"json": {"prompt": "x"}} if path == "/remix" else {}
            theirs = home.client.request(method, f"/v1/videos/{job_id}{path}", headers=bob, **body)
            nobodys = home.client.request(method, f"/v1/videos/{STRANGE_ID}{path}", headers=bob, **body)
            assert (theirs.status_code, theirs.content) == (404, nobodys.content)
        assert home.client.get("/v1/videos", headers=bob).json()["data"] == []
        assert home.client.get(f"/v1/videos?after={job_id}", headers=bob).status_code == 404
        assert home.client.get(f"/v1/videos/{job_id}", headers=alice).status_code == 200


def test_without_a_key_or_its_scope_nothing_is_done(tmp_path: Path) -> None:
    reader = ApiKey(name="reader", sha256=sha256(b"secret").hexdigest(), scopes=frozenset({"read"}))
    with house(tmp_path, keys=[reader]) as home:
        assert submit(home).status_code == 401
        assert submit(home, Authorization="Bearer wrong").status_code == 401
        assert submit(home, Authorization="Bearer secret").status_code == 403
        assert home.client.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 403
        assert home.client.get("/v1/videos", headers={"Authorization": "Bearer secret"}).json()["data"] == []
        assert home.client.get("/livez").status_code == 200
        assert "secret" not in home.log.getvalue()


def test_a_key_may_ask_only_so_often_and_have_so_many_jobs(tmp_path: Path) -> None:
    key = ApiKey(name="a", sha256=sha256(b"k").hexdigest(), requests_per_minute=30, max_jobs=1)
    with house(tmp_path, keys=[key], script=["wait"]) as home:
        assert submit(home, Authorization="Bearer k").status_code == 202
        assert submit(home, Authorization="Bearer k").json()["error"]["code"] == "queue_full"
        answers = [home.client.get("/v1/videos", headers={"Authorization": "Bearer k"}) for _ in range(9)]
        assert answers[-1].status_code == 429 and int(answers[-1].headers["retry-after"]) >= 1


def test_a_page_of_another_site_finds_no_way_in(home: House) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost.evil"):
        assert home.client.get("/v1/videos", headers={"Host": host}).status_code == 403
    for host in ("127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert home.client.get("/v1/videos", headers={"Host": host}).status_code == 200
    simple = home.client.post("/v1/videos", content=json.dumps(BODY), headers={"Content-Type": "text/plain"})
    assert simple.status_code == 415
    assert "access-control-allow-origin" not in submit(home, Origin="http://evil.example").headers


def test_while_no_worker_has_a_model_jobs_are_refused_but_looked_at(tmp_path: Path) -> None:
    with house(tmp_path, has_model=False) as home:
        refused = submit(home)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert home.client.get("/readyz").status_code == 503
        assert home.client.get("/livez").status_code == 200
        assert home.client.get("/v1/videos").json()["data"] == []


def test_a_server_that_is_about_to_end_takes_nothing_and_says_so_at_once(home: House) -> None:
    home.service.draining = True
    assert submit(home).status_code == 503
    assert home.client.get("/readyz").json()["status"] == "draining"


def test_a_stream_ends_with_the_job_as_it_is_then(tmp_path: Path) -> None:
    steps = [{"event": "step", "stage": "sampling", "step": n, "total": 2} for n in (1, 2)]
    preview = {"event": "preview", "step": 1, "png": "AAAA"}
    with house(tmp_path, script=[steps[0], preview, steps[1], "done"]) as home:
        job_id = submit(home).json()["id"]
        text = home.client.get(f"/v1/videos/{job_id}/events").text
        name, data = text.strip().split("\n\n")[-1].split("\n")
        assert name == "event: done"
        assert json.loads(data.removeprefix("data: ")) == home.client.get(f"/v1/videos/{job_id}").json()


def test_what_nobody_foresaw_is_a_plain_500_and_names_no_path(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def _break(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(home.service, "shown", _break)
    answer = home.client.get("/v1/videos")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in answer.text + home.log.getvalue()


def test_the_log_holds_no_prompt(home: House) -> None:
    home.until_ended(submit(home, {"prompt": "the unmentionable"}).json()["id"])
    lines = [json.loads(line) for line in home.log.getvalue().splitlines()]
    assert {"job started", "job left its worker"} <= {line["event"] for line in lines}
    assert "unmentionable" not in home.log.getvalue()


def test_the_openapi_document_has_every_field_of_a_request_and_an_example(home: House) -> None:
    document = home.client.get("/openapi.json").json()
    create = document["components"]["schemas"]["CreateVideo"]
    assert {"prompt", "num_frames", "steps", "seconds", "loras"} <= set(create["properties"])
    assert create["properties"]["width"]["default"] == 64
    assert submit(home, create["example"]).status_code == 202
    assert home.client.post("/v1/videos/batch", json=document["components"]["schemas"]["Batch"]["example"])


def test_figures_count_what_happened(home: House) -> None:
    home.until_ended(submit(home).json()["id"])
    text = home.client.get("/metrics").text
    assert "daifuku_jobs_accepted_total 1.0" in text
    assert 'daifuku_jobs_ended_total{state="completed"} 1.0' in text
    assert 'route="/v1/videos/{video_id}/events"' in text
