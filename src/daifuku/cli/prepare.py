"""daifuku prepare: videos with captions to latents and text features, for `daifuku train`."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daifuku.cli.console import CountBars, say
from daifuku.cli.flags import Device, Dtype, Json, Model, Revision, Variant
from daifuku.errors import InvalidRequest

if TYPE_CHECKING:
    from daifuku.train.prepare.executors import Executor
    from daifuku.train.prepare.run import Planned, Prepared, Settings


Videos = Annotated[
    Path,
    typer.Argument(
        metavar="VIDEOS",
        help="A folder of mp4, mov, webm, mkv, gif, png, jpg, webp and bmp files. Captions stand in NAME.txt beside "
        "each, one a line, or in captions.jsonl. A folder of pictures that has captions is a film.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="Where latents and features go; a stopped run goes on.", show_default=False),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="WxH", help="Of the clips; may be given again. The model's own if not given."),
]
Lengths = Annotated[
    list[int] | None,
    typer.Option("--frames", metavar="N", help="Of the clips, 6k+1; may be given again. The model's own if not given."),
]
Rate = Annotated[int | None, typer.Option("--fps", metavar="FPS", help="Of the clips; the model's own if not given.")]
MaxClips = Annotated[
    int | None,
    typer.Option("--max-clips-per-video", metavar="N", help="Spread evenly over a film; all if not given."),
]
MaxUpscale = Annotated[
    float, typer.Option("--max-upscale", metavar="FACTOR", help="How much a small picture may be enlarged.")
]
MaxBadShare = Annotated[
    float,
    typer.Option("--max-bad-share", metavar="SHARE", help="With a larger share of bad files nothing is encoded."),
]
TextDtype = Annotated[str, typer.Option("--text-dtype", help="Of the text encoder: float32 or bfloat16.")]
TextOn = Annotated[str, typer.Option("--text-on", help="Encode text on the device or on the host.")]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Work on that Ray cluster; local starts one on this machine."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Look at everything, tell what would be made, write nothing.")]


def prepare(
    videos: Videos,
    out: Out,
    model: Model = None,
    revision: Revision = None,
    variant: Variant = None,
    size: Sizes = None,
    frames: Lengths = None,
    fps: Rate = None,
    max_clips: MaxClips = None,
    max_upscale: MaxUpscale = 1.0,
    max_bad_share: MaxBadShare = 0.1,
    device: Device = None,
    dtype: Dtype = None,
    text_dtype: TextDtype = "float32",
    text_on: TextOn = "device",
    ray: Ray = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Turn videos and pictures with captions into what `daifuku train` reads.

    Cuts them into clips of the wanted sizes and lengths, encodes clips and captions once and for all, and draws a
    contact sheet. A run that was stopped, in whatever way, goes on where it was. Files that cannot be used are named.
    """
    from daifuku.train.prepare.executors import OnRay, ThisMachine
    from daifuku.train.prepare.run import check_usable
    from daifuku.train.prepare.settings import settings_for

    settings = settings_for(
        videos, out, model=model, revision=revision, variant=variant, device=device, dtype=dtype,
        text_dtype=text_dtype, text_on=text_on, sizes=[_size(each) for each in size or ()], lengths=frames or (),
        fps=fps, max_clips=max_clips, max_upscale=max_upscale, max_bad_share=max_bad_share,
    )  # fmt: skip
    executor = ThisMachine() if ray is None else OnRay(ray, uses_gpu=settings.encoding.device.startswith("cuda"))
    planned, prepared = _shown(settings, executor, dry_run)
    if prepared is not None:
        _say_end(prepared)
    if as_json:
        print(json.dumps(({} if dry_run else {"path": str(out)}) | _summary(planned), indent=2))
    elif prepared is not None:
        print(out)
    check_usable(planned, max_bad_share)


def _shown(settings: "Settings", executor: "Executor", dry_run: bool) -> tuple["Planned", "Prepared | None"]:
    """Runs a preparation behind bars; returns its plan and, unless it was a dry run, its end."""
    from daifuku.train.prepare.run import Planned, Prepared, Progress
    from daifuku.train.prepare.run import prepare as run

    planned = prepared = None
    with CountBars() as bars:
        for event in run(settings, executor, dry_run=dry_run):
            match event:
                case Progress():
                    bars.show(event.stage, event.done, event.total)
                case Planned():
                    planned = event
                    _say_plan(event, bars.note)
                case Prepared():
                    prepared = event
    assert planned is not None, "a run that does not fail has a plan"
    return planned, prepared


def _size(text: str) -> tuple[int, int]:
    """ "848x480" as (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not cross or not width.isdecimal() or not height.isdecimal() or max(len(width), len(height)) > 5:
        raise InvalidRequest(f"--size {text!r} is no size. Try 848x480.")
    return int(height), int(width)


def _say_plan(planned: "Planned", note: Any) -> None:
    """Every source that is not used, by name, and what will be made of the others."""
    for each in planned.skipped:
        # A name may hold anything, such as codes that rule a terminal.
        note(f"skipped {each.source if each.source.isprintable() else ascii(each.source)}: {each.reason}")
    used = len({clip.source.name for clip in planned.clips})
    note(f"{used} of {planned.num_sources} sources give {len(planned.clips)} clips")
    for (num_frames, size), count in sorted(Counter((clip.num_frames, clip.size) for clip in planned.clips).items()):
        note(f"  {count} of {size[1]}x{size[0]}, {num_frames} frames")


def _say_end(prepared: "Prepared") -> None:
    from daifuku.text.encoder import MAX_TOKENS

    manifest = prepared.manifest
    samples = [sample for shard in manifest.shards for sample in shard.samples]
    if num_full := sum(count >= MAX_TOKENS for sample in samples for count in sample.num_tokens):
        say(f"warning: {num_full} captions fill the {MAX_TOKENS} tokens that a model reads; it reads nothing beyond")
    kept = f"; shards kept from an earlier run: {prepared.num_kept}" if prepared.num_kept else ""
    num_shards = len(manifest.shards)
    say(f"{len(samples)} samples in {num_shards} shard{'' if num_shards == 1 else 's'}{kept}")
    if prepared.sheet is None:
        say("note: no contact sheet was drawn, as Pillow is not installed. Try: pip install 'daifuku[train]'")
    else:
        say(f"look at {prepared.sheet} before you train")


def _summary(planned: "Planned") -> dict[str, Any]:
    buckets = Counter((clip.size[1], clip.size[0], clip.num_frames) for clip in planned.clips)
    return {
        "num_sources": planned.num_sources,
        "num_clips": len(planned.clips),
        "buckets": [
            {"width": width, "height": height, "frames": frames, "num_clips": count}
            for (width, height, frames), count in sorted(buckets.items())
        ],
        "skipped": [asdict(each) for each in planned.skipped],
    }


COMMAND = prepare
