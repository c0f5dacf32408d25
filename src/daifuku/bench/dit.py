"""One velocity of the transformer, and a guided run of a few steps."""

from collections import deque
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from daifuku.bench.case import Action
from daifuku.bench.exact import in_float64
from daifuku.bench.models import their_dit, their_pipeline
from daifuku.config import PATCH, DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.compile import compile_blocks
from daifuku.runtime.modulation import tabulated
from daifuku.runtime.residency import pinned, stream_blocks
from daifuku.sample.guidance import Caption, conditioned, guided, scale_at
from daifuku.sample.schedule import linear_quadratic
from daifuku.sample.solvers.euler import euler
from daifuku.weights.load import as_dtype, load_dit

Shape = tuple[int, int, int]
"""Frames, height and width of a latent."""

NUM_TEXT, NUM_VALID = 256, 40
"""Text tokens with their padding, which diffusers computes and masks, and those of the prompt."""

SIGMA = 0.75

GUIDANCE, THRESHOLD_NOISE = 4.5, 0.025


class Inputs(NamedTuple):
    """What a transformer is asked about. All sides draw the same."""

    latent: Tensor
    text: Tensor
    mask: Tensor


def ours(
    folder: Path, *, shape: Shape, dtype: str, device: str = "cpu", compiled: bool = False, in_a_run: bool = False
) -> Action:
    """One forward pass. Padding is cut off beforehand, as our text encoder makes none.

    In a run all modulations come from a table, as they do in every run of the pipeline.
    """
    dit = load_dit(folder, dtype=dtype, device=device)
    if compiled:
        dit = compile_blocks(dit)
    inputs = _inputs(shape, dit.config.text_features, as_dtype(dtype), device)
    if in_a_run:
        caption = Caption(inputs.text[:, :NUM_VALID], inputs.mask[:, :NUM_VALID])
        # For as long as the process lasts.
        tabulated(dit, [caption], [SIGMA], dit.state_dict().__getitem__).__enter__()
    return _ours(dit, inputs)


def exact(folder: Path, *, shape: Shape) -> Action:
    """The same in float64."""
    dit = load_dit(folder, dtype="float32").double()
    return in_float64(_ours(dit, _inputs(shape, dit.config.text_features, torch.float64, "cpu")))


def diffusers(folder: Path, *, shape: Shape, dtype: str, device: str = "cpu", compiled: bool = False) -> Action:
    """One forward pass with padded text and its mask, as MochiPipeline asks for it."""
    model = their_dit(folder, as_dtype(dtype), device)
    latent, text, mask = _inputs(shape, model.config.text_embed_dim, as_dtype(dtype), device)
    timestep = torch.full((1,), (1 - SIGMA) * 1000, device=device, dtype=latent.dtype)
    forward = torch.compile(model, fullgraph=True) if compiled else model

    @torch.no_grad()
    def run() -> Tensor:
        return forward(latent, text, timestep, mask, return_dict=False)[0]

    return Action(run=run, output=run)


def ours_guided(
    folder: Path, *, shape: Shape, dtype: str, num_steps: int, device: str = "cpu", streamed: bool = False
) -> Action:
    """A run of Euler steps with guidance against an empty negative prompt.

    Streamed, the blocks wait in the host's memory and come to the GPU one by one.
    """
    dit = load_dit(folder, dtype=dtype, device="cpu" if streamed else device)
    if streamed:
        dit = stream_blocks(dit, pinned(dit.blocks), torch.device(device))
    latent, text, mask = _inputs(shape, dit.config.text_features, as_dtype(dtype), device)
    prompt = Caption(text[:, :NUM_VALID], mask[:, :NUM_VALID])
    nothing = Caption(torch.zeros_like(text[:, :1]), torch.zeros_like(mask[:, :1]))
    sigmas = linear_quadratic(num_steps, THRESHOLD_NOISE, num_steps // 2)
    scale = scale_at([GUIDANCE] * num_steps, sigmas)

    @torch.inference_mode()
    def run() -> Tensor:
        velocity = guided(conditioned(dit, prompt), conditioned(dit, nothing), scale)
        return deque(euler(velocity, latent.float(), sigmas), maxlen=1).pop()

    return Action(run=run, output=run)


def diffusers_guided(folder: Path, *, shape: Shape, dtype: str, num_steps: int, device: str = "cpu") -> Action:
    """The same by a MochiPipeline that is given text features and asked for latents."""
    model = their_dit(folder, as_dtype(dtype), device)
    latent, text, mask = _inputs(shape, model.config.text_embed_dim, as_dtype(dtype), device)
    pipe = their_pipeline(transformer=model)

    def run() -> Tensor:
        return pipe(
            prompt_embeds=text,
            prompt_attention_mask=mask,
            negative_prompt_embeds=torch.zeros_like(text),
            negative_prompt_attention_mask=torch.zeros_like(mask),
            latents=latent,
            height=8 * shape[1],
            width=8 * shape[2],
            num_frames=6 * (shape[0] - 1) + 1,
            num_inference_steps=num_steps,
            guidance_scale=GUIDANCE,
            output_type="latent",
        ).frames

    return Action(run=run, output=run)


def forward_flops(config: DiTConfig, shape: Shape, num_text: int = NUM_VALID) -> int:
    """Floating-point operations of one forward pass without any padding: matrix products and attention."""
    frames, height, width = shape
    n, m, d, t = frames * height * width // PATCH**2, num_text, config.video_width, config.text_width
    last, others = 1, config.num_blocks - 1
    video = n * (4 * d * d + 3 * d * config.video_mlp_width) + 4 * d * d
    text = m * 3 * t * d + t * d
    text_update = m * (d * t + 3 * t * config.text_mlp_width) + 3 * t * d
    attention = 2 * (n + m) ** 2 * d
    blocks = (last + others) * (video + text + attention) + others * text_update
    ends = 2 * n * d * PATCH**2 * config.latent_channels + m * config.text_features * (2 * config.text_features + t)
    return 2 * (blocks + ends)


def _ours(dit: AsymmDiT, inputs: Inputs) -> Action:
    latent, text, mask = inputs
    sigma = torch.tensor([SIGMA], device=latent.device)

    @torch.inference_mode()
    def run() -> Tensor:
        return dit(latent, sigma, text[:, :NUM_VALID], mask[:, :NUM_VALID])

    return Action(run=run, output=run)


def _inputs(shape: Shape, text_features: int, dtype: torch.dtype, device: str) -> Inputs:
    """Drawn on the CPU and rounded to bfloat16, so that every precision and device gets the same numbers."""
    draw = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 12, *shape, generator=draw).bfloat16()
    text = torch.randn(1, NUM_TEXT, text_features, generator=draw).bfloat16()
    mask = torch.arange(NUM_TEXT).unsqueeze(0) < NUM_VALID
    return Inputs(latent.to(device, dtype), text.to(device, dtype), mask.to(device))
