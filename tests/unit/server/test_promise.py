"""Whatever happens in whatever order, the store does what a few lines of Python say it should."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from daifuku.server.database import connect
from daifuku.server.jobs import Job, NewJob
from daifuku.server.store import Full, Room, Store

MAX_QUEUED, MAX_DEATHS = 4, 3
RESULT: dict[str, Any] = {"files": {}, "frames_sha256": "", "timings": {}}


class Promise(RuleBasedStateMachine):
    """Clients, workers that may be long dead, and a server that is killed now and then."""

    ids = Bundle("ids")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.open()
        self.states: dict[str, str] = {}
        self.fences: dict[str, int] = {}
        self.deaths: dict[str, int] = {}
        self.published: dict[str, int] = {}

    def open(self) -> None:
        self.connection = connect(Path(self.folder.name, "jobs.sqlite"))
        self.store = Store(self.connection)

    def holds(self, job: Job) -> bool:
        return self.states[job.id] == "running" and self.fences[job.id] == job.fence

    @rule(target=ids)
    def accept(self) -> str:
        queued = sum(state == "queued" for state in self.states.values())
        try:
            new = NewJob(tenant="a", model="m", request={})
            job = self.store.accept([new], Room(queue=MAX_QUEUED), None, 0.0).jobs[0]
        except Full:
            # What ran when the server ended or its worker died waits again, also where that is one too many.
            assert queued >= MAX_QUEUED
            return "none"
        assert queued < MAX_QUEUED
        self.states[job.id], self.deaths[job.id] = "queued", 0
        return job.id

    @rule(target=claims)
    def claim(self) -> Job | None:
        waiting = [job_id for job_id, state in self.states.items() if state == "queued"]
        job = self.store.claim(1.0, 30.0)
        assert (job.id if job else None) == (waiting[0] if waiting else None)
        if job is not None:
            self.states[job.id], self.fences[job.id] = "running", job.fence
        return job

    @rule(job=claims)
    def complete(self, job: Job | None) -> None:
        if job is not None:
            held = self.holds(job)
            assert self.store.complete(job.id, job.fence, RESULT, 1, 2.0) == held
            if held:
                self.states[job.id] = "completed"
                self.published[job.id] = self.published.get(job.id, 0) + 1

    @rule(job=claims, further=st.booleans())
    def die(self, job: Job | None, further: bool) -> None:
        if job is not None:
            held = self.holds(job)
            assert self.store.bury(job.id, job.fence, max_deaths=MAX_DEATHS, now=2.0, further=further) == held
            if held:
                self.deaths[job.id] = 1 if further else self.deaths[job.id] + 1
                self.states[job.id] = "failed" if self.deaths[job.id] == MAX_DEATHS else "queued"

    @rule(job_id=consumes(ids), then_delete=st.booleans())
    def cancel(self, job_id: str, then_delete: bool) -> None:
        if job_id != "none":
            change = self.store.delete if then_delete else self.store.cancel
            job, busy = change("a", job_id, 2.0)
            before = self.states[job_id]
            assert busy == (before == "running")
            self.states[job_id] = "cancelled" if before in ("queued", "running") else before
            assert job.state == self.states[job_id]

    @rule()
    def crash(self) -> None:
        self.connection.close()
        self.open()
        self.store.recover(max_restarts=10**6, now=3.0)
        self.states = {i: "queued" if state == "running" else state for i, state in self.states.items()}

    @invariant()
    def agrees(self) -> None:
        rows = self.connection.execute("SELECT id, state FROM jobs").fetchall()
        assert {row["id"]: row["state"] for row in rows} == self.states
        assert all(number == 1 for number in self.published.values())

    def teardown(self) -> None:
        self.connection.close()
        self.folder.cleanup()


Promise.TestCase.settings = settings(max_examples=10, stateful_step_count=30, deadline=None, database=None)
test_the_store_keeps_the_promise = Promise.TestCase
