"""Every moment at which a process of the server is killed on purpose, and the scene in which it comes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Scene = Literal["make", "long", "cancel", "delete", "worker dies", "server dies", "server ends", "first start"]
"""What happens while the fuse burns; see `drill.py`."""


def _always(*_: Any) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Before or after a call of one function."""

    name: str
    side: Literal["server", "worker"]
    target: str
    """module:Class.function"""
    after: bool = False
    when: Callable[..., bool] = _always
    """Of the result (None before the call) and the arguments."""
    statement: str | None = None
    """Of SQL, before which it comes; the first argument of the call is then a connection."""
    scene: Scene = "make"


def _server(name: str, target: str, **values: Any) -> Moment:
    return Moment(name=name, side="server", target=f"daifuku.server.{target}", **values)


def _worker(name: str, target: str, **values: Any) -> Moment:
    return Moment(name=name, side="worker", target=f"daifuku.{target}", **values)


def _told(name: str, event: str, when: Callable[[Any], bool] = _always) -> Moment:
    """After an event of the pipeline, which was also told to the server."""

    def _is_it(result: Any, told: Any, *_: Any) -> bool:
        return type(told).__name__ == event and when(told)

    return _worker(name, "server.making:_tell", after=True, when=_is_it)


def _of_a_job(_: Any, cycle: Any, message: Any) -> bool:
    made = (cycle.scope["method"], cycle.scope["path"]) == ("POST", "/v1/videos")
    return made and message["type"] == "http.response.body"


def _of_a_checkpoint(_: Any, _path: Any, to: Any) -> bool:
    return f"{to}".endswith(".resume.safetensors")


def _of_one(result: Any, *_: Any) -> bool:
    return result is not None


SERVER = (
    _server("within a migration", "database:migrate", statement="CREATE TABLE answers", scene="first start"),
    _server("before a body is read", "service:Service.body"),
    _server("after a body was read", "service:Service.body", after=True),
    _server("after a request was checked", "service:Service.new_job", after=True),
    _server("before a job is committed", "store:Store._insert", after=True),
    _server("after a job was committed", "service:Service.accept", after=True),
    Moment(
        name="within the answer",
        side="server",
        target="uvicorn.protocols.http.h11_impl:RequestResponseCycle.send",
        when=_of_a_job,
    ),
    Moment(
        name="after the answer",
        side="server",
        target="uvicorn.protocols.http.h11_impl:RequestResponseCycle.send",
        after=True,
        when=_of_a_job,
    ),
    _server("before a claim is committed", "store:Store.claim", after=True, when=_of_one),
    _server("after a claim was committed", "dispatcher:Dispatcher._claim", after=True, when=_of_one),
    _server("before a lease is renewed", "store:Store.renew", after=True, scene="long"),
    _server("before a clip is published", "folder:DataFolder.publish"),
    _server("before a clip gets its name", "folder:sync", after=True, when=lambda _, p: p.parent.name == "temporary"),
    _server("after a clip got its name", "folder:sync", when=lambda _, p: p.name == "videos"),
    _server("after a clip was published", "folder:DataFolder.publish", after=True),
    _server("before a result is committed", "store:Store.complete", after=True),
    _server("after a result was committed", "dispatcher:Dispatcher._publish", after=True),
    _server("before a job is cleared away", "folder:DataFolder.clear"),
    _server("after a job was cleared away", "folder:DataFolder.clear", after=True),
    _server("before a death is committed", "store:Store.bury", after=True, scene="worker dies"),
    _server("before a cancel is committed", "store:Store.cancel", after=True, scene="cancel"),
    _server("after a cancel was committed", "service:Service.cancel", after=True, scene="cancel"),
    _server("before a deletion is committed", "store:Store.delete", after=True, scene="delete"),
    _server("before a sweep is committed", "store:Store.files_gone", after=True, scene="delete"),
    _server("between a sweep and its files", "folder:DataFolder.withdraw", scene="delete"),
    _server("before what ran is put back", "store:Store.recover", scene="server dies"),
    _server("while what ran is put back", "store:Store.recover", after=True, scene="server dies"),
    _server("after what ran was put back", "dispatcher:Dispatcher.start", after=True, scene="server dies"),
    _server("before the folder is tidied", "folder:DataFolder.tidy", scene="server dies"),
    _server("after the folder was tidied", "folder:DataFolder.tidy", after=True, scene="server dies"),
    _server("when it is told to end", "dispatcher:Dispatcher.drain", scene="server ends"),
    _server("before a stopped job is put back", "store:Store.put_back", after=True, scene="server ends"),
    _server("when everything is put back", "dispatcher:Dispatcher.drain", after=True, scene="server ends"),
)

WORKER = (
    _worker("before the model is read", "server.worker:_open", scene="worker dies"),
    _worker("after the model was read", "server.worker:_open", after=True, scene="worker dies"),
    _worker("when it waits for its first task", "server.worker:_serve", scene="worker dies"),
    _worker("after a task has come", "server.worker:_work"),
    _worker("before a sign of life", "server.messages:Channel.send", when=lambda _, c, m: m.get("event") == "alive"),
    _told("before the text is encoded", "Planned"),
    _told("after the text was encoded", "TextReady"),
    _told("after the first step", "Step", lambda step: step.index == 1),
    _told("after the middle step", "Step", lambda step: step.index == step.total // 2),
    _told("after the last step", "Step", lambda step: step.index == step.total),
    _told("after a preview", "Preview"),
    _worker("while a checkpoint is written", "runtime.checkpoint:save", after=True),
    Moment(
        name="before a checkpoint gets its name", side="worker", target="pathlib:Path.replace", when=_of_a_checkpoint
    ),
    _worker("after a checkpoint was written", "runtime.checkpoint:Checkpoints.flush", after=True),
    _worker("before a checkpoint is read", "server.making:read_checkpoint", scene="worker dies"),
    _told("after the first frames", "Frames", lambda frames: frames.start == 0),
    _told("after the last frames", "Frames", lambda frames: frames.start > 0),
    _worker("after a clip was opened", "media.write:VideoWriter._open", after=True),
    _worker("within a clip", "media.write:VideoWriter.write", after=True),
    _told("after everything was decoded", "Done"),
    _worker("before a clip is finished", "media.write:VideoWriter._finish"),
    _worker("before a clip is flushed", "media.write:publish"),
    _worker("after a clip was flushed", "media.publish:_move_all"),
    _worker("between the names of two files", "media.publish:_move", after=True),
    _worker("after all files have their names", "media.write:publish", after=True),
    _worker("after the hashes were taken", "server.making:_published", after=True),
    _worker("after the result was told", "server.worker:_work", after=True),
)

MOMENTS = (*SERVER, *WORKER)
