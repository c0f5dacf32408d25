"""What a preparation needs to know, from what a user gives and what the model says about itself."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from daifuku.config import RuntimeConfig
from daifuku.errors import InvalidRequest
from daifuku.media.decode import Limits
from daifuku.request import GenerateRequest
from daifuku.runtime.build import load_parts
from daifuku.train.prepare.encode import Encoding
from daifuku.train.prepare.plan import Cutting
from daifuku.train.prepare.run import Settings


def settings_for(
    videos: Path,
    out: Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    text_dtype: str = "float32",
    text_on: str = "device",
    sizes: Sequence[tuple[int, int]] = (),
    lengths: Sequence[int] = (),
    fps: int | None = None,
    max_clips: int | None = None,
    max_upscale: float = 1.0,
    max_bad_share: float = 0.1,
) -> Settings:
    """Settings of a preparation. What is not given is the model's own: its size (height, width), length and frame rate.

    Reads no weights. Raises InvalidRequest and ModelNotFound.
    """
    parts = load_parts(model, device=device, revision=revision, variant=variant)
    own = GenerateRequest(prompt="").resolved(parts.defaults)
    run = RuntimeConfig(dtype=dtype or str(parts.dtype).removeprefix("torch."), text_dtype=text_dtype, text_on=text_on)
    about: dict[str, Any] = {"name": parts.name, "dtype": run.dtype, "text_dtype": text_dtype, **parts.identities()}
    if not 0 <= max_bad_share <= 1:
        raise InvalidRequest(f"max_bad_share={max_bad_share} is out of range: from 0 to 1 works. Try 0.1.")
    fps = own.fps if fps is None else fps
    return Settings(
        cutting=Cutting(
            sizes=tuple(sizes) or ((own.height, own.width),),
            lengths=tuple(lengths) or (own.num_frames,),
            fps=fps,
            max_clips=max_clips,
            max_upscale=max_upscale,
        ),
        encoding=Encoding(
            videos=Path(os.path.realpath(videos)),
            out=Path(os.path.realpath(out)),
            fps=fps,
            limits=Limits(),
            model=parts.name,
            revision=revision,
            variant=variant,
            device=str(parts.device),
            dtype=str(run.dtype),
            text_dtype=text_dtype,
            text_on=text_on,
            about=about,
            num_threads=torch.get_num_threads(),
        ),
        max_bad_share=max_bad_share,
    )
