"""A whole clip, prompt to file, as users of each side would make it: in a new process, or in one that has made one."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daifuku.bench.case import Action
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.weights.locate import locate

PROMPT = "a small red ball bouncing on a gray background"
SEED = 7

DIFFUSERS = """
import torch
from diffusers import MochiPipeline
from diffusers.utils import encode_video

pipe = MochiPipeline.from_pretrained({folder!r}, torch_dtype=torch.float32)

def make():
    frames = pipe(
        {prompt!r},
        height={height},
        width={width},
        num_frames={num_frames},
        num_inference_steps={num_inference_steps},
        guidance_scale={guidance_scale},
        generator=torch.Generator().manual_seed({seed}),
        output_type="np",
    ).frames[0]
    encode_video(frames, fps={fps}, output_path="diffusers.mp4")
"""
"""The built-in model's own sizes and steps are put in, since diffusers does not read its generation_config.json."""

OURS = f"""
import daifuku
from daifuku.config import RuntimeConfig

pipe = daifuku.load(runtime=RuntimeConfig(remember_text=False))

def make():
    pipe({PROMPT!r}, seed={SEED}).save("ours.mp4")
"""
"""Both programs encode the prompt anew each time."""

UNDER_A_CAP = """
import torch

card = torch.cuda.get_device_properties(0)
torch.cuda.set_per_process_memory_fraction({gib} * 2**30 / card.total_memory)
settings = dict(height=480, width=848, num_frames=85, num_inference_steps=2)
"""

OURS_FULL_SIZE = """
import daifuku

daifuku.load(".", device="cuda", memory="{gib}GiB")("{prompt}", seed={seed}, **settings).save("ours.mp4")
"""

DIFFUSERS_FULL_SIZE = """
from diffusers import MochiPipeline
from diffusers.utils import encode_video

pipe = MochiPipeline.from_pretrained(".", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()
pipe.vae.enable_tiling()
frames = pipe("{prompt}", generator=torch.Generator().manual_seed({seed}), output_type="np", **settings).frames[0]
encode_video(frames, fps=30, output_path="diffusers.mp4")
"""
"""With the two savings that the manual of diffusers recommends for Mochi."""


def ours(folder: Path, *, remember_text: bool = False) -> Sequence[str]:
    """The command line. Remembering, all rounds but the first ask for a prompt whose features are known."""
    flag = "--remember-text" if remember_text else "--no-remember-text"
    return [sys.executable, "-m", "daifuku", "generate", PROMPT, "--seed", str(SEED), flag, "--output", "ours.mp4"]


def diffusers(folder: Path) -> Sequence[str]:
    """A script, since diffusers has no command."""
    return [sys.executable, "-c", _diffusers() + "\nmake()\n"]


def ours_again(folder: Path) -> Action:
    """Another clip by a program that holds the model."""
    return _again(folder, OURS)


def diffusers_again(folder: Path) -> Action:
    """Another clip by a program that holds the model."""
    return _again(folder, _diffusers())


def ours_capped(gib: int, folder: Path) -> Sequence[str]:
    """The full-size model on a card of so much memory, as far as PyTorch keeps to it."""
    return _capped(OURS_FULL_SIZE, gib)


def diffusers_capped(gib: int, folder: Path) -> Sequence[str]:
    """The same."""
    return _capped(DIFFUSERS_FULL_SIZE, gib)


def _diffusers() -> str:
    return DIFFUSERS.format(**locate(BUILT_IN_FOLDER).defaults, folder=str(BUILT_IN_FOLDER), prompt=PROMPT, seed=SEED)


def _capped(script: str, gib: int) -> Sequence[str]:
    return [sys.executable, "-c", (UNDER_A_CAP + script).format(gib=gib, prompt=PROMPT, seed=SEED)]


def _again(folder: Path, script: str) -> Action:
    """Runs a script that defines `make`, here, since this process belongs to the side."""
    os.chdir(folder)
    names: dict[str, Any] = {}
    exec(script, names)
    return Action(run=names["make"])
