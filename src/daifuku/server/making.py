"""Making one clip in a worker: from its task to files in its folder, kept going by a checkpoint."""

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from daifuku.config import RuntimeConfig
from daifuku.errors import InvalidRequest, NonFiniteLatent, UnwritableOutput
from daifuku.events import Done, Event, Frames, Planned, Preview, Step, TextReady
from daifuku.media.encode import png
from daifuku.media.write import VideoWriter
from daifuku.pipeline import Pipeline
from daifuku.request import GenerateRequest
from daifuku.runtime.checkpoint import Checkpoints, Start, read_checkpoint
from daifuku.runtime.planner import filled
from daifuku.server.pictures import chosen, grid, strip
from daifuku.server.tasks import FILES, LATENTS, PREVIEW, SPRITESHEET, STAGE, STEP, THUMBNAIL, Opening, Task
from daifuku.video import provenance

Report = Callable[[dict[str, Any]], None]

THUMBNAILS = 16
"""Frames on a spritesheet."""


class Cancelled(Exception):
    """Nobody wants the clip any more."""


class Stopped(Exception):
    """Another worker goes on later."""


class _OtherRun(Exception):
    """The checkpoint belongs to a run that would not end in the same bits."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What was asked for while a task is under way; looked at after every event of the run."""

    cancel: Flag
    stop: Flag

    def heed(self) -> None:
        """Raises Cancelled and Stopped."""
        if self.cancel.is_set():
            raise Cancelled
        if self.stop.is_set():
            raise Stopped


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What an earlier claim of the same job left."""

    about: Mapping[str, Any]
    start: Start


def make(pipe: Pipeline, opening: Opening, task: Task, wishes: Wishes, report: Report) -> dict[str, Any]:
    """The clip of a task. Returns what there is to publish: files by variant, the hash of the frames, timings.

    Raises what `Pipeline.run` raises, MediaError, and what `Wishes.heed` raises.
    """
    folder = Path(task.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if task.kind == "decode":
        return _decode(pipe, opening, task, wishes, report)
    found = _left_by_an_earlier_claim(Path(task.checkpoint))
    own = pipe.runtime
    if found is not None:
        # It goes on as it began, whatever memory is free by now.
        pipe.runtime = filled(RuntimeConfig(**found.about["record"]["runtime"]), own)
    try:
        return _generate(pipe, opening, task, wishes, report, found)
    except _OtherRun:
        pipe.runtime = own
        shutil.rmtree(folder)
        folder.mkdir()
        return _generate(pipe, opening, task, wishes, report, None)
    finally:
        pipe.runtime = own


def _left_by_an_earlier_claim(path: Path) -> _Found | None:
    """None where there is nothing, or nothing sound: then the run begins again."""
    with suppress(InvalidRequest, KeyError, TypeError):
        about, start = read_checkpoint(path)
        RuntimeConfig(**about["record"]["runtime"])
        return _Found(about=about, start=start)
    return None


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the last bits of a run, as it comes back from a checkpoint."""
    return json.loads(json.dumps({"record": record, "threads": torch.get_num_threads()}))


def _generate(
    pipe: Pipeline, opening: Opening, task: Task, wishes: Wishes, report: Report, found: _Found | None
) -> dict[str, Any]:
    request = pipe.resolve(GenerateRequest.from_dict(task.request))
    start = None if found is None else found.start
    checkpoints: Checkpoints | None = None
    clip = Path(task.folder) / FILES["video"][0]
    hashed = hashlib.sha256()
    with (
        VideoWriter(clip, fps=request.fps, size=(request.height, request.width)) as writer,
        closing(_heeding(pipe.run(request, start=start, preview_every=opening.preview_every), wishes)) as events,
    ):
        try:
            for event in events:
                _tell(event, request.num_frames, report)
                match event:
                    case Planned():
                        about = _about(event.record)
                        if found is not None and not event.out_of_memory and about != found.about:
                            raise _OtherRun
                        checkpoints = Checkpoints(Path(task.checkpoint), about, every_s=opening.checkpoint_every_s)
                    case Step() if checkpoints is not None:
                        checkpoints = _kept(checkpoints, event)
                    case Frames():
                        writer.write(event.frames)
                        hashed.update(event.frames.tobytes())
                    case Done():
                        writer.metadata.update(_public(provenance(event.video), opening, task))
                        _attach(writer, event.video.frames, event.video.latents)
        except Stopped:
            if checkpoints is not None:
                # On a full disk the last checkpoint that was written has to do.
                with suppress(UnwritableOutput):
                    checkpoints.flush()
            raise
        except NonFiniteLatent:
            Path(task.checkpoint).unlink(missing_ok=True)
            raise
    return _published(task, hashed.hexdigest(), writer.metadata)


