import shutil
import socket
import threading
from pathlib import Path

import pytest

import daifuku
from daifuku import load
from daifuku.errors import CheckpointError, InvalidRequest, MediaError, ModelNotFound, NonFiniteLatent, UnwritableOutput
from daifuku.server import making
from daifuku.server.making import Wishes
from daifuku.server.messages import Channel
from daifuku.server.tasks import Opening, Task
from daifuku.server.worker import MESSAGES, _open, _work

TINY = Path(daifuku.__file__).parent / "assets" / "tiny"


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


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_a_damaged_model_is_found_before_any_job_is_taken(part: str, harm: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    (weights,) = (model / part).glob("*.safetensors")
    content = weights.read_bytes()
    weights.unlink()
    if harm == "cut":
        weights.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        weights.write_bytes(content[:20] + bytes([content[20] ^ 0xFF]) + content[21:])
    with pytest.raises((CheckpointError, ModelNotFound), match=part):
        _open(Opening(model=str(model)))
