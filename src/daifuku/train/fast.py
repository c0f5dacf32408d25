"""The built-in model in few steps of one pass each: a LoRA that is distilled from the model itself."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.model.dit import AsymmDiT
from daifuku.runtime.kernels import set_kernel
from daifuku.sample.guidance import Caption
from daifuku.sample.schedule import linear_quadratic
from daifuku.train.attention import kernel_for
from daifuku.train.distill import objective
from daifuku.train.dit import Captioned, TextToVideo, noise_like, share_of
from daifuku.train.flow import Noised
from daifuku.train.given import draw_given
from daifuku.train.loop import LoopSettings, Report, generator_for, train
from daifuku.train.lora import add_known_lora
from daifuku.train.sections import DistillSection, Positive, Share
from daifuku.weights.files import write_safetensors
from daifuku.weights.lora_extract import extracted, input_moments
from daifuku.weights.lora_write import Pair, pairs_content

PRESET, FILE = "fast8", "loras/fast8.safetensors"

TEACHER = DistillSection(
    method="progressive", guidance_scale=4.5, num_steps=8, threshold_noise=0.1, linear_steps=4, teacher_steps=2
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
    """How many clips a step learns from, and how much of what was learnt ships."""

    batch_size: Positive = 32
    given_share: Share = 0.0
    """Share of the samples of which some latent frames are given, best as for the model itself."""
    rank: Positive = 128
    """Of the LoRA that the trained weights become."""


def train_fast(
    model: TextToVideo,
    teacher: AsymmDiT,
    batches: Callable[[int], Captioned],
    loop: LoopSettings,
    folder: Path,
    *,
    validation: Captioned,
    bfloat16: bool,
    settings: FastSettings,
) -> Iterator[Report]:
    """Trains what is to be trained of the transformer of `model`; `batches(step)` gives the samples of a step."""
    for dit in (model.dit, teacher):
        set_kernel(dit, kernel_for(next(dit.parameters()).device))
    width = model.dit.config.text_features
    null = Caption(torch.zeros(1, 1, width), torch.zeros(1, 1, dtype=torch.bool))
    learnt = objective(TEACHER, model.dit, null, teacher=teacher, bfloat16=bfloat16)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = batches(step)
        count = len(batch.latents)
        level = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        return learnt(_noised(model, batch, level, generator, settings.given_share)).mean(), {}

    def validate() -> dict[str, float]:
        errors = []
        for number, part in enumerate(_parts(validation, settings.batch_size)):
            count = len(part.latents)
            level = (torch.arange(count) + 0.5) / count
            errors.append(learnt(_noised(model, part, level, generator_for(0, number), 0.0)))
        return {"val": torch.cat(errors).mean().item()}

    yield from train(model.dit, loss, loop, folder, validate=validate, adam_share=share_of)


def train_matrices_only(dit: AsymmDiT) -> None:
    """The weights of linear layers are trained, which are all that a LoRA can change."""
    dit.requires_grad_(False)
    for layer in dit.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.requires_grad_(True)


def _parts(batch: Captioned, size: int) -> Iterator[Captioned]:
    """The batch in pieces of one size, which compiled blocks know already; the last may be smaller."""
    pieces = (part.split(size) for part in (batch.latents, batch.ids, batch.mask))
    for latents, ids, mask in zip(*pieces, strict=True):
        yield Captioned(latents=latents, ids=ids, mask=mask)


def add_fast_lora(model: TextToVideo, student: AsymmDiT, rank: int, samples: Captioned) -> AsymmDiT:
    """Puts what the student of the model learnt around the layers of the model, as a LoRA that can learn on.

    The student's steps on the samples show which inputs its layers get.
    """

    def use() -> None:
        for number, level in enumerate(linear_quadratic(TEACHER.num_steps, TEACHER.threshold_noise)[:-1]):
            sigma = torch.full((len(samples.latents),), level)
            batch = _noised(model, samples, sigma, generator_for(0, number), 0.0)
            student(torch.lerp(batch.clean, batch.noise, level), batch.sigma, batch.text, batch.mask)

    return add_known_lora(model.dit, extracted(model.dit, student, rank, input_moments(student, use)))


def write_fast_lora(pairs: Mapping[str, Pair], folder: Path) -> None:
    """Writes the LoRA beside the model, in bfloat16 like that."""
    content = pairs_content(pairs, "diffusers", about={"base_model": "built-in"}, dtype=torch.bfloat16)
    write_safetensors(folder / FILE, content.entries, content.metadata)


@torch.no_grad()
def _noised(
    model: TextToVideo, batch: Captioned, level: Float[Tensor, " b"], generator: torch.Generator, share: float
) -> Noised:
    text = model.text_encoder(batch.ids, attention_mask=batch.mask.long()).last_hidden_state
    noise = noise_like(batch.latents, generator)
    given = draw_given(share, len(noise), noise.shape[2], generator)
    drawn = Noised(clean=batch.latents, noise=noise, sigma=level, text=text, mask=batch.mask, given=given)
    return drawn.to(batch.latents.device)