def _kept(checkpoints: Checkpoints, step: Step) -> Checkpoints | None:
    """A disk without room stops no run, but nothing more is kept of it."""
    try:
        checkpoints.take(step)
    except UnwritableOutput:
        return None
    return checkpoints


def _heeding(events: Generator[Event, None, None], wishes: Wishes) -> Generator[Event, None, None]:
    """The events of a run, until somebody wishes otherwise: the event that comes then is still handed over."""
    with closing(events):
        wishes.heed()
        for event in events:
            yield event
            wishes.heed()


def _decode(pipe: Pipeline, opening: Opening, task: Task, wishes: Wishes, report: Report) -> dict[str, Any]:
    assert task.latents is not None, "something to decode"
    request = pipe.resolve(GenerateRequest.from_dict(task.request))
    latents = load_file(task.latents)["latents"]
    hashed, frames = hashlib.sha256(), []
    with VideoWriter(Path(task.folder) / FILES["video"][0], fps=request.fps, size=(request.height, request.width)) as w:
        for chunk in pipe.decode(latents):
            _tell(chunk, request.num_frames, report)
            w.write(chunk.frames)
            hashed.update(chunk.frames.tobytes())
            frames.extend(chunk.frames)
            wishes.heed()
        record = {"request": request.to_dict(), "decoded_by": {"name": opening.served_as}, "timings": {}}
        w.metadata.update(_public(record, opening, task))
        _attach(w, np.stack(frames), latents)
    return _published(task, hashed.hexdigest(), w.metadata)


def _attach(writer: VideoWriter, frames: Any, latents: torch.Tensor) -> None:
    """The other files of a job: they appear together with the clip."""
    pictures = {THUMBNAIL: grid(frames[:1]), SPRITESHEET: grid(chosen(frames, THUMBNAILS))}
    for variant, picture in pictures.items():
        writer.attach(FILES[variant][0].removeprefix("video"), png(picture))
    writer.attach(FILES[LATENTS][0].removeprefix("video"), save({"latents": latents.contiguous()}))


def _public(record: dict[str, Any], opening: Opening, task: Task) -> dict[str, Any]:
    """The record of a clip without names of folders of this machine."""
    loras = [[name, strength] for name, (_, strength) in zip(task.lora_names, task.request["loras"], strict=True)]
    record = {**record, "request": {**record["request"], "loras": loras}}
    if "model" in record and opening.served_as is not None and Path(record["model"]["name"]).exists():
        record["model"] = {**record["model"], "name": opening.served_as}
    return record


def _published(task: Task, frames_sha256: str, record: Mapping[str, Any]) -> dict[str, Any]:
    files = {}
    for variant, (name, _) in FILES.items():
        content = (Path(task.folder) / name).read_bytes()
        files[variant] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"files": files, "frames_sha256": frames_sha256, "timings": dict(record["timings"])}


def _tell(event: Event, num_frames: int, report: Report) -> None:
    match event:
        case Planned():
            report({"event": STAGE, "stage": "text"})
        case TextReady():
            report({"event": STAGE, "stage": "sampling"})
        case Step():
            report({"event": STEP, "stage": "sampling", "step": event.index, "total": event.total})
        case Preview():
            picture = png(strip(chosen(event.frames, 8), 4))
            report({"event": PREVIEW, "step": event.index, "png": base64.b64encode(picture).decode()})
        case Frames():
            report({"event": STEP, "stage": "decoding", "step": event.start + len(event.frames), "total": num_frames})
