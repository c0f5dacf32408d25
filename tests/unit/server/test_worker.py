import socket
import threading

import pytest

from daifuku import load
from daifuku.errors import CheckpointError, InvalidRequest, MediaError, NonFiniteLatent, UnwritableOutput
from daifuku.server import making
from daifuku.server.making import Wishes
from daifuku.server.messages import Channel
from daifuku.server.tasks import Opening, Task
from daifuku.server.worker import MESSAGES, _work


@pytest.mark.parametrize(
    "error, code",
    [
        (InvalidRequest("the unmentionable"), "invalid_request"),
        (UnwritableOutput("no room"), "unwritable"),
        (OSError(28, "No space left on device"), "unwritable"),
        (MediaError("no room"), "unwritable"),
        (MemoryError(), "out_of_memory"),
        (NonFiniteLatent("NaN"), "non_finite"),
        (CheckpointError("cut short"), "damaged_model"),
        (ZeroDivisionError("x"), "internal"),
    ],
)
def test_a_job_that_fails_says_why_and_no_more(error: Exception, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def _fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(making, "make", _fail)
    ours, theirs = map(Channel, socket.socketpair())
    wishes = Wishes(cancel=threading.Event(), stop=threading.Event())
    task = Task(kind="generate", request={}, lora_names=(), folder="", checkpoint="")
    _work(theirs, Opening(), load(), wishes, 7, task)
    told = ours.receive()
    assert told is not None
    assert (told["id"], told["event"], told["code"], told["message"]) == (7, "failed", code, MESSAGES[code])
    assert "unmentionable" not in told["log"]
