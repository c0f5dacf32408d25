"""daifuku decode: latents in, a video file out, without sampling."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daifuku.cli.console import RunProgress, say
from daifuku.cli.flags import Device, Dtype, Json, Model, Output, Revision, Variant
from daifuku.cli.replay import RECORD_KEY
from daifuku.config import MOCHI_STATS, PATCH
from daifuku.errors import InvalidRequest
from daifuku.request import GenerateRequest, LatentShape

if TYPE_CHECKING:
    from torch import Tensor

    from daifuku.runtime.build import ModelInfo

NUM_CHANNELS = len(MOCHI_STATS.mean)


def decode(
    latents: Annotated[
        str, typer.Argument(metavar="LATENTS", help="What --save-latents wrote: CLIP.latents.safetensors.")
    ],
    output: Output = None,
    fps: Annotated[
        int | None,
        typer.Option("--fps", min=1, max=120, metavar="FPS", help="Frames per second; if not given as recorded."),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    variant: Variant = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Decode saved latents again, without sampling.

    The model, the frame rate and the name are those of the clip that the latents belong to, unless they are given.
    """
    from daifuku.media.formats import check_output
    from daifuku.media.write import VideoWriter
    from daifuku.pipeline import load

    if output is None:
        output = latents.removesuffix(".safetensors").removesuffix(".latents") + ".mp4"
    check_output(output)
    latent, record = _read(latents)
    recorded = record.get("model", {}) if model is None else {}
    if recorded:
        model, revision, variant = (recorded.get(name) for name in ("name", "revision", "variant"))
    pipe = load(model, revision=revision, variant=variant, device=device, dtype=dtype)
    shape = LatentShape(frames=latent.shape[1], height=latent.shape[2], width=latent.shape[3])
    if fps is None:
        fps = pipe.resolve(GenerateRequest(prompt="", fps=record.get("request", {}).get("fps"))).fps
    metadata = _record_of_clip(record, pipe.parts.info, latents, fps)
    size = shape.pixel_height, shape.pixel_width
    with VideoWriter(output, fps=fps, size=size, metadata=metadata) as writer, RunProgress(sampling=False) as progress:
        for chunk in pipe.decode(latent):
            progress.show(chunk, shape.num_frames)
            writer.write(chunk.frames)
    if writer.path != Path(output):
        say(f"{output} exists, so this clip is {writer.path}")
    path = str(writer.path)
    print(json.dumps({"path": path, **metadata}, indent=2) if as_json else path)


def _read(file: str) -> tuple["Tensor", dict[str, Any]]:
    """The latents and the record of their clip, empty where there is none. Raises InvalidRequest."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            if "latents" not in set(opened.keys()):
                raise InvalidRequest(
                    f'{file} holds no tensor "latents". `daifuku generate --save-latents` writes such files.'
                )
            latents, metadata = opened.get_tensor("latents"), opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InvalidRequest(f"the latents {file} cannot be read: {reason}.") from error
    if latents.ndim != 4 or len(latents) != NUM_CHANNELS or not latents.is_floating_point() or 0 in latents.shape:
        raise InvalidRequest(
            f"{file} holds {latents.dtype} {list(latents.shape)}; "
            f"latents are floats [{NUM_CHANNELS}, frames, height, width]."
        )
    if any(side % PATCH for side in latents.shape[2:]):
        raise InvalidRequest(f"{file} holds latents {list(latents.shape)}: height and width must be even.")
    record = json.loads(metadata.get(RECORD_KEY, "{}"))
    complete = all(isinstance(record.get(name), dict) for name in ("request", "model"))
    return latents.float(), record if complete else {}


def _record_of_clip(record: dict[str, Any], info: "ModelInfo", file: str, fps: int) -> dict[str, Any]:
    """The sampled clip's record, where it still holds: not if another model decodes."""
    if not record:
        return {"latents": file, "fps": fps, "decoded_by": asdict(info)}
    record = {**record, "request": {**record["request"], "fps": fps}}
    return record if record["model"].get("identity") == info.identity else record | {"decoded_by": asdict(info)}


COMMAND = decode
