"""Workers and servers that come to harm in other ways than by a clean kill."""

import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.chaos.campaign import oracle
from tests.chaos.drill import Stage
from tests.chaos.faults import MISFORTUNES, UNLUCKY
from tests.chaos.live import LONG, SHORT, Live

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", MISFORTUNES)
def test_a_job_that_harms_its_worker_fails_in_words_and_the_next_one_is_made(name: str, tmp_path: Path) -> None:
    code, _ = MISFORTUNES[name]
    with Stage(tmp_path / "data", fault=name, settings={"deadline_s": "10"}).live as live:
        live.wait_ready()
        unlucky, other = (live.submit(SHORT | {"seed": seed}).json()["id"] for seed in (UNLUCKY, 0))
        job = live.wait(unlucky)
        assert (job["status"], (job["error"] or {}).get("code")) == ("failed" if code else "completed", code)
        assert live.wait(other)["status"] == "completed"
        assert live.terminate() == 0


def test_a_job_that_does_not_fit_the_memory_of_a_worker_fails_in_words_and_the_next_one_is_made(
    tmp_path: Path,
) -> None:
    with Live(tmp_path, settings={"worker_bytes": str(14 * 10**8), "max_work": "1e12"}) as live:
        live.wait_ready()
        large = SHORT | {"width": 1024, "height": 1024, "num_frames": 163, "num_inference_steps": 1}
        job = live.wait(live.submit(large).json()["id"])
        assert job["status"] == "failed" and job["error"]["code"] in ("out_of_memory", "worker_crashed")
        assert live.wait(live.submit(SHORT).json()["id"])["status"] == "completed"


def test_a_worker_that_outlives_its_end_changes_nothing_any_more(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "data", fault="a worker that outlives its end", settings={"lease_s": "2"})
    with stage.live as live:
        live.wait_ready()
        body = LONG | {"seed": 1}
        job_id = live.submit(body).json()["id"]
        live.wait_step(job_id, 20)
        (zombie,) = live.workers()
        zombie.send_signal(signal.SIGSTOP)
        while live.http.get(f"/v1/videos/{job_id}").json()["attempts"] < 2:
            time.sleep(0.02)
        # Now two of them make the same clip, and only the second one's counts.
        zombie.send_signal(signal.SIGCONT)
        job = live.wait(job_id)
        assert (job["status"], job["attempts"], [job["frames_sha256"]]) == ("completed", 2, oracle([body]))
        published = live.http.get(f"/v1/videos/{job_id}/content").content
        time.sleep(3)
        assert live.http.get(f"/v1/videos/{job_id}").json() == job
        assert live.http.get(f"/v1/videos/{job_id}/content").content == published
        with suppress(psutil.NoSuchProcess):
            zombie.kill()


def test_a_server_that_was_stopped_itself_blames_no_worker(tmp_path: Path) -> None:
    with Live(tmp_path, settings={"lease_s": "2", "checkpoint_s": "0"}) as live:
        live.wait_ready()
        job_id = live.submit(LONG).json()["id"]
        live.wait_step(job_id, 20)
        # The worker is slower than the pause.
        (worker,) = live.workers()
        worker.send_signal(signal.SIGSTOP)
        live.process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        worker.send_signal(signal.SIGCONT)
        live.process.send_signal(signal.SIGCONT)
        job = live.wait(job_id)
        assert (job["status"], job["attempts"]) == ("completed", 1)


def test_a_second_sigterm_ends_everything_at_once_and_loses_nothing(tmp_path: Path) -> None:
    with Live(tmp_path, settings={"checkpoint_s": "0"}) as live:
        live.wait_ready()
        job_id = live.submit(LONG).json()["id"]
        live.wait_step(job_id, 20)
        # Its step does not end.
        live.workers()[0].send_signal(signal.SIGSTOP)
        live.process.terminate()
        while live.http.get("/readyz").json()["status"] != "draining":
            time.sleep(0.01)
        assert live.submit(SHORT).status_code == 503
        assert live.terminate() == 128 + signal.SIGTERM
        live.start()
        assert live.wait(job_id)["status"] == "completed"


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGUSR1, signal.SIGSEGV])
def test_whatever_signal_ends_the_server_the_next_one_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    with Live(tmp_path, settings={"checkpoint_s": "0"}) as live:
        live.wait_ready()
        job_id = live.submit(LONG).json()["id"]
        live.wait_step(job_id, 20)
        live.process.send_signal(number)
        live.process.wait(10)
        live.start()
        assert live.wait(job_id)["status"] == "completed"
