"""Disks that are full, broken or read-only, and a process that may open no more files."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.campaign import check, oracle
from tests.chaos.live import LONG, SHORT, Ended, Live

pytestmark = pytest.mark.slow

DISK_BYTES = 8 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    there = tmp_path / "disk"
    there.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(there)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only an administrator may mount a small disk")
    yield there
    subprocess.run(["umount", "--lazy", str(there)], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Nothing else has room any more."""
    with open(disk / "ballast", "ab", buffering=0) as file:
        for size in (2**16, 1):
            while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > leave:
                try:
                    if not file.write(b"x" * size):
                        break
                except OSError:
                    break


def clear(disk: Path) -> None:
    """There is room again."""
    (disk / "ballast").unlink()


def refused(live: Live) -> tuple[list[str], int]:
    """Offers jobs until one is refused for want of room: those accepted before, and the status of the refusal."""
    accepted: list[str] = []
    for i in range(500):
        answer = live.submit(SHORT | {"seed": 100 + i})
        if answer.status_code != 202:
            assert answer.json()["error"]["code"] == "insufficient_storage"
            return accepted, answer.status_code
        accepted.append(answer.json()["id"])
    raise AssertionError("it was never full")


def test_a_full_disk_refuses_jobs_with_507_keeps_those_it_has_and_recovers_by_itself(disk: Path) -> None:
    with Live(disk / "data", settings={"max_queue": "1000"}, log=disk / "log") as live:
        live.wait_ready()
        before = live.wait(live.submit(SHORT | {"seed": 1}).json()["id"])
        # The worker is busy, so that its files do not make room in between.
        live.workers()[0].suspend()
        fill(disk)
        accepted, status = refused(live)
        assert status == 507
        assert live.http.get("/livez").status_code == 200
        assert live.http.get(f"/v1/videos/{before['id']}").json() == before
        listed = {job["id"] for job in live.http.get("/v1/videos?limit=100").json()["data"]}
        assert listed == {before["id"], *accepted} or len(accepted) > 99
        clear(disk)
        live.workers()[0].resume()
        after = live.wait(live.submit(SHORT | {"seed": 2}).json()["id"])
        assert [after["frames_sha256"]] == oracle([SHORT | {"seed": 2}])
        assert all(live.wait(job_id)["status"] == "completed" for job_id in accepted)
        assert live.terminate() == 0


@pytest.mark.parametrize("leave", [0, 40_000, 200_000])
def test_a_disk_that_fills_up_under_a_job_breaks_no_clip(disk: Path, leave: int) -> None:
    """Room for nothing more, for a part of the clip, for all of it."""
    with Live(disk / "data", settings={"checkpoint_s": "0"}, log=disk / "log") as live:
        live.wait_ready()
        job_id = live.submit(LONG | {"seed": 1}).json()["id"]
        live.wait_step(job_id, 20)
        fill(disk, leave)
        deadline = time.monotonic() + 60
        # Where its end cannot even be recorded, the job waits for room.
        while live.http.get(f"/v1/videos/{job_id}").json()["status"] == "in_progress" and time.monotonic() < deadline:
            if "could not be recorded" in (disk / "log").read_text():
                break
            time.sleep(0.1)
        assert live.http.get(f"/v1/videos/{job_id}").json()["progress"] in (99, 100) or deadline > time.monotonic()
        clear(disk)
        job = live.wait(job_id)
        assert job["status"] == "completed" or job["error"]["code"] == "unwritable"
        after = live.wait(live.submit(SHORT | {"seed": 2}).json()["id"])
        live.terminate()
    expected = {after["id"]: oracle([SHORT | {"seed": 2}])[0]}
    expected[job_id] = oracle([LONG | {"seed": 1}])[0] if job["status"] == "completed" else None
    found = check(disk / "data", expected)
    assert [*found.corrupt, *found.swapped, *found.left_behind] == []
    assert found.revived == ([] if job["status"] == "completed" else [job_id])
    assert (disk / "data" / "videos" / job_id).exists() == (job["status"] == "completed")


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_start_without_room_is_refused_in_one_line(disk: Path, state: str) -> None:
    if state == "full":
        fill(disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    command = [sys.executable, "-m", "daifuku", "serve", "--port", "0", "--data", str(disk / "data")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (1, 2) and ended.stdout == ""
    assert re.fullmatch(r"error: [^\n]*data[^\n]*\n", ended.stderr), ended.stderr


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "-qq", "true"], capture_output=True).returncode:
        pytest.skip("strace is not here, or may not be used")
    return found


