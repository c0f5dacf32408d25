"""The process that has the model: it makes one clip at a time, as the server asks over the socket it was born with."""

import ctypes
import os
import queue
import signal
import socket
import sys
import threading
from dataclasses import asdict
from time import sleep
from typing import TYPE_CHECKING, Any

from daifuku.errors import (
    CheckpointError,
    DaifukuError,
    InvalidRequest,
    MediaError,
    NonFiniteLatent,
    NotEnoughMemory,
    UnwritableOutput,
)
from daifuku.server.messages import BrokenMessage, Channel, Message
from daifuku.server.tasks import (
    ALIVE,
    CANCELLED,
    DONE,
    FAILED,
    READY,
    STOPPED,
    UNUSABLE,
    ModelCard,
    Opening,
    Task,
)

if TYPE_CHECKING:
    from daifuku.pipeline import Pipeline
    from daifuku.server.making import Wishes

CODES = {
    UnwritableOutput: "unwritable",
    InvalidRequest: "invalid_request",
    NotEnoughMemory: "out_of_memory",
    NonFiniteLatent: "non_finite",
    CheckpointError: "damaged_model",
    MediaError: "unwritable",
    OSError: "unwritable",
    MemoryError: "out_of_memory",
}
"""What each kind of error is called in a job's status; the first that fits counts."""

MESSAGES = {
    "invalid_request": "The model does not take this request.",
    "out_of_memory": "This video does not fit the memory of the device. Try fewer frames or a smaller picture.",
    "non_finite": "Sampling left the range of numbers. Try another seed, or less guidance.",
    "damaged_model": "The files of the model or of a LoRA are damaged.",
    "unwritable": "The video could not be written to disk.",
    "internal": "Something went wrong while the video was made.",
}
"""What a client is told. The whole story, with its paths, stands in the log only."""


def main(handle: int) -> None:
    """Serve the socket `handle` until it closes."""
    _die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        # The server decides when it ends, also where a terminal or a service manager tells the whole group.
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=handle))
    first = channel.receive()
    if first is None:
        return
    opening = Opening(**first["opening"])
    _limit_memory(opening.process_bytes)
    threading.Thread(target=_show_life, args=(channel, opening.alive_every_s), daemon=True).start()
    try:
        pipe = _open(opening)
    except DaifukuError as error:
        channel.send({"event": UNUSABLE, "message": str(error)})
        return
    parts, info = pipe.parts, pipe.parts.info
    card = ModelCard(
        name=info.name,
        identity=info.identity,
        device=info.device,
        defaults=parts.defaults,
        tokenizer=None if parts.tokenizer is None else str(parts.tokenizer.resolve()),
    )
    channel.send({"event": READY, "card": asdict(card)})
    _serve(channel, opening, pipe)


def _open(opening: Opening) -> "Pipeline":
    from daifuku.pipeline import load
    from daifuku.request import GenerateRequest

    pipe = load(
        opening.model,
        revision=opening.revision,
        variant=opening.variant,
        device=opening.device,
        memory=opening.device_memory,
    )
    # Weights are read when they are needed. To plan looks at all of them, so damage is found before a job is taken.
    pipe.planner(pipe.resolve(GenerateRequest(prompt="-")))
    return pipe


def _serve(channel: Channel, opening: Opening, pipe: "Pipeline") -> None:
    from daifuku.server.making import Wishes

    wishes = Wishes(cancel=threading.Event(), stop=threading.Event())
    tasks: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, tasks, wishes), daemon=True).start()
    while True:
        message = tasks.get()
        _work(channel, opening, pipe, wishes, message["id"], Task(**message["task"]))


def _listen(channel: Channel, tasks: "queue.SimpleQueue[Message]", wishes: "Wishes") -> None:
    """Hears the server while the main thread works. Where nobody is there any more, the process ends at once."""
    try:
        while (message := channel.receive()) is not None:
            match message.get("do"):
                case "run":
                    wishes.cancel.clear()
                    wishes.stop.clear()
                    tasks.put(message)
                case "cancel":
                    wishes.cancel.set()
                case "stop":
                    wishes.stop.set()
    except (BrokenMessage, OSError):
        pass
    os._exit(0)


def _work(channel: Channel, opening: Opening, pipe: "Pipeline", wishes: "Wishes", number: int, task: Task) -> None:
    from daifuku.server.making import Cancelled, Stopped, make

    def report(message: dict[str, Any]) -> None:
        channel.send({"id": number, **message})

    try:
        result = make(pipe, opening, task, wishes, report)
    except Cancelled:
        report({"event": CANCELLED})
    except Stopped:
        report({"event": STOPPED})
    except Exception as error:  # noqa: BLE001 (whatever a job does, the worker takes the next one)
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), "internal")
        # What is wrong with a request is said in its own words, and those belong in no log.
        log = type(error).__name__ if code == "invalid_request" else f"{type(error).__name__}: {error}"
        report({"event": FAILED, "code": code, "message": MESSAGES[code], "log": log})
    else:
        report({"event": DONE, "result": result})


def _show_life(channel: Channel, every_s: float) -> None:
    while True:
        sleep(every_s)
        try:
            channel.send({"event": ALIVE})
        except OSError:
            os._exit(0)


def _die_with_parent() -> None:
    """On Linux the kernel ends this process with the server, even where it cannot notice by itself."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _limit_memory(num_bytes: int | None) -> None:
    if num_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


if __name__ == "__main__":
    main(int(sys.argv[1]))
