"""One moment after the other: a server is kept up while a fuse burns, and every job has to come to its right end."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.campaign import Findings, bodies, check, oracle
from tests.chaos.live import Live
from tests.chaos.moments import Moment
from tests.chaos.sabotaged import Fuse

SETTINGS = {"checkpoint_s": "0", "lease_s": "5", "sweep_s": "0.2", "preview_every": "2"}
STEPS = {"short": 8, "long": 100, "very long": 500}
"""The very long job is there when its lease is renewed, after a third of it."""
PATIENCE_S = 90.0
TIDY_S = 2.0
ROUNDS = 4
"""Times that a scene is played before its moment is said to have never come."""


class Stuck(Exception):
    """Something that has to happen did not."""


@cache
def frames_sha256(length: str, which: int) -> str:
    """What a request of the drill has to end in."""
    return oracle([bodies(which + 1, STEPS[length])[which]])[0]


def fuse_of(data: Path) -> Fuse:
    """The fuse of the stage whose server has that data folder."""
    return Fuse(data.with_name(f"{data.name}.fuse"))


class Stage:
    """A sabotaged server, and what its jobs have to end in."""

    def __init__(
        self,
        data: Path,
        *,
        fault: str = "none",
        patience_s: float = PATIENCE_S,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.fuse = fuse_of(data)
        self.live = Live(
            data,
            settings=SETTINGS | dict(settings or {}),
            log=data.with_name(f"{data.name}.log"),
            program=("-m", "tests.chaos.sabotaged", str(self.fuse.path), fault),
        )
        self.expected: dict[str, str | None] = {}
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
        length = {"make": "short", "delete": "short", "long": "very long"}.get(name, "long")
        jobs = [self.submit(length, i) for i in range(3 if name == "make" else 1)]
        if name == "cancel":
            self.cancel(jobs[0])
        elif name == "delete":
            self.ended(jobs[0])
            self.delete(jobs[0])
        elif name in ("worker dies", "server dies", "server ends"):
            self.until(lambda: self.ask("GET", f"/v1/videos/{jobs[0]}")["progress"] > 5)
            live = self.live
            {"worker dies": live.kill_worker, "server dies": live.kill, "server ends": live.terminate}[name]()
        for job in jobs:
            self.ended(job)

    def submit(self, length: str, which: int) -> str:
        """One of the requests of a length, until it is accepted; its id."""
        key = {"Idempotency-Key": f"drill-{next(self._numbers)}"}
        body = bodies(which + 1, STEPS[length])[which]
        job_id = self.ask("POST", "/v1/videos", json=body, headers=key)["id"]
        self.expected[job_id] = frames_sha256(length, which)
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
