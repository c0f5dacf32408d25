import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from daifuku.errors import InvalidRequest
from daifuku.server.moderation import MAX_ASKING, Moderator, moderator_of
from tests.unit.server.fakes import BODY, House, house
from tests.unit.server.receiver import receiving


def says(found: Any) -> bytes:
    content = json.dumps(found).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)


YES, NO = says({"allowed": True}), says({"allowed": False, "category": "violence"})


def code(home: House, method: str = "POST", path: str = "/v1/videos", body: Any = None) -> tuple[int, str | None]:
    answer = home.client.request(method, path, json=body or BODY)
    return answer.status_code, answer.json().get("error", {}).get("code") if answer.status_code >= 400 else None


def num_jobs(home: House) -> int:
    return len(home.client.get("/v1/videos").json()["data"])


def function(monkeypatch: pytest.MonkeyPatch, found: Any) -> str:
    """The name of a function."""
    module = ModuleType("judges")
    module.judge = found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "judges", module)
    return "judges:judge"


def test_both_prompts_are_asked_about_and_a_no_stores_nothing(tmp_path: Path) -> None:
    with receiving(NO, YES) as judge, house(tmp_path, moderator=moderator_of(judge.url, 2.0)) as home:
        body = BODY | {"negative_prompt": "blur"}
        answer = home.client.post("/v1/videos", json=body)
        assert answer.status_code == 400 and num_jobs(home) == 0
        assert answer.json()["error"] == {
            "message": "This prompt is not allowed here (violence).",
            "type": "invalid_request_error",
            "param": "prompt",
            "code": "moderation_blocked",
        }
        (heard,) = judge.wait(1)
        assert heard.json == {"prompt": "a red ball", "negative_prompt": "blur", "tenant": "local"}
        assert code(home) == (202, None)
        assert 'daifuku_jobs_refused_total{code="moderation_blocked"} 1.0' in home.client.get("/metrics").text
        assert "a red ball" not in home.log.getvalue()


def test_every_way_in_asks(tmp_path: Path) -> None:
    blocked = (400, "moderation_blocked")
    with receiving(YES, NO) as judge, house(tmp_path, moderator=moderator_of(judge.url, 2.0)) as home:
        parent = home.client.post("/v1/videos", json=BODY).json()["id"]
        home.until_ended(parent)
        assert code(home) == blocked
        assert code(home, path=f"/v1/videos/{parent}/remix", body={"prompt": "x"}) == blocked
        assert code(home, path=f"/v1/videos/{parent}/decode", body={"fps": 5}) == blocked
        assert code(home, path="/v1/videos/batch", body={"requests": [BODY, BODY | {"prompt": "x"}]}) == blocked
        assert code(home, path="/predictions", body={"input": BODY}) == blocked
        assert code(home, path="/v1/predictions", body={"input": BODY}) == blocked
        assert code(home, "PUT", "/predictions/mine", {"input": BODY}) == blocked
        assert num_jobs(home) == 1


@pytest.mark.parametrize(
    "bad",
    [
        *(500, 302, 200, "hangs", "closes", "drips", b"nonsense\r\n\r\n"),
        *map(says, ({}, [], True, {"allowed": "yes"}, {"allowed": 1}, {"allowed": None}, {"verdict": True})),
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nallowed: ",
        b"HTTP/1.1 200 OK\r\n\r\n" + b'{"allowed": true, "x": "' + b"x" * 70000 + b'"}',
        b"HTTP/1.1 403 No\r\nContent-Length: 17\r\n\r\n" + b'{"allowed": true}',
    ],
    ids=lambda bad: repr(bad)[:40],
)
def test_where_nobody_can_tell_nothing_is_stored(tmp_path: Path, bad: int | str | bytes) -> None:
    with receiving(bad) as judge, house(tmp_path, moderator=moderator_of(judge.url, 0.2)) as home:
        assert code(home) == (503, "moderation_unavailable")
        assert num_jobs(home) == 0
        assert int(home.client.post("/v1/videos", json=BODY).headers["retry-after"]) >= 1


def test_where_nobody_listens_nothing_is_stored(tmp_path: Path) -> None:
    with receiving() as judge:
        pass
    with house(tmp_path, moderator=moderator_of(judge.url, 1.0)) as home:
        assert code(home) == (503, "moderation_unavailable")


def test_a_function_may_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _judge(question: dict[str, str]) -> Any:
        return {"allowed": "blue" in question["prompt"], "category": "<script>"}

    with house(tmp_path, moderator=moderator_of(function(monkeypatch, _judge), 2.0)) as home:
        answer = home.client.post("/v1/videos", json=BODY)
        assert answer.json()["error"]["message"] == "This prompt is not allowed here."
        assert code(home, body=BODY | {"prompt": "a blue ball"}) == (202, None)


@pytest.mark.parametrize("found", [None, True, "yes", {}, ValueError("no")], ids=repr)
def test_a_function_that_gives_no_verdict_lets_nothing_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Any
) -> None:
    def _judge(question: dict[str, str]) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    with house(tmp_path, moderator=moderator_of(function(monkeypatch, _judge), 2.0)) as home:
        assert code(home) == (503, "moderation_unavailable") and num_jobs(home) == 0


def test_a_function_that_hangs_takes_only_so_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, called = threading.Event(), []

    def _judge(question: dict[str, str]) -> Any:
        called.append(question)
        ending.wait(20)
        return {"allowed": True}

    with house(tmp_path, moderator=moderator_of(function(monkeypatch, _judge), 0.02)) as home:
        started = time.monotonic()
        assert {code(home) for _ in range(MAX_ASKING + 8)} == {(503, "moderation_unavailable")}
        assert len(called) == MAX_ASKING and time.monotonic() - started < 5
        ending.set()
        while code(home) != (202, None):
            assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "where",
    [
        "http://",
        "http://user@host/",
        "judge",
        "no.such.module:judge",
        "json:judge",
        "json:__name__",
        "json:",
        "a b:c",
        "ftp://x/",
    ],
)
def test_a_judge_that_is_not_there_is_noticed_at_the_start(where: str) -> None:
    with pytest.raises(InvalidRequest, match="moderation"):
        moderator_of(where, 1.0)


def test_without_a_judge_everything_is_allowed(tmp_path: Path) -> None:
    nobody: Moderator | None = None
    with house(tmp_path, moderator=nobody) as home:
        assert code(home) == (202, None)
