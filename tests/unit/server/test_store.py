import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from daifuku.server.database import connect
from daifuku.server.jobs import Job, NewJob
from daifuku.server.store import KEY_LIVES_S, Full, Key, KeyReused, Room, Store, Unknown

ROOM = Room(queue=10)
RESULT = {"files": {}, "frames_sha256": "f", "timings": {}}


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect(tmp_path / "jobs.sqlite")
    yield connection
    connection.close()


@pytest.fixture
def store(connection: sqlite3.Connection) -> Store:
    return Store(connection)


def new(tenant: str = "a") -> NewJob:
    return NewJob(tenant=tenant, model="tiny", request={"prompt": "x"})


def accept(store: Store, *, room: Room = ROOM, key: Key | None = None, tenant: str = "a", now: float = 0.0) -> Job:
    (job,) = store.accept([new(tenant)], room, key, now).jobs
    return job


def claim(store: Store, now: float = 1.0) -> Job:
    job = store.claim(now, 30.0)
    assert job is not None
    return job


def test_jobs_are_claimed_in_their_order_each_once(store: Store) -> None:
    ids = [accept(store).id for _ in range(3)]
    assert [claim(store).id for _ in range(3)] == ids
    assert store.claim(1.0, 30.0) is None


def test_an_older_claim_can_change_nothing_any_more(store: Store) -> None:
    accept(store)
    old = claim(store)
    assert store.put_back(old.id, old.fence)
    young = claim(store)
    assert young.fence == old.fence + 1
    assert not store.renew(old.id, old.fence, 99.0)
    assert not store.complete(old.id, old.fence, RESULT, 1, 2.0)
    assert not store.fail(old.id, old.fence, "x", "x", 2.0)
    assert not store.bury(old.id, old.fence, max_deaths=3, now=2.0)
    assert store.complete(young.id, young.fence, RESULT, 1, 2.0)


@pytest.mark.parametrize("state", ["queued", "running", "failed", "cancelled"])
def test_a_job_that_has_ended_stays_as_it_is(store: Store, connection: sqlite3.Connection, state: str) -> None:
    accept(store)
    job = claim(store)
    assert store.complete(job.id, job.fence, RESULT, 1, 2.0)
    assert not store.complete(job.id, job.fence, RESULT, 1, 3.0)
    assert not store.fail(job.id, job.fence, "x", "x", 3.0)
    assert store.cancel("a", job.id, 3.0)[0].state == "completed"
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("UPDATE jobs SET state = ?", (state,))


def test_a_cancelled_job_cannot_be_completed(store: Store) -> None:
    accept(store)
    job = claim(store)
    assert store.cancel("a", job.id, 2.0)[1]
    assert not store.complete(job.id, job.fence, RESULT, 1, 3.0)


def test_a_job_keeps_its_place_when_its_worker_dies_and_fails_at_the_third_time(store: Store) -> None:
    first, second = accept(store), accept(store)
    for _ in range(3):
        job = claim(store)
        assert job.id == first.id
        assert store.bury(job.id, job.fence, max_deaths=3, now=2.0)
    failed = store.get("a", first.id)
    assert (failed.state, failed.error_code, failed.deaths) == ("failed", "worker_crashed", 3)
    assert claim(store).id == second.id


def test_deaths_count_from_where_a_job_last_came_further(store: Store) -> None:
    accept(store)
    for further, deaths in ((False, 1), (False, 2), (True, 1), (False, 2), (False, 3)):
        job = claim(store)
        assert store.bury(job.id, job.fence, max_deaths=3, now=2.0, further=further)
        assert store.get("a", job.id).deaths == deaths
    assert store.get("a", job.id).error_code == "worker_crashed"


def test_what_ran_when_the_server_ended_waits_again_but_not_for_ever(store: Store) -> None:
    accept(store)
    for _ in range(2):
        claim(store)
        assert len(store.recover(max_restarts=3, now=2.0)) == 1
        assert store.num_queued() == 1
    job = claim(store)
    store.recover(max_restarts=3, now=2.0)
    assert (store.get("a", job.id).state, store.get("a", job.id).deaths) == ("failed", 0)


def test_a_full_queue_takes_no_part_of_a_batch(store: Store) -> None:
    with pytest.raises(Full):
        store.accept([new()] * 3, Room(queue=2), None, 0.0)
    assert store.num_queued() == 0
    store.accept([new()] * 2, Room(queue=2), None, 0.0)
    with pytest.raises(Full):
        accept(store, room=Room(queue=2))
    with pytest.raises(Full):
        accept(store, room=Room(queue=9, tenant=2))
    accept(store, room=Room(queue=9, tenant=2), tenant="b")


def test_a_key_stands_for_one_body_of_one_tenant_for_a_day(store: Store) -> None:
    key = Key(key="k", body_sha256="1")
    first = accept(store, key=key)
    replayed = store.accept([new()], Room(queue=0), key, KEY_LIVES_S - 1)
    assert replayed.replayed and [job.id for job in replayed.jobs] == [first.id]
    with pytest.raises(KeyReused):
        accept(store, key=Key(key="k", body_sha256="2"))
    assert accept(store, key=key, tenant="b").id != first.id
    assert accept(store, key=key, now=KEY_LIVES_S + 1).id != first.id


def test_a_key_whose_job_was_forgotten_makes_a_new_one(store: Store, connection: sqlite3.Connection) -> None:
    key = Key(key="k", body_sha256="1")
    first = accept(store, key=key)
    connection.execute("DELETE FROM jobs")
    again = accept(store, key=key)
    assert again.id != first.id and accept(store, key=key).id == again.id


def test_what_was_refused_leaves_no_key_behind(store: Store) -> None:
    with pytest.raises(Full):
        accept(store, room=Room(queue=0), key=Key(key="k", body_sha256="1"))
    accept(store, key=Key(key="k", body_sha256="2"))


def test_nobody_sees_a_deleted_job_or_another_tenant_s(store: Store) -> None:
    job = accept(store)
    for look in (store.get, lambda tenant, job_id: store.cancel(tenant, job_id, 1.0)):
        with pytest.raises(Unknown):
            look("b", job.id)
    store.delete("a", job.id, 1.0)
    with pytest.raises(Unknown):
        store.get("a", job.id)
    assert store.page("a", after=None, limit=9, newest_first=True) == []


def test_pages_meet_without_gap_or_overlap_either_way(store: Store) -> None:
    ids = [accept(store).id for _ in range(5)]
    for newest_first, expected in ((False, ids), (True, ids[::-1])):
        seen: list[str] = []
        while page := store.page("a", after=seen[-1] if seen else None, limit=2, newest_first=newest_first):
            seen += [job.id for job in page]
        assert seen == expected


def test_the_position_counts_who_is_made_before(store: Store) -> None:
    jobs = [accept(store) for _ in range(3)]
    assert [store.position(job) for job in jobs] == [0, 1, 2]
    claim(store)
    assert [store.position(job) for job in jobs[1:]] == [0, 1]


def test_rows_go_only_when_their_files_have_gone_and_their_keys_have_served(store: Store) -> None:
    accept(store)
    job = claim(store)
    store.complete(job.id, job.fence, RESULT, 5, 2.0)
    late = KEY_LIVES_S * 9
    assert store.forget(late, late) == 0
    store.files_gone(job.id, 3.0)
    assert store.forget(late, 10.0) == 0
    assert store.forget(late, late) == 1
