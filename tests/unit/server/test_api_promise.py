"""Whatever clients ask in whatever order, also across restarts, the API says what a few lines of Python say."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.unit.server.fakes import house

OPEN = {"queued", "in_progress"}


class Api(RuleBasedStateMachine):
    """Clients of a server that ends and starts again now and then."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.states: dict[str, str] = {}
        self.keys: dict[int, tuple[int, str]] = {}
        self.start()

    def start(self) -> None:
        self.stack = ExitStack()
        self.home = self.stack.enter_context(house(Path(self.folder.name), script=["wait", "done"]))

    def ask(self, method: str, path: str, **options: Any) -> Any:
        return self.home.client.request(method, f"/v1/videos{path}", **options)

    @rule(target=ids, seed=st.integers(0, 2), key=st.integers(0, 3))
    def create(self, seed: int, key: int) -> str:
        answer = self.ask("POST", "", json={"prompt": "a", "seed": seed}, headers={"Idempotency-Key": f"{key}"})
        if key in self.keys and self.keys[key][0] != seed:
            assert answer.status_code == 409
            return self.keys[key][1]
        job_id = answer.json()["id"]
        assert answer.status_code == 202 and self.keys.setdefault(key, (seed, job_id)) == (seed, job_id)
        self.states.setdefault(job_id, "open")
        return job_id

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        answer = self.ask("POST", f"/{job_id}/cancel")
        if self.states[job_id] == "deleted":
            assert answer.status_code == 404
        else:
            if self.states[job_id] == "open":
                self.states[job_id] = "cancelled"
            assert answer.json()["status"] == self.states[job_id]

    @rule(job_id=consumes(ids))
    def delete(self, job_id: str) -> None:
        assert self.ask("DELETE", f"/{job_id}").status_code == (404 if self.states[job_id] == "deleted" else 200)
        self.states[job_id] = "deleted"

    @rule()
    def finish(self) -> None:
        assert self.home.client.portal is not None
        self.home.client.portal.call(self.home.worker.go.set)
        for job_id, state in self.states.items():
            if state == "open":
                assert self.home.until_ended(job_id)["status"] == "completed"
                self.states[job_id] = "completed"
        self.home.client.portal.call(self.home.worker.go.clear)

    @rule()
    def restart(self) -> None:
        self.stack.close()
        self.start()

    @rule(job_id=ids)
    def look(self, job_id: str) -> None:
        answer, content = self.ask("GET", f"/{job_id}"), self.ask("GET", f"/{job_id}/content")
        state = self.states[job_id]
        if state == "deleted":
            assert (answer.status_code, content.status_code) == (404, 404)
        else:
            assert answer.json()["status"] in (OPEN if state == "open" else {state})
            assert content.status_code == (200 if state == "completed" else 409)

    @invariant()
    def lists_what_there_is(self) -> None:
        listed = {job["id"]: job["status"] for job in self.ask("GET", "?limit=100").json()["data"]}
        assert set(listed) == {job_id for job_id, state in self.states.items() if state != "deleted"}
        assert all(status in OPEN or status == self.states[job_id] for job_id, status in listed.items())

    def teardown(self) -> None:
        self.stack.close()
        self.folder.cleanup()


Api.TestCase.settings = settings(max_examples=6, stateful_step_count=20, deadline=None, database=None)
test_the_api_keeps_the_promise = Api.TestCase
