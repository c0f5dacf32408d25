"""All cases, in the order in which they run: those of the CPU for two cores, those of the GPU for an H200."""

from functools import partial

from daifuku.bench import clip, startup
from daifuku.bench.case import Case, Side, has
from daifuku.bench.compare import (
    DIFFUSERS,
    OURS,
    OURS_AGAIN,
    PEER,
    commands,
    decode,
    encode,
    encode_text,
    forward,
    guided_run,
    load,
)
from daifuku.bench.models import write_model
from daifuku.registry import ready

WIDE, NARROW = (7, 30, 52), (3, 16, 16)
"""Latents of 2,730 and of 192 video tokens."""

CAPS_GIB = (24, 16, 12, 8)


def _frames(count: int) -> tuple[int, int, int]:
    """The latent of so many frames at 480 by 848."""
    return (count - 1) // 6 + 1, 60, 106


CPU = (
    forward("dit_fp32", "DiT, 2,730 tokens", size="quarter dit", shape=WIDE, dtype="float32", rounds=10),
    forward("dit_bf16", "DiT, 2,730 tokens", size="quarter dit", shape=WIDE, dtype="bfloat16", rounds=10),
    forward("dit_192_fp32", "DiT, 192 tokens", size="quarter dit", shape=NARROW, dtype="float32", rounds=30),
    forward("dit_192_bf16", "DiT, 192 tokens", size="quarter dit", shape=NARROW, dtype="bfloat16", rounds=30),
    decode("vae_decode", "decode 19 frames, 96x160", size="half vae", shape=(4, 12, 20), rounds=10, exact=True),
    encode("vae_encode", "encode 19 frames, 96x160", size="half vae", shape=(4, 12, 20), rounds=10, exact=True),
    decode("vae_stream_7", "decode 37 frames", size="half vae", shape=(7, 12, 20), rounds=5),
    decode("vae_stream_19", "decode 109 frames", size="half vae", shape=(19, 12, 20), rounds=3),
    decode("vae_stream_37", "decode 217 frames", size="half vae", shape=(37, 12, 20), rounds=2),
    encode("vae_stream_encode_7", "encode 37 frames", size="half vae", shape=(7, 12, 20), rounds=5),
    encode("vae_stream_encode_19", "encode 109 frames", size="half vae", shape=(19, 12, 20), rounds=3),
    encode("vae_stream_encode_37", "encode 217 frames", size="half vae", shape=(37, 12, 20), rounds=2),
    commands(
        "clip",
        "the built-in clip, from the command to the file",
        (DIFFUSERS, clip.diffusers, PEER),
        (OURS, clip.ours, ready),
        (OURS_AGAIN, partial(clip.ours, remember_text=True), ready),
        rounds=5,
    ),
    Case(
        name="clip_warm",
        about="the built-in clip, by a program that holds the model",
        sides=(
            Side(name=DIFFUSERS, build=clip.diffusers_again, available=PEER),
            Side(name=OURS, build=clip.ours_again),
        ),
        rounds=7,
    ),
    load("load_original_bf16", "1 GB", size="gigabyte dit", layout="original", dtype="bfloat16", rounds=7),
    load("load_original_fp32", "1 GB, widened", size="gigabyte dit", layout="original", dtype="float32", rounds=7),
    load("load_diffusers_bf16", "1 GB", size="gigabyte dit", dtype="bfloat16", rounds=7),
    load("load_diffusers_fp32", "1 GB, widened", size="gigabyte dit", dtype="float32", rounds=7),
    commands(
        "startup",
        "until a program can begin",
        ("from diffusers import MochiPipeline", partial(startup.python, "from diffusers import MochiPipeline"), PEER),
        ("import diffusers", partial(startup.python, "import diffusers"), PEER),
        (
            "from transformers import T5EncoderModel",
            partial(startup.python, "from transformers import T5EncoderModel"),
            has("transformers"),
        ),
        ("from daifuku.pipeline import load", partial(startup.python, "from daifuku.pipeline import load"), ready),
        ("import daifuku", partial(startup.python, "import daifuku"), ready),
        ("daifuku --help", startup.help_page, ready),
        ("import torch", partial(startup.python, "import torch"), ready),
        rounds=7,
    ),
)

_full_forward = partial(forward, size="full", dtype="bfloat16", device="cuda", rounds=5)

GPU = (
    _full_forward("gpu_dit_19", "DiT, 19 frames", shape=_frames(19)),
    _full_forward("gpu_dit_79", "DiT, 79 frames", shape=_frames(79)),
    _full_forward("gpu_dit_163", "DiT, 163 frames", shape=_frames(163)),
    guided_run(
        "gpu_guided_163",
        "8 guided steps, 163 frames",
        size="full",
        shape=_frames(163),
        dtype="bfloat16",
        num_steps=8,
        rounds=1,
        device="cuda",
    ),
    decode(
        "gpu_vae_163", "decode 163 frames", size="full", shape=_frames(163), dtype="bfloat16", device="cuda", rounds=3
    ),
    encode_text("gpu_text_fp32", "T5", size="full", dtype="float32", device="cuda", rounds=5),
    encode_text("gpu_text_bf16", "T5", size="full", dtype="bfloat16", device="cuda", rounds=5),
    load("gpu_load", "20 GB onto the GPU", size="full", dtype="bfloat16", device="cuda", rounds=3),
    commands(
        "gpu_caps",
        "85 frames in 2 steps, prompt to file, with little memory",
        *((f"{DIFFUSERS} {gib} GiB", partial(clip.diffusers_capped, gib), PEER) for gib in CAPS_GIB),
        *((f"{OURS} {gib} GiB", partial(clip.ours_capped, gib), ready) for gib in CAPS_GIB),
        prepare=partial(write_model, size="full"),
        rounds=1,
        warm=0,
        device="cuda",
        limit_s=600,
    ),
)

CASES = CPU + GPU
