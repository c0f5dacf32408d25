"""A short campaign, and that its count finds each kind of fault."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from daifuku.media.write import VideoWriter
from daifuku.server.database import connect
from daifuku.server.folder import DataFolder
from daifuku.server.jobs import NewJob
from daifuku.server.making import _published
from daifuku.server.store import Room, Store
from daifuku.server.tasks import FILES, Task
from tests.chaos.campaign import Findings, check, run


@pytest.mark.slow
def test_a_short_campaign_loses_doubles_swaps_and_breaks_nothing(tmp_path: Path) -> None:
    report = run(tmp_path / "data", num_jobs=10, num_kills=5, log=tmp_path / "log")
    assert report["jobs"] == 10 and sum(report["kills"].values()) == 5 and report["exit_code"] == 0
    assert not Findings(**report["findings"]).any()
    # Whatever happens, a line of the log is one JSON object.
    assert all("event" in json.loads(line) for line in (tmp_path / "log").read_text().splitlines())


@pytest.fixture
def honest(tmp_path: Path) -> dict[str, str]:
    """A data folder with two completed jobs; the hash of the frames by id."""
    import numpy as np

    folder = DataFolder(tmp_path)
    connection = connect(folder.database)
    store = Store(connection)
    expected = {}
    for i in range(2):
        new = NewJob(tenant="local", model="tiny", request={"num_frames": 1, "loras": []})
        store.accept([new], Room(queue=9), None, 0.0)
        job = store.claim(1.0, 30.0)
        assert job is not None
        with VideoWriter(folder.draft(job) / FILES["video"][0], fps=10, size=(16, 16)) as writer:
            writer.write(np.full((1, 16, 16, 3), 99 * i, dtype=np.uint8))
            for variant in ("thumbnail", "spritesheet", "latents"):
                writer.attach(FILES[variant][0].removeprefix("video"), b"content")
        task = Task(kind="generate", request={}, lora_names=(), folder=str(folder.draft(job)), checkpoint="")
        folder.publish(job)
        result = _published_at(folder, task, job.id, f"hash {i}")
        assert store.complete(job.id, job.fence, result, 99, 2.0)
        expected[job.id] = f"hash {i}"
    connection.close()
    return expected


def _published_at(folder: DataFolder, task: Task, job_id: str, frames_sha256: str) -> dict:
    there = Task(**{**vars(task), "folder": str(folder.published(job_id, "video").parent)})
    return _published(there, frames_sha256, {"timings": {}})


def _lose(data: Path, job_id: str) -> None:
    _change(data, "UPDATE jobs SET state = 'queued' WHERE id = ?", job_id, without="jobs_end_once")


def _forget(data: Path, job_id: str) -> None:
    _change(data, "DELETE FROM jobs WHERE id = ?", job_id)


def _swap(data: Path, job_id: str) -> None:
    (found,) = _change(data, "SELECT result FROM jobs WHERE id = ?", job_id)[0]
    result = json.loads(found) | {"frames_sha256": "of another"}
    _change(data, f"UPDATE jobs SET result = '{json.dumps(result)}' WHERE id = ?", job_id)


def _double(data: Path, job_id: str) -> None:
    _change(
        data,
        "INSERT INTO jobs (id, tenant, kind, model, request, created_at) "
        "SELECT id || 'x', tenant, kind, model, request, created_at FROM jobs WHERE id = ?",
        job_id,
    )


def _flip(data: Path, job_id: str) -> None:
    path = DataFolder(data).published(job_id, "video")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(data: Path, job_id: str) -> None:
    path = DataFolder(data).published(job_id, "video")
    path.write_bytes(path.read_bytes()[:-10])


def _remove(data: Path, job_id: str) -> None:
    DataFolder(data).published(job_id, "thumbnail").unlink()


def _litter(data: Path, job_id: str) -> None:
    (data / "temporary" / f"{job_id}.1").mkdir()


def _change(data: Path, query: str, job_id: str, without: str | None = None) -> list:
    connection = sqlite3.connect(DataFolder(data).database)
    if without is not None:
        connection.execute(f"DROP TRIGGER {without}")
    found = connection.execute(query, (job_id,)).fetchall()
    connection.commit()
    connection.close()
    return found


def test_an_honest_folder_has_nothing_wrong(honest: dict[str, str], tmp_path: Path) -> None:
    assert not check(tmp_path, honest).any()


@pytest.mark.parametrize(
    "plant, kind",
    [
        (_lose, "lost"),
        (_forget, "lost"),
        (_swap, "swapped"),
        (_double, "duplicated"),
        (_flip, "corrupt"),
        (_cut, "corrupt"),
        (_remove, "corrupt"),
        (_litter, "left_behind"),
    ],
)
def test_a_fault_that_is_planted_is_found(
    plant: Callable[[Path, str], None], kind: str, honest: dict[str, str], tmp_path: Path
) -> None:
    plant(tmp_path, next(iter(honest)))
    assert getattr(check(tmp_path, honest), kind) != []
