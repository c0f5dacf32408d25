"""The promise of docs/serving.md, kept by a real server whose processes are killed."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.campaign import oracle
from tests.chaos.live import LONG, SHORT, Live

CAREFUL = {"checkpoint_s": "0", "preview_every": "0"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("data"), settings=CAREFUL) as live:
        live.wait_ready()
        yield live


@pytest.fixture(scope="module")
def undisturbed(live: Live) -> str:
    """The frames of a long job to which nothing happens."""
    return live.wait(live.submit(LONG | {"seed": 1}).json()["id"])["frames_sha256"]


def test_a_job_whose_worker_is_killed_goes_on_from_its_step_and_ends_in_the_same_bits(
    live: Live, undisturbed: str
) -> None:
    job_id = live.submit(LONG | {"seed": 1}).json()["id"]
    before = live.wait_step(job_id, 50)
    assert live.kill_worker()
    # Not one step that was seen is made again, but for one whose checkpoint may have been on its way.
    after = [step for step in live.steps(job_id) if step > 0]
    job = live.wait(job_id)
    assert after[-1] == 250 and all(step >= before - 1 for step in after)
    assert (job["status"], job["attempts"], job["frames_sha256"]) == ("completed", 2, undisturbed)


def test_a_cancelled_job_stops_within_a_step_and_the_next_one_is_right(live: Live) -> None:
    job_id, next_id = (live.submit(body).json()["id"] for body in (LONG, SHORT | {"seed": 2}))
    live.wait_step(job_id, 20)
    started = time.monotonic()
    assert live.http.post(f"/v1/videos/{job_id}/cancel").json()["status"] == "cancelled"
    live.wait(next_id, until=("in_progress", "completed"))
    assert time.monotonic() - started < 0.5
    assert live.http.get(f"/v1/videos/{job_id}/content").status_code == 409
    assert [live.wait(next_id)["frames_sha256"]] == oracle([SHORT | {"seed": 2}])
    assert live.wait(job_id)["status"] == "cancelled"


def test_not_ready_within_two_seconds_of_a_worker_s_death_and_ready_again_soon(live: Live) -> None:
    live.wait_ready()
    assert live.kill_worker()
    deadline = time.monotonic() + 2
    while live.http.get("/readyz").status_code == 200:
        assert time.monotonic() < deadline
    assert live.http.get("/livez").status_code == 200
    live.wait_ready(10)


def test_a_second_server_on_the_same_folder_is_refused(live: Live) -> None:
    command = [sys.executable, "-m", "daifuku", "serve", "--port", "0", "--data", str(live.data)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 2
    assert refused.stdout == "" and "another server works on the data folder" in refused.stderr
    assert live.http.get("/livez").status_code == 200


@pytest.mark.slow
def test_a_job_whose_server_is_killed_right_after_the_202_is_made_by_the_next_server(tmp_path: Path) -> None:
    with Live(tmp_path, settings=CAREFUL) as live:
        live.wait_ready()
        body = SHORT | {"seed": 3}
        answer = live.submit(body, "once")
        live.kill()
        assert answer.status_code == 202
        live.start()
        live.wait_ready()
        assert live.submit(body, "once").json()["id"] == answer.json()["id"]
        assert [live.wait(answer.json()["id"])["frames_sha256"]] == oracle([body])


@pytest.mark.slow
def test_no_worker_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    with Live(tmp_path, settings=CAREFUL) as live:
        live.wait_ready()
        live.wait_step(live.submit(LONG).json()["id"], 5)
        workers = live.workers()
        # One that is stopped cannot notice anything by itself.
        workers[0].send_signal(signal.SIGSTOP)
        live.kill()
        gone, alive = psutil.wait_procs(workers, timeout=5)
        assert gone and not alive


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_from_which_the_next_server_goes_on(tmp_path: Path, undisturbed: str) -> None:
    with Live(tmp_path, settings={"checkpoint_s": "3600"}) as live:
        live.wait_ready()
        job_id = live.submit(LONG | {"seed": 1}).json()["id"]
        before = live.wait_step(job_id, 50)
        started = time.monotonic()
        assert live.terminate() == 0
        assert time.monotonic() - started < 5
        assert len(list((tmp_path / "checkpoints").iterdir())) == 1
        live.start()
        live.wait_ready()
        assert min(step for step in live.steps(job_id) if step > 0) >= before
        job = live.wait(job_id)
    assert (job["status"], job["frames_sha256"]) == ("completed", undisturbed)


@pytest.mark.slow
def test_a_worker_that_gives_no_sign_of_life_loses_its_job_to_another(tmp_path: Path, undisturbed: str) -> None:
    with Live(tmp_path, settings=CAREFUL | {"lease_s": "2"}) as live:
        live.wait_ready()
        job_id = live.submit(LONG | {"seed": 1}).json()["id"]
        live.wait_step(job_id, 20)
        live.workers()[0].send_signal(signal.SIGSTOP)
        job = live.wait(job_id)
    assert (job["status"], job["attempts"], job["frames_sha256"]) == ("completed", 2, undisturbed)


@pytest.mark.slow
def test_a_job_that_kills_its_worker_three_times_fails_and_blocks_nobody(tmp_path: Path) -> None:
    with Live(tmp_path, settings={"checkpoint_s": "3600"}) as live:
        live.wait_ready()
        poison, other = (live.submit(body).json()["id"] for body in (LONG, SHORT))
        for _ in range(3):
            live.wait_step(poison, 5)
            assert live.kill_worker()
            time.sleep(0.1)
        job = live.wait(poison)
        assert (job["status"], job["error"]["code"]) == ("failed", "worker_crashed")
        assert live.wait(other)["status"] == "completed"


@pytest.mark.slow
def test_a_job_past_its_deadline_fails_and_the_next_one_is_made(tmp_path: Path) -> None:
    with Live(tmp_path, settings=CAREFUL | {"deadline_s": "1"}) as live:
        live.wait_ready()
        late, other = (live.submit(body).json()["id"] for body in (LONG, SHORT))
        assert live.wait(late)["error"]["code"] == "deadline"
        assert live.wait(other)["status"] == "completed"


@pytest.mark.slow
def test_fifty_requests_with_one_key_at_a_time_make_one_job(tmp_path: Path) -> None:
    with Live(tmp_path) as live:
        live.wait_ready()
        ids: list[str] = []
        threads = [
            threading.Thread(target=lambda: ids.append(live.submit(SHORT, "same").json()["id"])) for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ids) == 50 and len(set(ids)) == 1
        assert len(live.http.get("/v1/videos").json()["data"]) == 1
