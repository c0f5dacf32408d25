"""Flow matching on prepared samples: what is learnt, from which noise, and how far it is.

A sample is drawn from the Gaussian that the VAE saw, whitened, and only then noised: (1 - sigma) z + sigma noise. The
target is z - noise. All numbers drawn for a sample are a function of (seed, micro-step, its place in the batch), so
that it makes no difference which process computes it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from daifuku.config import LatentStats
from daifuku.model.vae.encoder import Posterior
from daifuku.sample.guidance import Caption
from daifuku.train.dataset import Batches, Posteriors, Sample, read_samples
from daifuku.train.given import Given, beside_given, draw_given, of_open_frames
from daifuku.train.sections import SigmaSection
from daifuku.train.velocity import VALIDATION_SIGMAS, velocity_error

VALIDATION_SEED = 0

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(noisy latent, sigma [b], text features [b, l, width], text mask [b, l]) -> velocity."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Noised:
    """A batch as the network sees it."""

    clean: Float[Tensor, "b c t h w"]
    """Whitened."""
    noise: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, " b"]
    text: Float[Tensor, "b l features"]
    mask: Bool[Tensor, "b l"]
    given: Given
    """Frames that the network sees clean, and that count in no loss."""

    def to(self, device: torch.device) -> "Noised":
        """The same on a device."""
        return Noised(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})


Objective = Callable[[Noised], Tensor]
"""A batch -> the loss of each of its samples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """How samples become what the network sees."""

    stats: LatentStats
    null: Caption
    """What the sampler gives the network for an empty prompt: dropped captions become this."""
    sigmas: SigmaSection
    caption_dropout: float
    accumulate: int
    seed: int
    num_tokens: int | None = None
    """Every batch of text is padded to this many tokens; None pads to its longest caption."""
    given_share: float = 0.0
    """Share of the samples of which some latent frames are given."""

    def noised(self, batches: Batches, micro: int) -> Noised:
        """The batch of a micro-step."""
        samples = batches[micro]
        draws = [_generator(self.seed, micro, place) for place in range(len(samples))]
        captions = [_choice(len(s.num_tokens), draw) for s, draw in zip(samples, draws, strict=True)]
        kept = [float(torch.rand((), generator=draw)) >= self.caption_dropout for draw in draws]
        parts = [float(torch.rand((), generator=draw)) for draw in draws]
        sigma = [self._sigma(micro, place, len(samples), part) for place, part in enumerate(parts)]
        found = read_samples(samples, captions)
        return self._assembled(found, kept, torch.tensor(sigma), draws, self.given_share)

    def fixed(self, sample: Sample, place: int, sigma: float) -> Noised:
        """One sample at one noise level, with its first caption and nothing given; noise depends on the place alone."""
        draws = [_generator(VALIDATION_SEED, 0, place)]
        return self._assembled(read_samples([sample], [0]), [True], torch.tensor([sigma]), draws, 0.0)

    def _sigma(self, micro: int, place: int, count: int, part: float) -> float:
        """`part` is uniform in [0, 1)."""
        if self.sigmas.sampling == "stratified":
            # One stratum for each sample of a step; which is whose changes from step to step.
            step, turn = divmod(micro, self.accumulate)
            strata = np.random.default_rng([self.seed, 2, step]).permutation(self.accumulate * count)
            return (float(strata[turn * count + place]) + part) / len(strata)
        if self.sigmas.sampling == "uniform":
            return part
        quantile = min(max(part, 1e-6), 1 - 1e-6)
        normal = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * quantile - 1, dtype=torch.float64)))
        return 1 / (1 + math.exp(-(self.sigmas.mean + self.sigmas.std * normal)))

    def _assembled(
        self,
        found: Posteriors,
        kept: Sequence[bool],
        sigma: Float[Tensor, " b"],
        draws: Sequence[torch.Generator],
        given_share: float,
    ) -> Noised:
        each = zip(found.mean.split(1), found.logvar.split(1), draws, strict=True)
        z = torch.cat([Posterior(mean=mean, logvar=logvar).sample(draw) for mean, logvar, draw in each])
        mean, std = rearrange(torch.tensor([self.stats.mean, self.stats.std]), "two c -> two c 1 1 1")
        noise = torch.stack([torch.randn(found.mean.shape[1:], generator=draw) for draw in draws])
        # Drawn last, so that what else is drawn stays the same whatever the share.
        given = torch.cat([draw_given(given_share, 1, noise.shape[2], draw) for draw in draws])
        text, mask = self._padded(found.text, kept)
        return Noised(clean=(z - mean) / std, noise=noise, sigma=sigma, text=text, mask=mask, given=given)

    def _padded(
        self, text: Sequence[Tensor], kept: Sequence[bool]
    ) -> tuple[Float[Tensor, "b l features"], Bool[Tensor, "b l"]]:
        # A dropped caption is what the sampler gives the network for an empty prompt.
        null, empty = self.null.mask[0], torch.zeros(self.num_tokens or 0, dtype=torch.bool)
        features = [own if keep else self.null.features[0] for own, keep in zip(text, kept, strict=True)]
        masks = [own.new_ones(len(own)).bool() if keep else null for own, keep in zip(text, kept, strict=True)]
        pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
        # The last row makes all others long enough.
        long = pad([*features, features[0].new_zeros(len(empty), features[0].shape[1])])[:-1]
        return long, pad([*masks, empty])[:-1]


def flow_loss(predict: Predict, batch: Noised, *, bfloat16: bool) -> Float[Tensor, " b"]:
    """Mean squared error of the velocity over the frames that are not given, per sample."""
    network = beside_given(predict, batch.clean, batch.noise, batch.given)
    losses = velocity_error(
        lambda noisy, level: network(noisy, level, batch.text, batch.mask),
        *(batch.clean, batch.noise, batch.sigma),
        bfloat16,
    )
    return of_open_frames(losses, batch.given)


@torch.no_grad()
def validation_loss(
    objective: Objective, recipe: Recipe, samples: Sequence[Sample], *, device: torch.device
) -> dict[str, float]:
    """Loss at eight fixed noise levels with fixed noise, and their mean: runs compare by it."""
    curve: dict[str, float] = {}
    for level in VALIDATION_SIGMAS:
        batches = (recipe.fixed(sample, place, level) for place, sample in enumerate(samples))
        losses = [objective(batch.to(device)) for batch in batches]
        curve[f"val_{level:.4f}"] = float(torch.cat(losses).mean())
    return {"val": sum(curve.values()) / len(curve)} | curve


def _choice(count: int, draw: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=draw))


def _generator(seed: int, micro: int, place: int) -> torch.Generator:
    # Mixed into the 32 bits that PyTorch's generator starts from.
    (state,) = np.random.SeedSequence([seed, micro, place]).generate_state(1)
    return torch.Generator().manual_seed(int(state))
