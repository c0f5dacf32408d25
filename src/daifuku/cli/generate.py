"""daifuku generate: prompts in, video files out."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daifuku.cli.console import RunProgress, say
from daifuku.cli.flags import Device, Json, Memory, Model, Output, Revision, Variant, with_request_flags
from daifuku.cli.jobs import OUTPUTS, Job, ending_of, job_from_flags, jobs_from_sweep, named, repeated
from daifuku.cli.plan import headline
from daifuku.cli.preview import PreviewPicture
from daifuku.cli.replay import (
    LATENTS_ENDING,
    RECORD_KEY,
    Record,
    check_same_loras,
    check_same_model,
    differences,
    read_record,
)
from daifuku.cli.resume import KeptSteps, Unfinished, read_unfinished
from daifuku.config import RuntimeConfig
from daifuku.errors import InvalidRequest
from daifuku.events import Done, Frames, Notice, Planned
from daifuku.request import ResolvedRequest

if TYPE_CHECKING:
    from daifuku.pipeline import Pipeline


Count = Annotated[
    int, typer.Option("--count", min=1, metavar="N", help="Make N clips, with the seeds SEED, SEED + 1 and so on.")
]
Sweep = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        metavar="FILE.jsonl",
        help='Make a clip for each line, a JSON object of request fields and perhaps "output". The flags hold for '
        "every line that does not say otherwise.",
    ),
]
Replay = Annotated[
    str | None,
    typer.Option("--replay", metavar="CLIP", help="Make a clip again: bit for bit the same on the same machine."),
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="CLIP.resume.safetensors",
        help="Go on with a run that was stopped or killed, from its last step: bit for bit as if nothing had happened.",
    ),
]
PreviewEvery = Annotated[
    int | None,
    typer.Option(
        "--preview",
        min=1,
        metavar="N",
        help="After every N steps, show in CLIP.preview.png what the clip is going to look like.",
    ),
]
SaveLatents = Annotated[
    bool, typer.Option("--save-latents", help="Also write CLIP.latents.safetensors, which `daifuku decode` takes.")
]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip to be made: everything about it is decided."""

    request: ResolvedRequest
    output: str
    unfinished: Unfinished | None = None
    """The run to go on with."""


def generate(
    values: dict[str, Any],
    runtime: RuntimeConfig,
    output: Output = None,
    count: Count = 1,
    sweep: Sweep = None,
    replay: Replay = None,
    resume: Resume = None,
    save_latents: SaveLatents = False,
    preview: PreviewEvery = None,
    model: Model = None,
    revision: Revision = None,
    variant: Variant = None,
    device: Device = None,
    vram: Memory = None,
    as_json: Json = False,
) -> None:
    """Make a video from a prompt.

    A clip without a name goes to outputs/, named after its prompt and seed. The defaults below are those of the
    published Mochi 1; a model may bring its own, which `daifuku info` shows. A run that takes long keeps its last step
    in CLIP.resume.safetensors until the clip is done.
    """
    fixed = "--replay" if replay is not None else "--resume"
    if (replay or resume) is not None and (values or sweep is not None or count != 1 or (replay and resume)):
        raise InvalidRequest(f"{fixed} makes the very same clip: leave out the prompt and every flag that changes it.")
    unfinished = None if resume is None else read_unfinished(resume)
    record = unfinished.record if unfinished else None if replay is None else read_record(replay)
    if record is not None:
        jobs = [Job(request=record.request, output=output or (unfinished.output if unfinished else None))]
    elif sweep is not None:
        jobs = jobs_from_sweep(sweep, values, output)
    else:
        jobs = [job_from_flags(values, output)]
    _check_outputs(jobs)
    pipe = _load(record, runtime, model=model, revision=revision, variant=variant, device=device, vram=vram)
    clips = _planned(pipe, jobs, count, ".mp4" if replay is None else ending_of(replay))
    made: list[dict[str, Any]] = []
    try:
        for clip in clips:
            clip = replace(clip, unfinished=unfinished)
            made.append(_make(pipe, clip, save_latents=save_latents, preview_every=preview or 0))
            if record is not None:
                for change in differences(record.found, made[-1]):
                    say(f"warning: {change}, so the last bits of the clip may differ")
            if not as_json:
                print(made[-1]["path"], flush=True)
    finally:
        # What is finished counts, even if a later clip fails.
        if as_json and made:
            print(json.dumps({"clips": made}, indent=2), flush=True)


