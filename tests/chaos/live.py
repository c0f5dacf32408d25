"""A server as its users run it: a process of its own, that can be killed like one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

SHORT = {"prompt": "a small red ball bouncing on a gray background", "num_frames": 7, "num_inference_steps": 8}
"""A job of a fraction of a second."""

LONG = SHORT | {"num_inference_steps": 250}
"""A job of a few seconds, so that something can happen to it."""


class Ended(Exception):
    """The server ended before it listened."""


class Live:
    """`daifuku serve` on any free port of loopback; `program` is what Python runs in place of the package."""

    def __init__(
        self,
        data: Path,
        *flags: str,
        settings: dict[str, str] | None = None,
        log: Path | None = None,
        program: Sequence[str] = ("-m", "daifuku"),
        under: Sequence[str] = (),
    ) -> None:
        self.data = data
        self._command = [*under, sys.executable, *program, "serve", "--port", "0", "--data", str(data), *flags]
        self._env = os.environ | {"OMP_NUM_THREADS": "1"}
        self._env |= {f"DAIFUKU_{name.upper()}": value for name, value in (settings or {}).items()}
        self._log = log
        self.start()

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    def start(self) -> None:
        """Returns when it listens; its worker may still be reading the model. Raises Ended."""
        with open(self._log or os.devnull, "ab") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._env)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Ended(f"the server ended with {self.process.wait()}")
        self.url = line.split()[-1]
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Until a worker has the model."""
        self._wait(lambda: self.http.get("/readyz").status_code == 200, timeout_s)

    def wait(self, job_id: str, *, until: tuple[str, ...] = ("completed", "failed", "cancelled")) -> dict:
        """The job, when its status is one of those."""
        found: dict = {}

        def _look() -> bool:
            found.update(self.http.get(f"/v1/videos/{job_id}").json())
            return found["status"] in until

        self._wait(_look, 120)
        return found

    def steps(self, job_id: str) -> Iterator[int]:
        """The steps of sampling that are seen while a job runs; not every one is."""
        with self.http.stream("GET", f"/v1/videos/{job_id}/events", timeout=60) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: ") and (about := json.loads(line[6:])).get("stage") == "sampling":
                    yield about.get("step", 0)

    def wait_step(self, job_id: str, step: int) -> int:
        """Until a running job has come so far; returns how far it is."""
        return next(seen for seen in self.steps(job_id) if seen >= step)

    def submit(self, body: dict, key: str | None = None) -> httpx.Response:
        """POST /v1/videos."""
        return self.http.post("/v1/videos", json=body, headers={} if key is None else {"Idempotency-Key": key})

    def workers(self) -> list[psutil.Process]:
        """Worker processes of this server."""
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []

    def kill_worker(self) -> bool:
        """kill -9; says whether there was one."""
        for worker in self.workers():
            worker.send_signal(signal.SIGKILL)
            return True
        return False

    def kill(self) -> None:
        """kill -9 of the server, without a word to its worker."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns its exit code."""
        self.process.terminate()
        return self.process.wait(60)

    @contextmanager
    def kept_up(self) -> Iterator[None]:
        """Within the block it is started again whenever it ends, as a service manager does."""
        done = threading.Event()

        def _watch() -> None:
            while not done.wait(0.02):
                if self.process.poll() is not None:
                    with suppress(Ended):
                        self.start()

        watching = threading.Thread(target=_watch)
        watching.start()
        try:
            yield
        finally:
            done.set()
            watching.join()

    @staticmethod
    def _wait(holds: object, timeout_s: float) -> None:
        assert callable(holds)
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.02)
