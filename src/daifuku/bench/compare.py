"""Kinds of cases: which sides do the work, and what their results are compared with."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from daifuku.bench import dit, loading, text, vae
from daifuku.bench.case import Available, Case, Side, compiles, has
from daifuku.bench.models import SIZES, write_model
from daifuku.model.dit import AsymmDiT
from daifuku.registry import ready
from daifuku.weights.load import as_dtype
from daifuku.weights.names import Layout

DIFFUSERS, DIFFUSERS_COMPILED, DIFFUSERS_TILED = "diffusers", "diffusers compiled", "diffusers tiled"
OURS, OURS_COMPILED = "daifuku", "daifuku compiled"
IN_A_RUN = "daifuku compiled, in a run"
"""With modulations from a table, as in every run of the pipeline."""
OURS_AGAIN = "daifuku, same prompt again"
STREAMING, STREAMED = "daifuku streaming", "daifuku streamed"
"""Frames one by one through the VAE, blocks one by one onto the GPU."""

PEER = has("diffusers")


def _original_is_out_of_reach() -> str:
    return has("genmo")() or "this bench has no way to ask it yet"


ORIGINAL = Side(name="genmo", available=_original_is_out_of_reach)
"""The original program: where it is not measured, that is said."""


def forward(
    name: str, about: str, *, size: str, shape: dit.Shape, dtype: str, rounds: int, device: str = "cpu"
) -> Case:
    """One velocity of the transformer: both programs as they come, and compiled."""
    config = SIZES[size].dit
    assert config is not None, f"the model {size!r} has no transformer"
    near = OURS if device == "cpu" else None
    side = partial(_side, exact=near, shape=shape, dtype=dtype, device=device)
    return Case(
        name=name,
        about=about,
        prepare=partial(write_model, size=size),
        sides=(
            side(DIFFUSERS, dit.diffusers, PEER),
            side(DIFFUSERS_COMPILED, partial(dit.diffusers, compiled=True), compiles(device, "diffusers")),
            side(OURS, dit.ours),
            side(OURS_COMPILED, partial(dit.ours, compiled=True), compiles(device)),
            side(IN_A_RUN, partial(dit.ours, compiled=True, in_a_run=True), compiles(device)),
            ORIGINAL,
        ),
        pairs=((OURS_COMPILED, DIFFUSERS_COMPILED), (IN_A_RUN, DIFFUSERS_COMPILED)),
        exact={OURS: partial(dit.exact, shape=shape)} if near else {},
        shapes={"latent": [1, 12, *shape], "text_tokens": dit.NUM_TEXT, "valid_text_tokens": dit.NUM_VALID},
        flops=dit.forward_flops(config, shape),
        dtype=dtype,
        device=device,
        rounds=rounds,
    )


def guided_run(
    name: str, about: str, *, size: str, shape: dit.Shape, dtype: str, num_steps: int, rounds: int, device: str = "cpu"
) -> Case:
    """Several steps with guidance, from noise to latent."""
    side = partial(_side, shape=shape, dtype=dtype, device=device, num_steps=num_steps)
    streamed = [side(STREAMED, partial(dit.ours_guided, streamed=True))] if device == "cuda" else []
    return Case(
        name=name,
        about=about,
        prepare=partial(write_model, size=size),
        sides=(side(DIFFUSERS, dit.diffusers_guided, PEER), side(OURS, dit.ours_guided), *streamed),
        pairs=((STREAMED, OURS),),
        shapes={"latent": [1, 12, *shape], "steps": num_steps},
        dtype=dtype,
        device=device,
        rounds=rounds,
    )


def decode(
    name: str,
    about: str,
    *,
    size: str,
    shape: dit.Shape,
    rounds: int,
    dtype: str = "float32",
    device: str = "cpu",
    exact: bool = False,
    limit_s: int = 120,
) -> Case:
    """Latents to frames: whole, and one latent frame at a time."""
    side = partial(_side, shape=shape, dtype=dtype, device=device)
    tiled = [side(DIFFUSERS_TILED, partial(vae.diffusers_decode, tiled=True), PEER)] if device == "cuda" else []
    exacts = {DIFFUSERS: partial(vae.exact_diffusers_decode, shape=shape), OURS: partial(vae.exact_decode, shape=shape)}
    theirs, ours = (DIFFUSERS, OURS) if exact else (None, None)
    return Case(
        name=name,
        about=about,
        prepare=partial(write_model, size=size),
        sides=(
            side(DIFFUSERS, vae.diffusers_decode, PEER, exact=theirs),
            *tiled,
            side(OURS, vae.ours_decode, exact=ours),
            side(STREAMING, vae.ours_decode_streaming, exact=ours),
            ORIGINAL,
        ),
        pairs=((STREAMING, OURS),),
        exact=exacts if exact else {},
        shapes={"latent": [1, 12, *shape]},
        dtype=dtype,
        device=device,
        rounds=rounds,
        limit_s=limit_s,
    )


def encode(name: str, about: str, *, size: str, shape: dit.Shape, rounds: int, exact: bool = False) -> Case:
    """Frames to latents: whole, and as they arrive."""
    side = partial(_side, exact=OURS if exact else None, shape=shape, dtype="float32")
    return Case(
        name=name,
        about=about,
        prepare=partial(write_model, size=size),
        sides=(
            side(DIFFUSERS, vae.diffusers_encode, PEER),
            side(OURS, vae.ours_encode),
            side(STREAMING, vae.ours_encode_streaming),
        ),
        pairs=((STREAMING, OURS),),
        exact={OURS: partial(vae.exact_encode, shape=shape)} if exact else {},
        shapes={"latent": [1, 12, *shape]},
        rounds=rounds,
    )


def encode_text(name: str, about: str, *, size: str, dtype: str, rounds: int, device: str = "cpu") -> Case:
    """A prompt to features."""
    side = partial(_side, dtype=dtype, device=device)
    return Case(
        name=name,
        about=about,
        prepare=partial(write_model, size=size),
        sides=(side(DIFFUSERS, text.diffusers, PEER), side(OURS, text.ours)),
        dtype=dtype,
        device=device,
        rounds=rounds,
    )


def load(
    name: str, about: str, *, size: str, dtype: str, rounds: int, layout: Layout = "diffusers", device: str = "cpu"
) -> Case:
    """A transformer from its file, stored in bfloat16."""
    side = partial(_side, fresh=True, dtype=dtype, device=device)
    theirs = [side(DIFFUSERS, loading.diffusers, PEER)] if layout == "diffusers" else []
    return Case(
        name=name,
        about=about,
        prepare=partial(write_model, size=size, layout=layout),
        sides=(side("safetensors", loading.safetensors), *theirs, side(OURS, loading.ours)),
        shapes={"stored": "bfloat16", "layout": layout, "weights_mib": _dit_mib(size, dtype)},
        dtype=dtype,
        device=device,
        rounds=rounds,
    )


def commands(
    name: str,
    about: str,
    *sides: tuple[str, Callable[[Path], Sequence[str]], Available],
    prepare: Callable[[Path], None] | None = None,
    rounds: int,
    warm: int = 1,
    device: str = "cpu",
    limit_s: int = 120,
) -> Case:
    """Command lines, from start to end."""
    return Case(
        name=name,
        about=about,
        prepare=prepare,
        sides=tuple(Side(name=name, command=command, available=available) for name, command, available in sides),
        rounds=rounds,
        warm=warm,
        device=device,
        limit_s=limit_s,
    )


def _side(
    name: str,
    build: Callable[..., Any],
    available: Available = ready,
    *,
    exact: str | None = None,
    fresh: bool = False,
    **settings: Any,
) -> Side:
    return Side(name=name, build=partial(build, **settings), available=available, exact=exact, fresh=fresh)


def _dit_mib(size: str, dtype: str) -> float:
    config = SIZES[size].dit
    assert config is not None, f"the model {size!r} has no transformer"
    with torch.device("meta"):
        numbers = sum(parameter.numel() for parameter in AsymmDiT(config).parameters())
    return round(numbers * as_dtype(dtype).itemsize / 2**20, 1)
