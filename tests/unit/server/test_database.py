import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from daifuku.errors import InvalidRequest
from daifuku.server.database import Database, connect, lock_folder
from daifuku.server.jobs import NewJob
from daifuku.server.schema import MIGRATIONS
from daifuku.server.store import Room, Store

NEW = NewJob(tenant="a", model="tiny", request={})


def accept(store: Store) -> str:
    return store.accept([NEW], Room(queue=1000), None, 0.0).jobs[0].id


def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    connection = connect(tmp_path / "jobs.sqlite")
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    connection.close()


def test_only_one_may_have_the_folder(tmp_path: Path) -> None:
    first = lock_folder(tmp_path)
    with pytest.raises(InvalidRequest, match="another server"):
        lock_folder(tmp_path)
    os.close(first)
    os.close(lock_folder(tmp_path))


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    connection = connect(tmp_path / "jobs.sqlite")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(InvalidRequest, match="has schema"):
        connect(tmp_path / "jobs.sqlite")


def test_a_database_of_the_first_version_keeps_its_jobs_and_learns_the_rest(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "jobs.sqlite")
    old.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
    old.execute(
        "INSERT INTO jobs (id, tenant, kind, model, request, created_at) VALUES ('a', 'b', 'generate', '', '{}', 0)"
    )
    old.commit()
    old.close()
    connection = connect(tmp_path / "jobs.sqlite")
    store = Store(connection)
    assert store.find("a") is not None
    assert store.cancel("b", "a", 1.0)[0].state == "cancelled"
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    connection.close()


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(InvalidRequest, match="cannot be opened"):
        connect(tmp_path / "jobs.sqlite")


def test_changes_that_wait_together_each_get_their_own_answer(tmp_path: Path) -> None:
    async def _all() -> list[object]:
        database = Database(tmp_path / "jobs.sqlite")

        def _fail(store: Store) -> None:
            accept(store)
            raise ValueError

        changes = [database.change(_fail if i % 3 == 0 else accept) for i in range(30)]
        answers = await asyncio.gather(*changes, return_exceptions=True)
        assert await database.read(lambda store: store.num_queued()) == 20
        database.close()
        return answers

    answers = asyncio.run(_all())
    assert [isinstance(answer, ValueError) for answer in answers] == [i % 3 == 0 for i in range(30)]
    assert len({answer for answer in answers if isinstance(answer, str)}) == 20


def test_what_a_change_returned_is_there_for_another_process(tmp_path: Path) -> None:
    async def _accept() -> str:
        database = Database(tmp_path / "jobs.sqlite")
        # Nothing is closed: this is all that a crash leaves.
        return await database.change(accept)

    job_id = asyncio.run(_accept())
    other = sqlite3.connect(tmp_path / "jobs.sqlite")
    assert other.execute("SELECT id FROM jobs").fetchall() == [(job_id,)]
    other.close()


def test_a_disk_that_takes_nothing_more_is_an_error_for_everyone_and_the_next_change_works(tmp_path: Path) -> None:
    async def _full() -> None:
        database = Database(tmp_path / "jobs.sqlite")
        await database.change(accept)

        def _fill(store: Store) -> None:
            store._db.execute("PRAGMA max_page_count = 1")
            store._db.execute("CREATE TABLE large AS SELECT randomblob(100000)")

        def _room(store: Store) -> None:
            store._db.execute("PRAGMA max_page_count = 100000")

        with pytest.raises(sqlite3.Error, match="full"):
            await database.change(_fill)
        await database.change(_room)
        await database.change(accept)
        assert await database.read(lambda store: store.num_queued()) == 2
        database.close()

    asyncio.run(_full())
