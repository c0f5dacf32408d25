"""What happens on the page: every function takes what the page holds, asks the API, and says what to show."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from daifuku.studio import cards
from daifuku.studio.client import Api, Model, Refused, Video

PAGE = 12
"""Videos that the gallery grows by."""

TYPING_S = 0.35
"""Pause after which a prompt is counted."""

LOOK_AGAIN_S = 5.0
"""Between two looks at the list while something in it will still change."""

IDLE_S = 30.0
"""Between two looks otherwise: jobs may come from elsewhere, and Gradio notices only then that a page was closed."""

AGAIN_S = 1.0
"""Between two tries to reach a server that is loading or starting again."""


@dataclass(kw_only=True)
class Session:
    """What one open page shows."""

    model: Model | None = None
    videos: list[Video] = field(default_factory=list)
    has_more: bool = False
    chosen: str | None = None
    other: str | None = None
    """Beside the chosen one."""
    picking: bool = False
    """The next video that is clicked becomes the other."""
    live: dict[str, Any] = field(default_factory=dict)
    """Of the chosen one, while it is made: its steps, preview and seconds left."""
    watch: int = 0
    """Grows whenever another video is chosen: an earlier one is not followed any more."""
    bell: asyncio.Event | None = None
    """Wakes who keeps the page up to date; None before the page is open."""

    def find(self, video_id: str | None) -> Video | None:
        """A video of the gallery."""
        return next((video for video in self.videos if video["id"] == video_id), None)

    def put(self, video: Video) -> None:
        """A video as it is now; a new one comes first."""
        if self.find(video["id"]) is None:
            self.videos.insert(0, video)
        self.videos = [video if each["id"] == video["id"] else each for each in self.videos]

    def choose(self, video_id: str | None) -> None:
        """Shows that video alone."""
        self.chosen, self.other, self.picking = video_id, None, False
        self.live = {}
        self.watch += 1
        self.ring()

    def ring(self) -> None:
        """There is something new to show."""
        if self.bell is not None:
            self.bell.set()

    @property
    def is_busy(self) -> bool:
        """Whether any video will still change."""
        return any(video["status"] not in cards.ENDED for video in self.videos)

    def stage(self) -> str:
        """The large part of the page."""
        chosen, other = self.find(self.chosen), self.find(self.other)
        return cards.stage(chosen, self.live, other, picking=self.picking)

    def gallery(self) -> str:
        """The small part."""
        return cards.gallery(self.videos, self.chosen, has_more=self.has_more)


async def model_of(api: Api, tries: int) -> Model:
    """The model, once it is loaded. Raises Refused."""
    while True:
        try:
            return await api.model()
        except Refused as error:
            tries -= 1
            if error.code != "not_ready" or tries <= 0:
                raise
        await asyncio.sleep(AGAIN_S)


async def refresh(session: Session, api: Api) -> None:
    """The newest videos as they are now; older ones that are shown stay. Raises Refused."""
    page = await api.page(limit=PAGE)
    seen = {video["id"] for video in page.videos}
    # What was deleted elsewhere is not among the newest, though newer than the oldest of them.
    oldest = page.videos[-1]["created_at"] if page.has_more else float("-inf")
    older = [video for video in session.videos if video["id"] not in seen and video["created_at"] <= oldest]
    session.videos = [*page.videos, *older]
    session.has_more = session.has_more if older else page.has_more


async def more(session: Session, api: Api) -> None:
    """Further videos at the end of the gallery. Raises Refused."""
    page = await api.page(limit=PAGE, after=session.videos[-1]["id"] if session.videos else None)
    known = {video["id"] for video in session.videos}
    session.videos += [video for video in page.videos if video["id"] not in known]
    session.has_more = page.has_more


def first_choice(session: Session) -> str | None:
    """What a page shows when it opens: the job that is being made, else the newest."""
    busy = [video for video in session.videos if video["status"] not in cards.ENDED]
    return busy[-1]["id"] if busy else session.videos[0]["id"] if session.videos else None


async def watch(session: Session, api: Api) -> AsyncIterator[None]:
    """Keeps what a page shows up to date as long as it is open; yields whenever there is something new to show.

    The chosen video is followed, whichever it is by now; the rest is looked at from time to time while it will change.
    """
    before, bell = session.bell, asyncio.Event()
    session.bell = bell
    if before is not None:
        before.set()
    watched, following = session.watch, asyncio.create_task(follow(session, api))
    try:
        while True:
            try:
                async with asyncio.timeout(LOOK_AGAIN_S if session.is_busy else IDLE_S):
                    await bell.wait()
            except TimeoutError:
                # Where the list cannot be had, the next look tries again.
                with suppress(Refused):
                    await refresh(session, api)
            bell.clear()
            if session.bell is not bell:
                return
            if session.watch != watched:
                following.cancel()
                watched, following = session.watch, asyncio.create_task(follow(session, api))
            yield
    finally:
        following.cancel()


async def follow(session: Session, api: Api) -> None:
    """Takes what happens to the chosen video into the session, until its end.

    Where the server starts again meanwhile, so does this.
    """
    video_id = session.chosen
    while (video := session.find(video_id)) and video["status"] not in cards.ENDED:
        try:
            async for name, data in api.events(video["id"]):
                happened(session, video["id"], name, data, monotonic())
                session.ring()
        except Refused as error:
            if error.status in (401, 403, 404):
                return
        await asyncio.sleep(AGAIN_S)


def happened(session: Session, video_id: str, name: str, data: Mapping[str, Any], now_s: float) -> None:
    """Takes an event of a job into what the page shows."""
    video, live = session.find(video_id), session.live
    if video is None:
        return
    if name == "queued":
        session.put({**video, "status": "queued", "queue_position": data["position"]})
    elif name == "running":
        session.put({**video, "status": "in_progress", "progress": data["progress"], "stage": data["stage"]})
        live |= {"step": data["step"], "total": data["total"], "left_s": _left_s(live, data, now_s)}
    elif name == "preview":
        live |= {"image": data["image"], "step_seen": data["step"]}
    elif name == "done" and data.get("deleted"):
        session.videos = [each for each in session.videos if each["id"] != video_id]
        session.choose(None)
    elif name == "done":
        session.put(data)
        session.live = {}


def _left_s(live: dict[str, Any], data: Mapping[str, Any], now_s: float) -> float | None:
    """Seconds that the stage will still take, at the pace it has had since it was first seen."""
    if live.get("stage") != data["stage"] or data["step"] < live.get("from_step", 0):
        live |= {"stage": data["stage"], "from_step": data["step"], "from_s": now_s}
    done = data["step"] - live["from_step"]
    if done <= 0:
        return None
    return (now_s - live["from_s"]) / done * (data["total"] - data["step"])


def begin(session: Session, video: Video) -> None:
    """A new job, which is shown."""
    session.put(video)
    session.choose(video["id"])


async def again(session: Session, api: Api, video_id: str, changes: Mapping[str, Any]) -> None:
    """A job like an earlier one. Raises Refused."""
    begin(session, await api.remix(video_id, changes))


async def cancel(session: Session, api: Api, video_id: str) -> None:
    """Ends a job. Raises Refused."""
    session.put(await api.cancel(video_id))


async def remove(session: Session, api: Api, video_id: str) -> None:
    """Forgets a job; the next one takes its place. Raises Refused."""
    await api.delete(video_id)
    ids = [video["id"] for video in session.videos]
    place = ids.index(video_id) if video_id in ids else 0
    session.videos = [video for video in session.videos if video["id"] != video_id]
    if video_id in (session.chosen, session.other):
        rest = session.videos[place : place + 1] or session.videos[-1:]
        session.choose(rest[0]["id"] if rest else None)