@pytest.mark.parametrize("when", [2, 3, 5])
def test_a_disk_that_fails_to_flush_breaks_no_clip_and_loses_no_job(tmp_path: Path, strace: str, when: int) -> None:
    """Every thread of server and worker has its flush of that number fail."""
    inject = f"inject=fsync,fdatasync:error=EIO:when={when}"
    under = [strace, "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", inject]
    try:
        live = Live(tmp_path / "data", under=under)
    except Ended:
        # It could not even make its database: that is said, and nothing was promised.
        return
    with live:
        live.wait_ready()
        ids: list[str] = []
        for seed in range(4):
            while (answer := live.submit(SHORT | {"seed": seed}, f"key-{seed}")).status_code == 507:
                time.sleep(0.05)
            ids.append(answer.json()["id"])
        jobs = [live.wait(job_id) for job_id in ids]
        live.terminate()
    hashes = oracle([SHORT | {"seed": seed} for seed in range(4)])
    done = [job["status"] == "completed" for job in jobs]
    assert all(job["error"]["code"] == "unwritable" for job, is_done in zip(jobs, done, strict=True) if not is_done)
    assert any(done)
    expected = {job_id: sha256 for job_id, sha256, is_done in zip(ids, hashes, done, strict=True) if is_done}
    found = check(tmp_path / "data", expected)
    assert [*found.corrupt, *found.swapped, *found.lost, *found.left_behind] == []
    assert set(found.duplicated) <= set(ids)


def test_a_clip_is_on_disk_before_it_has_its_name_and_has_its_name_before_it_is_recorded(
    tmp_path: Path, strace: str
) -> None:
    log, calls = tmp_path / "calls", "fsync,fdatasync,rename,renameat,renameat2,link,linkat"
    under = [strace, "-D", "-f", "-qq", "-y", "-s", "300", "-o", str(log), "-e", f"trace={calls}"]
    with Live(tmp_path / "data", under=under) as live:
        live.wait_ready()
        job = live.wait(live.submit(SHORT).json()["id"])
        live.terminate()
    assert job["status"] == "completed"
    seen = log.read_text().splitlines()

    def _first(pattern: str, after: int = -1) -> int:
        return next(i for i, line in enumerate(seen) if i > after and re.search(pattern, line))

    flushed = _first(r"fsync\(\d+<.*/\.video\.mp4\.\w+\.part>")
    named = _first(r"link(at)?\(.*/video\.mp4", flushed)
    listed = _first(rf"fsync\(\d+<.*/temporary/{job['id']}\.1>", named)
    published = _first(rf"rename\w*\(.*/videos/{job['id']}", listed)
    lasting = _first(r"fsync\(\d+<.*/videos>", published)
    recorded = _first(r"f(data)?sync\(\d+<.*/jobs\.sqlite-wal>", lasting)
    assert flushed < named < listed < published < lasting < recorded


def test_a_server_that_may_open_no_more_files_goes_on_when_it_may_again(tmp_path: Path) -> None:
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not here")
    log = tmp_path / "log"
    with Live(tmp_path / "data", settings={"header_s": "4"}, under=[prlimit, "--nofile=40:40"], log=log) as live:
        live.wait_ready()
        job_id = live.submit(LONG).json()["id"]
        live.wait_step(job_id, 20)
        host, port = live.url.removeprefix("http://").split(":")
        crowd = [socket.create_connection((host, int(port))) for _ in range(60)]
        time.sleep(0.5)
        assert live.kill_worker()
        time.sleep(1)
        for one in crowd:
            one.close()
        assert live.wait(job_id)["status"] == "completed"
        assert live.wait(live.submit(SHORT).json()["id"])["status"] == "completed"
    assert all(line.startswith("{") for line in log.read_text().splitlines())
