import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

from daifuku.studio import handlers
from daifuku.studio.client import Api, Model, Page, Refused
from daifuku.studio.handlers import Session
from tests.unit.studio.samples import FIELDS, video

ID = video()["id"]


class FakeApi(Api):
    """Answers what it was given."""

    def __init__(self, *, events: list[Any] | None = None, pages: list[Page] | None = None) -> None:
        self.streams = events or []
        self.pages = pages or []
        self.asked: list[Any] = []

    async def page(self, **asked: Any) -> Page:
        self.asked.append(asked)
        return self.pages.pop(0)

    async def events(self, video_id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        stream = self.streams.pop(0)
        for event in stream:
            if isinstance(event, Exception):
                raise event
            yield event

    async def remix(self, video_id: str, changes: Any) -> Any:
        self.asked.append((video_id, changes))
        return video(2, status="queued")

    async def delete(self, video_id: str) -> None:
        self.asked.append(video_id)


def api(**about: Any) -> FakeApi:
    return FakeApi(**about)


def followed(session: Session, behind: Any) -> None:
    """Follows the chosen video to its end."""
    asyncio.run(handlers.follow(session, behind))


def chosen(status: str = "queued") -> Session:
    session = Session(videos=[video(status=status)])
    session.choose(ID)
    return session


RUN = {"stage": "sampling", "total": 10, "progress": 9}


def test_a_job_is_followed_from_the_queue_to_its_end() -> None:
    session = chosen()
    stream = [("queued", {"position": 2}), ("running", RUN | {"step": 1}), ("done", video())]
    followed(session, api(events=[stream]))
    assert session.videos == [video()] and session.live == {}


def test_following_goes_on_where_the_server_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "AGAIN_S", 0.0)
    session = chosen()
    streams = [[("running", RUN | {"step": 1}), Refused("gone")], [Refused("refused")], [("done", video())]]
    followed(session, api(events=streams))
    assert session.videos == [video()]


def test_following_ends_where_the_video_is_not_known_any_more() -> None:
    session = chosen()
    followed(session, api(events=[[Refused("no", status=404)]]))
    assert session.videos == [video(status="queued")]


class Endless(FakeApi):
    """Every job of it goes on and on."""

    async def events(self, video_id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        self.asked.append(video_id)
        for step in count():
            yield "running", RUN | {"step": step}
            await asyncio.sleep(0)


def test_a_page_follows_whichever_video_is_chosen() -> None:
    session, behind = Session(videos=[video(1, status="queued"), video(2, status="queued")]), Endless()

    async def _watch() -> None:
        session.choose(ID)
        shown = 0
        async for _ in handlers.watch(session, behind):
            shown += 1
            if shown == 3:
                session.choose(video(2)["id"])
            if shown == 6:
                break

    asyncio.run(_watch())
    assert behind.asked == [ID, video(2)["id"]]


def test_a_page_that_shows_an_old_video_looks_after_those_that_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "LOOK_AGAIN_S", 0.01)
    session = Session(videos=[video(2, status="queued"), video(1)])

    async def _watch() -> None:
        session.choose(ID)
        async for _ in handlers.watch(session, api(pages=[Page(videos=[video(2), video(1)], has_more=False)])):
            if not session.is_busy:
                break

    asyncio.run(_watch())
    assert session.find(video(2)["id"]) == video(2)


def test_a_page_on_which_nothing_happens_finds_what_was_made_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "IDLE_S", 0.01)
    session = Session()

    async def _watch() -> None:
        await anext(handlers.watch(session, api(pages=[Page(videos=[video()], has_more=False)])))

    asyncio.run(_watch())
    assert session.videos == [video()]


def test_of_one_session_only_the_newest_page_is_kept_up_to_date() -> None:
    session = Session()

    async def _watch() -> None:
        first, second = handlers.watch(session, api()), handlers.watch(session, api())
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0)
        newer = asyncio.ensure_future(anext(second))
        with pytest.raises(StopAsyncIteration):
            await waiting
        session.ring()
        await newer

    asyncio.run(asyncio.wait_for(_watch(), 5))


