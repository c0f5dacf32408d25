"""daifuku generate: prompts in, video files out."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daifuku.cli.console import RunProgress, say
from daifuku.cli.flags import Device, Dtype, Json, Model, Output, Revision, Variant, with_request_flags
from daifuku.cli.jobs import OUTPUTS, Job, job_from_flags, jobs_from_sweep, named, repeated
from daifuku.cli.replay import RECORD_KEY, Record, check_same_model, differences, read_record
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
    record = None
    if replay is not None:
        if values or sweep is not None or count != 1:
            raise InvalidRequest("--replay makes the very same clip: leave out the prompt and every flag that changes it.")
        record = read_record(replay)
        ...


COMMAND = with_request_flags(generate)
