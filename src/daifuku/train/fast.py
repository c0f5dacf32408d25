"""The built-in model in few steps of one pass each: a LoRA that is distilled from the model itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from daifuku.model.attention import matmul
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.kernels import set_kernel
from daifuku.sample.guidance import Caption
from daifuku.train.distill import objective
from daifuku.train.dit import Captioned, TextToVideo, noise_like
from daifuku.train.flow import Noised
from daifuku.train.given import draw_given
from daifuku.train.loop import LoopSettings, Report, generator_for, train
from daifuku.train.lora import LAYERS, add_lora, lora_pairs
from daifuku.train.sections import DistillSection, KindSection, Positive, Share
from daifuku.weights.files import write_safetensors
from daifuku.weights.lora_write import pairs_content

PRESET, FILE = "fast8", "loras/fast8.safetensors"

TEACHER = DistillSection(
    method="progressive", guidance_scale=3.0, num_steps=8, threshold_noise=0.1, linear_steps=4, teacher_steps=2
)
"""Each step of the student does what four passes of its teacher do: two steps, each with and without the prompt."""

DEFAULTS: dict[str, Any] = {
    "loras": [FILE],
    "num_inference_steps": TEACHER.num_steps,
    "guidance_scale": 1.0,
    "threshold_noise": TEACHER.threshold_noise,
    "linear_steps": None,
}
"""What the preset means on the built-in model. Half of its steps are linear."""


@dataclass(frozen=True, kw_only=True)
class FastSettings:
    """What is trained, and on how many clips at a time."""

    rank: Positive = 16
    batch_size: Positive = 32
    seed: int = 0
    given_share: Share = 0.0
    """Share of the samples of which some latent frames are given, best as for the model itself."""


def train_fast(
    model: TextToVideo,
    batches: Callable[[int], Captioned],
    loop: LoopSettings,
    folder: Path,
    *,
    validation: Captioned,
    bfloat16: bool,
    given_share: float,
) -> Iterator[Report]:
    """Trains the LoRA of a model that has one; `batches(step)` gives the samples of a step."""
    set_kernel(model.dit, matmul)
    device = next(model.parameters()).device
    width = model.dit.config.text_features
    null = Caption(torch.zeros(1, 1, width), torch.zeros(1, 1, dtype=torch.bool))
    learnt = objective(TEACHER, model.dit, null, bfloat16=bfloat16)

    @torch.no_grad()
    def noised(batch: Captioned, level: Float[Tensor, " b"], generator: torch.Generator, share: float) -> Noised:
        text = model.text_encoder(batch.ids, attention_mask=batch.mask.long()).last_hidden_state
        noise = noise_like(batch.latents, generator)
        given = draw_given(share, len(noise), noise.shape[2], generator)
        found = Noised(clean=batch.latents, noise=noise, sigma=level, text=text, mask=batch.mask, given=given)
        return found.to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = batches(step)
        count = len(batch.latents)
        level = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        return learnt(noised(batch, level, generator, given_share)).mean(), {}

    def validate() -> dict[str, float]:
        count = len(validation.latents)
        level = (torch.arange(count) + 0.5) / count
        return {"val": learnt(noised(validation, level, generator_for(0, 0), 0.0)).mean().item()}

    yield from train(model.dit, loss, loop, folder, validate=validate)


def add_fast_lora(dit: AsymmDiT, settings: FastSettings) -> AsymmDiT:
    """The LoRA to be trained, on every layer of the blocks; so far it changes nothing."""
    kind = KindSection(rank=settings.rank, alpha=settings.rank)
    return add_lora(dit, dict.fromkeys(LAYERS, kind), settings.seed)


def write_fast_lora(dit: AsymmDiT, folder: Path) -> None:
    """Writes the trained LoRA beside the model, in bfloat16 like that."""
    content = pairs_content(lora_pairs(dit), "diffusers", about={"base_model": "built-in"}, dtype=torch.bfloat16)
    write_safetensors(folder / FILE, content.entries, content.metadata)
