"""One moment after the other: a server is kept up while a fuse burns, and every job has to come to its right end."""

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.campaign import Findings, bodies, check, oracle
from tests.chaos.live import Live
from tests.chaos.moments import Moment
from tests.chaos.sabotaged import Fuse

SETTINGS = {"checkpoint_s": "0", "lease_s": "2", "sweep_s": "0.2", "preview_every": "2"}
SHORT_STEPS, LONG_STEPS = 8, 150
PATIENCE_S = 30.0
TIDY_S = 2.0
ROUNDS = 4
"""Times that a scene is played before its moment is said to have never come."""


class Stuck(Exception):
    """Something that has to happen did not."""


def fuse_of(data: Path) -> Fuse:
    """The fuse of the stage whose server has that data folder."""
    return Fuse(data.with_name(f"{data.name}.fuse"))


class Stage:
    """A sabotaged server, and what its jobs have to end in."""

    def __init__(self, data: Path, *, fault: str = "none", patience_s: float = PATIENCE_S) -> None:
        self.fuse = fuse_of(data)
        self.live = Live(
            data,
            settings=SETTINGS,
            log=data.with_name(f"{data.name}.log"),
            program=("-m", "tests.chaos.sabotaged", str(self.fuse.path), fault),
        )
        self.expected: dict[str, str | None] = {}
        self._short, self._long = bodies(6, SHORT_STEPS), bodies(1, LONG_STEPS)[0]
        self._hashes = oracle([*self._short, self._long])
        self._numbers = count()
        self._patience_s = patience_s

    def findings(self) -> Findings:
        """What is wrong when there was time to tidy up."""
        found: list[Findings] = []

        def _is_clean() -> bool:
            found[:] = [check(self.live.data, self.expected)]
            return not found[0].any()

        with suppress(Stuck):
            self.until(_is_clean, min(TIDY_S, self._patience_s))
        return found[0]

    def play(self, moment: Moment, passes: int = 0) -> int:
        """The scene of a moment until somebody has died of it. Returns how often. Raises Stuck."""
        self.fuse.light(moment.name, passes)
        for played in range(1, ROUNDS + 1):
            self.scene(moment.scene)
            if self.fuse.is_burnt:
                return played
        raise Stuck(f"nothing died {moment.name}")

    def scene(self, name: str) -> None:
        """Jobs, what happens to them, and their ends. Raises Stuck."""
        if name == "make":
            jobs = [self.submit(i) for i in range(3)]
        else:
            jobs = [self.submit(None)] if name != "delete" else [self.submit(3)]
        if name == "cancel":
            self.cancel(jobs[0])
        elif name == "delete":
            self.ended(jobs[0])
            self.delete(jobs[0])
        elif name in ("worker dies", "server dies", "server ends"):
            self.until(lambda: self.ask("GET", f"/v1/videos/{jobs[0]}")["progress"] > 5)
            {"worker dies": self.live.kill_worker, "server dies": self.live.kill, "server ends": self.live.terminate}[
                name
            ]()
        for job in jobs:
            self.ended(job)

    def submit(self, which: int | None) -> str:
        """One of the short requests, or the long one, until it is accepted; its id."""
        body, sha256 = (self._long, self._hashes[-1]) if which is None else (self._short[which], self._hashes[which])
        job_id = self.ask("POST", "/v1/videos", json=body, headers={"Idempotency-Key": f"drill-{next(self._numbers)}"})[
            "id"
        ]
        self.expected[job_id] = sha256
        return job_id

    def cancel(self, job_id: str) -> None:
        """Until it is confirmed; a job that had ended before stays as it is."""
        if self.ask("POST", f"/v1/videos/{job_id}/cancel")["status"] == "cancelled":
            self.expected[job_id] = None

    def delete(self, job_id: str) -> None:
        """Until it is confirmed and its files have gone."""
        self.ask("DELETE", f"/v1/videos/{job_id}")
        self.expected[job_id] = None
        self.until(lambda: not (self.live.data / "videos" / job_id).exists())

    def ended(self, job_id: str) -> None:
        """Until the job has come to an end, or has been deleted. Raises Stuck."""
        ends = ("completed", "failed", "cancelled", None)
        self.until(lambda: self.ask("GET", f"/v1/videos/{job_id}").get("status") in ends)

    def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """An answer, however often the server dies before. Raises Stuck."""
        answers: list[httpx.Response] = []

        def _asked() -> bool:
            try:
                answers.append(self.live.http.request(method, path, **options))
            except (httpx.HTTPError, RuntimeError):
                return False
            return answers[-1].status_code not in (429, 503)

        self.until(_asked)
        return answers[-1].json()

    def until(self, holds: Callable[[], bool], patience_s: float | None = None) -> None:
        """Raises Stuck where it takes too long."""
        deadline = time.monotonic() + (patience_s or self._patience_s)
        while not holds():
            if time.monotonic() > deadline:
                raise Stuck("it took too long")
            time.sleep(0.02)
