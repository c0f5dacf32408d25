import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from daifuku.server.database import Database
from daifuku.server.folder import DataFolder, Retention, sweep
from daifuku.server.jobs import Job, NewJob
from daifuku.server.store import Room, Store

RESULT = {"files": {}, "frames_sha256": "f", "timings": {}}


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path)


@pytest.fixture
def database(folder: DataFolder) -> Iterator[Database]:
    database = Database(folder.database)
    yield database
    database.close()


def completed(database: Database, folder: DataFolder, ended_at: float, num_bytes: int = 10) -> Job:
    def _complete(store: Store) -> Job:
        store.accept([NewJob(tenant="a", model="m", request={})], Room(queue=9), None, 0.0)
        job = store.claim(0.0, 1.0)
        assert job is not None
        draft(folder, job)
        folder.publish(job)
        store.complete(job.id, job.fence, RESULT, num_bytes, ended_at)
        return store.get("a", job.id)

    return asyncio.run(database.change(_complete))


def draft(folder: DataFolder, job: Job, content: bytes = b"clip") -> None:
    folder.draft(job).mkdir(parents=True)
    (folder.draft(job) / "video.mp4").write_bytes(content)


def swept(folder: DataFolder, database: Database, now: float, *, age_s: float = 100.0, num_bytes: int = 10**9) -> int:
    return asyncio.run(sweep(folder, database, Retention(age_s=age_s, num_bytes=num_bytes), now))["jobs"]


def test_files_go_when_they_are_too_old(folder: DataFolder, database: Database) -> None:
    old, young = completed(database, folder, 10.0), completed(database, folder, 50.0)
    assert swept(folder, database, 109.0) == 0
    assert swept(folder, database, 111.0) == 1
    assert not folder.published(old.id, "video").parent.exists()
    assert folder.published(young.id, "video").exists()


def test_files_go_when_they_are_too_many_the_oldest_first(folder: DataFolder, database: Database) -> None:
    jobs = [completed(database, folder, 10.0 + i) for i in range(4)]
    assert swept(folder, database, 20.0, num_bytes=25) == 2
    assert [folder.published(job.id, "video").exists() for job in jobs] == [False, False, True, True]


def test_files_of_a_deleted_job_go_before_any_other(folder: DataFolder, database: Database) -> None:
    jobs = [completed(database, folder, 10.0 + i) for i in range(3)]
    asyncio.run(database.change(lambda store: store.delete("a", jobs[2].id, 15.0)))
    assert swept(folder, database, 20.0, num_bytes=25) == 1
    assert [folder.published(job.id, "video").exists() for job in jobs] == [True, True, False]


def test_files_that_are_being_read_stay(folder: DataFolder, database: Database) -> None:
    job = completed(database, folder, 10.0)
    with folder.reading(job.id):
        assert swept(folder, database, 999.0) == 0
    # Whoever reads in ranges comes back for the next one.
    assert swept(folder, database, 999.0) == 0
    folder._last_read.clear()
    assert swept(folder, database, 999.0) == 1


def test_hundreds_of_jobs_never_take_more_than_is_kept_and_one_more_round(
    folder: DataFolder, database: Database
) -> None:
    round_of, num_bytes = 10, 100
    read = completed(database, folder, 0.0, num_bytes)
    with folder.reading(read.id):
        for i in range(20):
            for j in range(round_of):
                completed(database, folder, float(10 * i + j), num_bytes)
            assert len(list((folder.root / "videos").iterdir())) <= 2 * round_of + 1
            swept(folder, database, 1000.0, age_s=1e6, num_bytes=round_of * num_bytes)
            kept = asyncio.run(database.read(lambda store: [job.id for job in store.kept()]))
            assert sorted(kept) == sorted(path.name for path in (folder.root / "videos").iterdir())
            assert len(kept) <= round_of and read.id in kept


def test_the_name_appears_after_the_content_is_on_disk_and_before_it_is_recorded(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(_JOB, id="video_1", fence=2)
    draft(folder, job)
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "rename", lambda path, to: (order.append("rename"), rename(path, to))[1])
    folder.publish(job)
    assert order == ["fsync", "rename", "fsync"]


def test_what_an_unrecorded_claim_published_gives_way_to_the_next(folder: DataFolder) -> None:
    for fence, content in ((1, b"old"), (2, b"new")):
        job = replace(_JOB, id="video_1", fence=fence)
        draft(folder, job, content)
        folder.publish(job)
    assert folder.published("video_1", "video").read_bytes() == b"new"
    assert [path.name for path in (folder.root / "videos").iterdir()] == ["video_1"]


def test_a_job_has_come_further_when_its_checkpoint_is_new(folder: DataFolder) -> None:
    assert not folder.has_come_further(_JOB, 0.0)
    folder.checkpoint(_JOB).touch()
    written = folder.checkpoint(_JOB).stat().st_mtime
    assert folder.has_come_further(_JOB, written - 1) and not folder.has_come_further(_JOB, written + 1)


def test_what_killed_workers_left_goes_with_the_job(folder: DataFolder) -> None:
    other = replace(_JOB, id="video_2")
    for job in (_JOB, replace(_JOB, fence=2), other):
        draft(folder, job)
        folder.checkpoint(job).touch()
    (folder.root / "checkpoints" / f".{_JOB.id}.resume.safetensors.half").touch()
    folder.clear(replace(_JOB, fence=2))
    left = {path.relative_to(folder.root).as_posix() for path in folder.root.glob("*/*")}
    assert left == {"temporary/video_2.1", "checkpoints/video_2.resume.safetensors"}


def test_a_start_keeps_what_is_recorded_and_what_goes_on_and_nothing_else(folder: DataFolder) -> None:
    for name in ("videos/kept", "videos/lost", "temporary/a.1"):
        (folder.root / name).mkdir()
    for name in ("goes-on", "ended"):
        (folder.root / "checkpoints" / f"{name}.resume.safetensors").touch()
    folder.tidy({"goes-on"}, {"kept"})
    left = {path.relative_to(folder.root).as_posix() for path in folder.root.glob("*/*")}
    assert left == {"videos/kept", "checkpoints/goes-on.resume.safetensors"}


_JOB = Job(
    number=1,
    id="video_0",
    tenant="a",
    kind="generate",
    parent=None,
    model="m",
    request={},
    state="running",
    fence=1,
    lease_until=None,
    deaths=0,
    restarts=0,
    created_at=0.0,
    started_at=None,
    ended_at=None,
    error_code=None,
    error_message=None,
    result=None,
    num_bytes=0,
    files_gone_at=None,
    deleted_at=None,
)
