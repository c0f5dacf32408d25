import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daifuku import Pipeline, load
from daifuku.errors import UnwritableOutput
from daifuku.media.read import read_metadata
from daifuku.runtime.checkpoint import Checkpoints, read_checkpoint
from daifuku.server.making import Cancelled, Stopped, Wishes, _public, make
from daifuku.server.tasks import FILES, Opening, Task

OPENING = Opening(served_as="tiny", checkpoint_every_s=0.0)
BODY = {"prompt": "a red ball", "seed": 1, "width": 32, "height": 32, "num_frames": 7, "num_inference_steps": 6}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return load()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(
        kind="generate",
        request=BODY | {"loras": []},
        lora_names=(),
        folder=str(tmp_path / "draft"),
        checkpoint=str(tmp_path / "a.resume.safetensors"),
    )


class Heard:
    """Reports, and something that is done after a step."""

    def __init__(self, step: int = 0, do: Callable[[], None] = lambda: None) -> None:
        self.steps: list[int] = []
        self._step = step
        self._do = do

    def __call__(self, message: dict[str, Any]) -> None:
        if message["event"] == "step" and message["stage"] == "sampling":
            self.steps.append(message["step"])
            if message["step"] == self._step:
                self._do()


def wishes() -> Wishes:
    return Wishes(cancel=threading.Event(), stop=threading.Event())


def stopped_after(pipe: Pipeline, task: Task, step: int) -> None:
    wish = wishes()
    with pytest.raises(Stopped):
        make(pipe, OPENING, task, wish, Heard(step, wish.stop.set))


def test_a_job_that_was_stopped_ends_in_the_same_frames(pipe: Pipeline, task: Task) -> None:
    whole = make(pipe, OPENING, task, wishes(), Heard())
    Path(task.checkpoint).unlink()
    stopped_after(pipe, task, 3)
    heard = Heard()
    again = make(pipe, OPENING, task, wishes(), heard)
    assert heard.steps == [4, 5, 6]
    assert again["frames_sha256"] == whole["frames_sha256"]


def test_a_disk_without_room_for_a_checkpoint_keeps_no_job_from_being_stopped(
    pipe: Pipeline, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _full(*_: object) -> None:
        raise UnwritableOutput("No space left on device")

    monkeypatch.setattr(Checkpoints, "flush", _full)
    stopped_after(pipe, task, 3)
    assert not Path(task.checkpoint).exists()


def test_a_cancelled_job_takes_no_further_step(pipe: Pipeline, task: Task) -> None:
    wish = wishes()
    heard = Heard(2, wish.cancel.set)
    with pytest.raises(Cancelled):
        make(pipe, OPENING, task, wish, heard)
    assert heard.steps == [1, 2]


@pytest.mark.parametrize("what", ["torn", "of another request", "of other threads"])
def test_a_checkpoint_that_would_lead_elsewhere_is_left_alone(pipe: Pipeline, task: Task, what: str) -> None:
    stopped_after(pipe, task, 3)
    path = Path(task.checkpoint)
    content = path.read_bytes()
    if what == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif what == "of another request":
        stopped_after(pipe, Task(**vars(task) | {"request": task.request | {"seed": 2}, "checkpoint": str(path)}), 3)
    else:
        path.write_bytes(content.replace(b'"threads\\": 1', b'"threads\\": 9'))
        assert path.read_bytes() != content
    heard = Heard()
    make(pipe, OPENING, task, wishes(), heard)
    assert heard.steps[0] == 1


def test_every_file_is_as_large_and_has_the_hash_that_is_told(pipe: Pipeline, task: Task) -> None:
    result = make(pipe, OPENING, task, wishes(), Heard())
    for variant, (name, _) in FILES.items():
        content = Path(task.folder, name).read_bytes()
        assert result["files"][variant] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_published_record_names_no_folder_of_the_machine(task: Task, tmp_path: Path) -> None:
    lora = str(tmp_path / "style.safetensors")
    asked = Task(**vars(task) | {"request": BODY | {"loras": [[lora, 0.5]]}, "lora_names": ("style",)})
    record = {"request": dict(asked.request), "model": {"name": str(tmp_path), "identity": "abc"}}
    found = _public(record, OPENING, asked)
    assert found["model"] == {"name": "tiny", "identity": "abc"}
    assert found["request"]["loras"] == [["style", 0.5]]
    assert str(tmp_path) not in json.dumps(found)


def test_a_published_clip_has_its_record(pipe: Pipeline, task: Task) -> None:
    make(pipe, OPENING, task, wishes(), Heard())
    record = read_metadata(Path(task.folder, FILES["video"][0]))
    assert record is not None and record["request"]["seed"] == 1 and record["model"]["name"] == "built-in"


def test_decoding_once_more_gives_the_same_frames(pipe: Pipeline, task: Task, tmp_path: Path) -> None:
    first = make(pipe, OPENING, task, wishes(), Heard())
    latents = str(Path(task.folder, FILES["latents"][0]))
    again = Task(**vars(task) | {"kind": "decode", "folder": str(tmp_path / "again"), "latents": latents})
    assert make(pipe, OPENING, again, wishes(), Heard())["frames_sha256"] == first["frames_sha256"]


def test_a_checkpoint_tells_what_its_run_was(pipe: Pipeline, task: Task) -> None:
    stopped_after(pipe, task, 2)
    about, start = read_checkpoint(task.checkpoint)
    assert start.index == 2 and about["record"]["request"]["prompt"] == "a red ball"
