"""Distillation: a student learns to do in one pass, and in few steps, what its teacher does in many.

The teacher is the model before it is trained, with guidance. Three things can be learnt from it:

- guidance: in one pass the velocity that takes two (Meng et al., 2023, arXiv 2210.03142, first stage);
- progressive: in one step of a short schedule the way that takes several (the same, second stage, both at once);
- consistency: from anywhere on the way, straight to where a phase of it ends (Luo et al., 2023, arXiv 2310.04378), with
  the schedule and the loss of the few-step weights that were published for Mochi 1.

The student learns at points of a schedule. A sample's level, between 0 (clean) and 1, tells which of them is its own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from daifuku.model.dit import AsymmDiT
from daifuku.sample.guidance import Caption, Network
from daifuku.sample.schedule import linear_quadratic
from daifuku.train.flow import Noised, Objective
from daifuku.train.given import beside_given, of_open_frames
from daifuku.train.lora import without_lora
from daifuku.train.sections import DistillSection

Averaged = Callable[[], AbstractContextManager[object]]
"""While its block lasts, the student has its averaged weights."""


def objective(
    settings: DistillSection,
    dit: AsymmDiT,
    null: Caption,
    *,
    teacher: AsymmDiT | None = None,
    averaged: Averaged = nullcontext,
    bfloat16: bool,
) -> Objective:
    """What a student learns: from `teacher`, or from itself as it is now, under a LoRA that changes nothing yet.

    `null` is what the sampler gives the network for an empty prompt. Frames that are given, both see clean.
    """
    student = _in_precision(dit, bfloat16)
    unguided = _in_precision(_as_it_is(dit) if teacher is None else teacher, bfloat16)
    guided = guided_teacher(unguided, null, settings.guidance_scale)
    losses: dict[str, Callable[..., Tensor]] = {
        "guidance": guidance_loss,
        "progressive": partial(progressive_loss, settings),
        "consistency": partial(consistency_loss, settings, averaged=averaged),
    }

    def learnt(batch: Noised) -> Tensor:
        held = (beside_given(network, batch.clean, batch.noise, batch.given) for network in (student, guided))
        return of_open_frames(losses[settings.method](*held, batch=batch), batch.given)

    return learnt


def guided_teacher(network: Network, null: Caption, scale: float) -> Network:
    """away + scale * (towards - away), where away is for the empty prompt; without gradient."""

    @torch.no_grad()
    def velocity(noisy: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        towards = network(noisy, sigma, text, mask)
        if scale == 1:
            return towards
        away = network(noisy, sigma, *_empty(null, text))
        return away + scale * (towards - away)

    return velocity


def guidance_loss(student: Network, teacher: Network, batch: Noised) -> Float[Tensor, " b"]:
    """Mean squared error of the velocity, per sample, at any noise level."""
    noisy = _mixed(batch, batch.sigma)
    wanted = teacher(noisy, batch.sigma, batch.text, batch.mask)
    return _squares(student(noisy, batch.sigma, batch.text, batch.mask), wanted)


def progressive_loss(
    settings: DistillSection, student: Network, teacher: Network, batch: Noised
) -> Float[Tensor, " b"]:
    """Mean squared error of the velocity that leads in one step to where several steps lead the teacher."""
    place, sigmas = _drawn(batch, settings)
    now, after = sigmas[place], sigmas[place + 1]
    noisy = _mixed(batch, now)
    reached, step = noisy, (now - after) / settings.teacher_steps
    for number in range(settings.teacher_steps):
        reached = _moved(teacher, reached, now - number * step, step, batch)
    return _squares(student(noisy, now, batch.text, batch.mask), (reached - noisy) / _wide(now - after))


def consistency_loss(
    settings: DistillSection, student: Network, teacher: Network, averaged: Averaged, batch: Noised
) -> Float[Tensor, " b"]:
    """Pseudo-Huber distance, per sample, between where the student goes from one point and from the next.

    It goes to the end of the phase. The next point is one step of the teacher away, and where the averaged student goes
    from there has no gradient.
    """
    place, sigmas = _drawn(batch, settings)
    now, after = sigmas[place], sigmas[place + 1]
    end = sigmas[torch.tensor(phase_ends(settings.num_steps, settings.num_phases), device=place.device)[place]]
    noisy = _mixed(batch, now)
    moved = _moved(teacher, noisy, now, now - after, batch)
    # Before the student runs: weights that its gradients need must not change after it.
    with torch.no_grad(), averaged():
        wanted = _moved(student, moved, after, after - end, batch)
    error = _moved(student, noisy, now, now - end, batch) - wanted
    return ((error.square() + settings.huber**2).sqrt() - settings.huber).mean(dim=(1, 2, 3, 4))


def phase_ends(num_steps: int, num_phases: int) -> list[int]:
    """For each step of a schedule, the number of the point at which its phase ends."""
    ends = [(phase + 1) * num_steps // num_phases for phase in range(num_phases)]
    return [next(end for end in ends if end > step) for step in range(num_steps)]


def _as_it_is(dit: AsymmDiT) -> Network:
    """The weights under a LoRA; where all weights are trained, a copy of them."""
    if all(parameter.requires_grad for parameter in dit.parameters()):
        return deepcopy(dit).requires_grad_(False)

    def network(latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        with without_lora(dit):
            return dit(latent, sigma, text, mask)

    return network


def _in_precision(network: Network, bfloat16: bool) -> Network:
    """Matrix products in bfloat16, if so; the velocity in float32."""

    def velocity(latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(latent.device.type, torch.bfloat16, enabled=bfloat16):
            return network(latent, sigma, text, mask).float()

    return velocity


def _drawn(batch: Noised, settings: DistillSection) -> tuple[Int[Tensor, " b"], Float[Tensor, " points"]]:
    """The number of each sample's point, and the noise levels of all points, from 1 down to 0."""
    sigmas = linear_quadratic(settings.num_steps, settings.threshold_noise, settings.linear_steps)
    place = ((1 - batch.sigma) * settings.num_steps).long().clamp(0, settings.num_steps - 1)
    return place, batch.sigma.new_tensor(sigmas)


def _mixed(batch: Noised, sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c t h w"]:
    return torch.lerp(batch.clean, batch.noise, _wide(sigma))


def _moved(
    network: Network,
    latent: Float[Tensor, "b c t h w"],
    sigma: Float[Tensor, " b"],
    by: Float[Tensor, " b"],
    batch: Noised,
) -> Float[Tensor, "b c t h w"]:
    """One Euler step."""
    return latent + _wide(by) * network(latent, sigma, batch.text, batch.mask)


def _squares(found: Float[Tensor, "b c t h w"], wanted: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
    return (found - wanted).square().mean(dim=(1, 2, 3, 4))


def _wide(each: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1 1"]:
    return rearrange(each, "b -> b 1 1 1 1")


def _empty(
    null: Caption, text: Float[Tensor, "b l features"]
) -> tuple[Float[Tensor, "b m features"], Bool[Tensor, "b m"]]:
    """The empty prompt for each sample, padded as the captions are: compiled blocks then see one length only."""
    longer = max(0, text.shape[1] - null.mask.shape[1])
    features = F.pad(null.features, (0, 0, 0, longer)).to(text).expand(len(text), -1, -1)
    return features, F.pad(null.mask, (0, longer)).to(text.device).expand(len(text), -1)
