"""daifuku generate: prompts in, video files out."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daifuku.cli.console import RunProgress, say
from daifuku.cli.flags import Device, Dtype, Json, Model, Output, Revision, Variant, with_request_flags
from daifuku.cli.jobs import OUTPUTS, Job, ending_of, job_from_flags, jobs_from_sweep, named, repeated
from daifuku.cli.replay import LATENTS_ENDING, RECORD_KEY, Record, check_same_model, differences, read_record
from daifuku.errors import InvalidRequest
from daifuku.events import Done, Frames
from daifuku.request import ResolvedRequest

if TYPE_CHECKING:
    from daifuku.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip to be made: everything about it is decided."""

    request: ResolvedRequest
    output: str


def generate(
    values: dict[str, Any],
    output: Output = None,
    count: Annotated[
        int, typer.Option("--count", min=1, metavar="N", help="Make N clips, with the seeds SEED, SEED + 1 and so on.")
    ] = 1,
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            metavar="FILE.jsonl",
            help='Make a clip for each line, a JSON object of request fields and perhaps "output". The flags hold for '
            "every line that does not say otherwise.",
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option("--replay", metavar="CLIP", help="Make a clip again: bit for bit the same on the same machine."),
    ] = None,
    save_latents: Annotated[
        bool,
        typer.Option("--save-latents", help="Also write CLIP.latents.safetensors, which `daifuku decode` takes."),
    ] = False,
    model: Model = None,
    revision: Revision = None,
    variant: Variant = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Make a video from a prompt.

    A clip without a name goes to outputs/, named after its prompt and seed. The defaults below are those of the
    published Mochi 1; a model may bring its own, which `daifuku info` shows.
    """
    if replay is not None and (values or sweep is not None or count != 1):
        raise InvalidRequest("--replay makes the very same clip: leave out the prompt and every flag that changes it.")
    record = None if replay is None else read_record(replay)
    if record is not None:
        jobs = [Job(request=record.request, output=output)]
    elif sweep is not None:
        jobs = jobs_from_sweep(sweep, values, output)
    else:
        jobs = [job_from_flags(values, output)]
    _check_outputs(jobs)
    pipe = _load(record, model=model, revision=revision, variant=variant, device=device, dtype=dtype)
    clips = _planned(pipe, jobs, count, ".mp4" if replay is None else ending_of(replay))
    made: list[dict[str, Any]] = []
    try:
        for clip in clips:
            made.append(_make(pipe, clip, save_latents=save_latents))
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
    *,
    model: str | None,
    revision: str | None,
    variant: str | None,
    device: str | None,
    dtype: str | None,
) -> "Pipeline":
    """The model that was asked for; for a replay the recorded one, running as it ran then."""
    from daifuku.pipeline import load

    if record is None:
        return load(model, revision=revision, variant=variant, device=device, dtype=dtype)
    device, dtype = device or record.model.device, dtype or record.model.dtype
    if model is None:
        model, revision, variant = record.model.name, record.model.revision, record.model.variant
    pipe = load(model, revision=revision, variant=variant, device=device, dtype=dtype)
    check_same_model(record, pipe.parts.info)
    return pipe


def _planned(pipe: "Pipeline", jobs: Sequence[Job], count: int, ending: str) -> list[Clip]:
    """Every clip with every parameter and its name. Raises InvalidRequest; no weight has been read yet."""
    wanted = [(request, job.output) for job in jobs for request in repeated(pipe.resolve(job.request), count)]
    sharing = Counter(output for _, output in wanted)
    return [
        Clip(request=request, output=named(request, output, alone=sharing[output] == 1, ending=ending))
        for request, output in wanted
    ]


def _make(pipe: "Pipeline", clip: Clip, *, save_latents: bool) -> dict[str, Any]:
    """Make one clip; returns its record, with its path and that of its latents."""
    from safetensors.torch import save

    from daifuku.media.write import VideoWriter
    from daifuku.pipeline import provenance

    request = clip.request
    say(
        f"{shorten(request.prompt, 60, placeholder='...')!r}: {request.width}x{request.height}, "
        f"{request.num_frames} frames, {request.num_inference_steps} steps, seed {request.seed}"
    )
    with (
        VideoWriter(clip.output, fps=request.fps, size=(request.height, request.width)) as writer,
        RunProgress() as progress,
        closing(pipe.run(request)) as events,
    ):
        for event in events:
            progress.show(event, request.num_frames)
            if isinstance(event, Frames):
                writer.write(event.frames)
            elif isinstance(event, Done):
                writer.metadata.update(provenance(event.video))
                if save_latents:
                    about = {RECORD_KEY: json.dumps(writer.metadata)}
                    writer.attach(LATENTS_ENDING, save({"latents": event.video.latents.contiguous()}, about))
    if writer.path != Path(clip.output):
        say(f"{clip.output} exists, so this clip is {writer.path}")
    latents = str(writer.beside(LATENTS_ENDING)) if save_latents else None
    return {"path": str(writer.path), "latents": latents, **writer.metadata}


COMMAND = with_request_flags(generate)
