"""Asking somebody else whether a prompt may be made into a video, before anything of it is stored."""

import asyncio
import importlib
import json
import re
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from daifuku.errors import InvalidRequest
from daifuku.server.bodies import parse_json
from daifuku.server.jobs import NewJob
from daifuku.server.posting import NoAnswer, post
from daifuku.server.problems import Problem
from daifuku.server.targets import BadTarget, Target, look_up, parse_target

MAX_ASKING = 16
"""Calls of a function at a time: one that hangs takes no more threads than that."""

RETRY_AFTER_S = 5
_CATEGORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _/-]{0,63}")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Question = Mapping[str, str]
"""prompt, negative_prompt and tenant."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was answered."""

    allowed: bool
    category: str | None = None
    """Of what is wrong with a prompt."""


class Unavailable(Exception):
    """There is no verdict."""


Moderator = Callable[[Question], Awaitable[Verdict]]
"""Raises Unavailable."""


def moderator_of(where: str, timeout_s: float) -> Moderator:
    """What asks a URL or a function "package.module:name". Raises InvalidRequest where there is neither."""
    if where.startswith(("http://", "https://")):
        try:
            return _within(timeout_s, _Endpoint(parse_target(where)))
        except BadTarget as error:
            raise InvalidRequest(f"the setting moderation is no URL that works. {error}") from error
    return _within(timeout_s, _Function(_found(where)))


async def approve(moderator: Moderator, jobs: Sequence[NewJob]) -> None:
    """Returns where all jobs are allowed. Raises Problem, also where nobody can tell."""
    asked = {(job.request["prompt"], job.request["negative_prompt"], job.tenant) for job in jobs}
    questions: list[Question] = [
        {"prompt": prompt, "negative_prompt": negative_prompt, "tenant": tenant}
        for prompt, negative_prompt, tenant in sorted(asked)
    ]
    try:
        verdicts = await asyncio.gather(*map(moderator, questions))
    except Unavailable as error:
        raise Problem(
            503,
            "moderation_unavailable",
            "Nobody can tell now whether this prompt is allowed; nothing was stored.",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        ) from error
    for verdict in verdicts:
        if not verdict.allowed:
            why = "" if verdict.category is None else f" ({verdict.category})"
            raise Problem(400, "moderation_blocked", f"This prompt is not allowed here{why}.", param="prompt")


def _found(where: str) -> Callable[[dict[str, str]], Any]:
    hint = "Try a URL, or a function as package.module:name."
    if not _FUNCTION.fullmatch(where):
        raise InvalidRequest(f"the setting moderation is neither a URL nor a function. {hint}")
    module, _, name = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"the function {where} of the setting moderation is not there: {error}. {hint}") from error
    if not callable(found):
        raise InvalidRequest(f"{where}, the setting moderation, cannot be called. {hint}")
    return found


def _within(timeout_s: float, ask: Callable[[Question], Awaitable[Any]]) -> Moderator:
    async def _ask(question: Question) -> Verdict:
        try:
            async with asyncio.timeout(timeout_s):
                return _verdict(await ask(question))
        except (TimeoutError, NoAnswer, OSError, Problem) as error:
            raise Unavailable from error

    return _ask


def _verdict(found: Any) -> Verdict:
    """Raises Unavailable for anything that is not clearly a yes or a no."""
    if not isinstance(found, Mapping) or not isinstance(found.get("allowed"), bool):
        raise Unavailable
    category = found.get("category")
    sound = isinstance(category, str) and _CATEGORY.fullmatch(category)
    return Verdict(allowed=found["allowed"], category=category if sound else None)


@dataclass(frozen=True)
class _Endpoint:
    target: Target

    async def __call__(self, question: Question) -> Any:
        # The operator has named it: it may well have a private address.
        address = (await look_up(self.target.host, self.target.port))[0]
        content = json.dumps(dict(question)).encode()
        answer = await post(self.target, address, content, headers={}, with_content=True)
        if not answer.is_success:
            raise NoAnswer(f"status {answer.status}")
        return parse_json(answer.content)


class _Function:
    """Called in a thread that nobody waits for at the end."""

    def __init__(self, function: Callable[[dict[str, str]], Any]) -> None:
        self._function = function
        self._free = threading.Semaphore(MAX_ASKING)

    async def __call__(self, question: Question) -> Any:
        if not self._free.acquire(blocking=False):
            raise Unavailable
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()

        def _tell(found: Any) -> None:
            if not answered.done():
                answered.set_result(found)

        def _call() -> None:
            found = None
            try:
                found = self._function(dict(question))
            except Exception:  # noqa: BLE001 (whatever goes wrong in it, there is no verdict)
                found = None
            finally:
                self._free.release()
                # The server may have ended meanwhile.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(_tell, found)

        threading.Thread(target=_call, name="moderate", daemon=True).start()
        return await answered