def _check_outputs(jobs: Sequence[Job]) -> None:
    from daifuku.media.formats import check_output

    for output in {job.output for job in jobs}:
        check_output(f"{OUTPUTS}/clip.mp4" if output is None else output)


def _load(
    record: Record | None,
    runtime: RuntimeConfig,
    *,
    model: str | None,
    revision: str | None,
    variant: str | None,
    device: str | None,
    vram: str | None,
) -> "Pipeline":
    """The model that was asked for; for a replay the recorded one, running as it ran then."""
    from daifuku.pipeline import load

    if record is None:
        return load(model, revision=revision, variant=variant, device=device, runtime=runtime, memory=vram)
    from daifuku.runtime.planner import filled

    if model is None:
        model, revision, variant = record.model.name, record.model.revision, record.model.variant
    runtime, device = filled(runtime, record.runtime), device or record.model.device
    pipe = load(model, revision=revision, variant=variant, device=device, runtime=runtime, memory=vram)
    check_same_model(record, pipe.parts.info)
    check_same_loras(record, pipe.loras(pipe.resolve(record.request)))
    return pipe


def _planned(pipe: "Pipeline", jobs: Sequence[Job], count: int, ending: str) -> list[Clip]:
    """Every clip with every parameter and its name. Raises InvalidRequest; no weight has been read yet."""
    wanted = [(request, job.output) for job in jobs for request in repeated(pipe.resolve(job.request), count)]
    sharing = Counter(output for _, output in wanted)
    return [
        Clip(request=request, output=named(request, output, alone=sharing[output] == 1, ending=ending))
        for request, output in wanted
    ]


def _make(pipe: "Pipeline", clip: Clip, *, save_latents: bool, preview_every: int) -> dict[str, Any]:
    """Make one clip; returns its record, with its path and that of its latents."""
    from safetensors.torch import save

    from daifuku.media.write import VideoWriter
    from daifuku.video import provenance

    request, start = clip.request, clip.unfinished and clip.unfinished.start
    say(
        f"{shorten(request.prompt, 60, placeholder='...')!r}: {request.width}x{request.height}, "
        f"{request.num_frames} frames, {request.num_inference_steps} steps, seed {request.seed}"
    )
    with (
        VideoWriter(clip.output, fps=request.fps, size=(request.height, request.width)) as writer,
        RunProgress() as progress,
        KeptSteps(clip.output, clip.unfinished) as kept,
        PreviewPicture(clip.output) as picture,
        closing(pipe.run(request, start=start, preview_every=preview_every)) as events,
    ):
        for event in events:
            progress.show(event, request.num_frames)
            kept.take(event)
            picture.show(event)
            if isinstance(event, Planned) and (line := headline(event)) is not None:
                progress.note(line)
            elif isinstance(event, Notice):
                progress.note(event.text)
            elif isinstance(event, Frames):
                writer.write(event.frames)
            elif isinstance(event, Done):
                writer.metadata.update(provenance(event.video))
                if save_latents:
                    about = {RECORD_KEY: json.dumps(writer.metadata)}
                    writer.attach(LATENTS_ENDING, save({"latents": event.video.latents.contiguous()}, about))
    kept.discard()
    if writer.path != Path(clip.output):
        say(f"{clip.output} exists, so this clip is {writer.path}")
    latents = str(writer.beside(LATENTS_ENDING)) if save_latents else None
    return {"path": str(writer.path), "latents": latents, **writer.metadata}


COMMAND = with_request_flags(generate)
