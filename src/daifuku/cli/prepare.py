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
    from daifuku.train.prepare.run import Planned, Prepared


def prepare(
    videos: Annotated[
        Path,
        typer.Argument(
            metavar="VIDEOS",
            help="A folder of mp4, mov, webm, mkv, gif, png, jpg, webp and bmp files. Captions stand in NAME.txt "
            "beside each, one a line, or in captions.jsonl. A folder of pictures that has captions is a clip.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Where latents and features go; it goes on there.", show_default=False),
    ],
    model: Model = None,
    revision: Revision = None,
    variant: Variant = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="WxH", help="Of the clips; may be given again. The model's own if not given."),
    ] = None,
    frames: Annotated[
        list[int] | None,
        typer.Option("--frames", metavar="N", help="Of the clips, 6k+1; may be given again. The model's own."),
    ] = None,
    fps: Annotated[
        int | None, typer.Option("--fps", metavar="FPS", help="Frames per second of the clips; the model's own.")
    ] = None,
    max_clips: Annotated[
        int | None,
        typer.Option("--max-clips-per-video", metavar="N", help="Of one video, spread evenly; all if not given."),
    ] = None,
    max_upscale: Annotated[
        float, typer.Option("--max-upscale", metavar="FACTOR", help="How much a small picture may be enlarged.")
    ] = 1.0,
    max_bad_share: Annotated[
        float,
        typer.Option("--max-bad-share", min=0, max=1, help="With a larger share of bad files nothing is encoded."),
    ] = 0.1,
    device: Device = None,
    dtype: Dtype = None,
    text_dtype: Annotated[str, typer.Option("--text-dtype", help="Of the text encoder: float32 or bfloat16.")] = (
        "float32"
    ),
    text_on: Annotated[str, typer.Option("--text-on", help="Encode text on the device or on the host.")] = "device",
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Work on that Ray cluster; local starts one here. This process if not given.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at everything, tell what would be made, write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn videos and pictures with captions into what `daifuku train` reads.

    Cuts them into clips of the wanted sizes and lengths, encodes clips and captions once and for all, and draws a
    contact sheet. A run that was stopped, in whatever way, goes on where it was. Files that cannot be used are named.
    """
    from daifuku.train.prepare.executors import OnRay, ThisMachine
    from daifuku.train.prepare.run import Planned, Prepared, Progress, check_usable
    from daifuku.train.prepare.run import prepare as run
    from daifuku.train.prepare.settings import settings_for

    settings = settings_for(
        videos, out, model=model, revision=revision, variant=variant, device=device, dtype=dtype,
        text_dtype=text_dtype, text_on=text_on, sizes=[_size(each) for each in size or ()], lengths=frames or (),
        fps=fps, max_clips=max_clips, max_upscale=max_upscale, max_bad_share=max_bad_share,
    )  # fmt: skip
    executor = ThisMachine() if ray is None else OnRay(ray, uses_gpu=settings.encoding.device.startswith("cuda"))
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
    if prepared is None:
        if as_json:
            print(json.dumps(_summary(planned), indent=2))
        check_usable(planned, max_bad_share)
        return
    _say_end(prepared)
    print(json.dumps({"path": str(out), **_summary(planned)}, indent=2) if as_json else out)


def _size(text: str) -> tuple[int, int]:
    """ "848x480" as (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not cross or not width.isdecimal() or not height.isdecimal() or max(len(width), len(height)) > 5:
        raise InvalidRequest(f"--size {text!r} is no size. Try 848x480.")
    return int(height), int(width)


def _say_plan(planned: "Planned", note: Any) -> None:
    """Every source that is not used, by name, and what will be made of the others."""
    for each in planned.skipped:
        note(f"skipped {each.source}: {each.reason}")
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
    kept = f", {prepared.num_kept} of them from an earlier run" if prepared.num_kept else ""
    say(f"{len(samples)} samples in {len(manifest.shards)} shards{kept}")
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