def test_seconds_left_follow_the_pace_since_the_stage_was_first_seen() -> None:
    session = chosen("in_progress")
    for step, now_s in ((2, 100.0), (4, 110.0), (6, 118.0)):
        handlers.happened(session, ID, "running", RUN | {"step": step}, now_s)
    assert session.live["left_s"] == pytest.approx(18.0)
    handlers.happened(session, ID, "running", RUN | {"stage": "decoding", "step": 1}, 200.0)
    assert session.live["left_s"] is None


def test_seconds_left_begin_anew_where_a_job_falls_back_to_its_checkpoint() -> None:
    session = chosen("in_progress")
    for step, now_s in ((5, 100.0), (3, 110.0), (4, 112.0)):
        handlers.happened(session, ID, "running", RUN | {"step": step}, now_s)
    assert session.live["left_s"] == pytest.approx(12.0)


def test_a_video_that_somebody_deleted_leaves_the_page() -> None:
    session = chosen()
    handlers.happened(session, ID, "done", {"id": ID, "deleted": True}, 0.0)
    assert session.videos == [] and session.chosen is None


def test_looking_again_keeps_older_videos_and_drops_deleted_ones() -> None:
    session = Session(videos=[video(number) for number in (9, 8, 7, 2, 1)], has_more=True)
    asyncio.run(handlers.refresh(session, api(pages=[Page(videos=[video(9), video(7)], has_more=True)])))
    assert [each["created_at"] - 1_700_000_000 for each in session.videos] == [9, 7, 2, 1] and session.has_more
    asyncio.run(handlers.refresh(session, api(pages=[Page(videos=[video(9)], has_more=False)])))
    assert len(session.videos) == 1 and not session.has_more


def test_more_videos_come_after_the_last_one() -> None:
    session = Session(videos=[video(9)])
    behind = api(pages=[Page(videos=[video(8)], has_more=False)])
    asyncio.run(handlers.more(session, behind))
    assert [each["id"] for each in session.videos] == [video(9)["id"], video(8)["id"]]
    assert behind.asked[0]["after"] == video(9)["id"]


def test_a_page_opens_on_the_job_that_is_made_first_else_on_the_newest() -> None:
    assert (
        handlers.first_choice(Session(videos=[video(3, status="queued"), video(2, status="in_progress"), video(1)]))
        == (video(2)["id"])
    )
    assert handlers.first_choice(Session(videos=[video(3), video(1)])) == video(3)["id"]
    assert handlers.first_choice(Session()) is None


def test_a_replay_changes_nothing_and_is_shown() -> None:
    session, behind = chosen("completed"), api()
    asyncio.run(handlers.again(session, behind, ID, {}))
    assert behind.asked == [(ID, {})] and session.chosen == video(2)["id"] == session.videos[0]["id"]


def test_after_a_removal_the_next_video_is_shown() -> None:
    session = Session(videos=[video(3), video(2), video(1)])
    for gone, then in ((2, 1), (1, 3), (3, None)):
        session.choose(video(gone)["id"])
        asyncio.run(handlers.remove(session, api(), video(gone)["id"]))
        assert session.chosen == (None if then is None else video(then)["id"])


def test_a_model_that_is_being_loaded_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "AGAIN_S", 0.0)
    model = Model(name="tiny", loras=[], fields=FIELDS)

    class Loading(Api):
        def __init__(self, *answers: Any) -> None:
            self._answers = list(answers)

        async def model(self) -> Model:
            answer = self._answers.pop(0)
            if isinstance(answer, Refused):
                raise answer
            return answer

    def waited(*answers: Any) -> Model:
        return asyncio.run(handlers.model_of(Loading(*answers), tries=3))

    loading = Refused("loading", code="not_ready")
    assert waited(loading, loading, model) == model
    for answers in ((loading, Refused("key", status=401)), (loading, loading, loading)):
        with pytest.raises(Refused, match=str(answers[-1])):
            waited(*answers)
