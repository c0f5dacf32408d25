"""What a solver is: a way to follow the velocity from noise to a clean latent."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from daifuku.errors import NonFiniteLatent
from daifuku.registry import Plugin

Latent = Float[Tensor, "b c t h w"]

Velocity = Callable[[Latent, float], Latent]
"""(latent, sigma) -> the direction from noise to clean, float32."""

State = dict[str, Tensor | float | int]
"""All that a velocity remembers from one call to the next, in a dictionary that its caller owns: kept in a file and
given back, it lets a run go on bit for bit. `reused` counts the passes of a network that were spared."""

Solve = Callable[[Velocity, Latent, Sequence[float]], Iterator[Latent]]
"""(velocity, float32 noise, sigmas from 1 to 0) -> the latent after each step."""


@dataclass(frozen=True, kw_only=True)
class Solver(Plugin):
    """A plugin of `sample/solvers/`."""

    order: int
    """Halving all steps divides the error by 2 to this power."""
    run: Solve


def finite(latents: Iterator[Latent]) -> Iterator[Latent]:
    """The same latents. Raises NonFiniteLatent, with the step, at the first that is not a number somewhere."""
    for index, latent in enumerate(latents, start=1):
        if not latent.isfinite().all():
            raise NonFiniteLatent(
                f"the latent is NaN or infinite after step {index}, so the run stops. "
                "Try a lower guidance_scale or dtype float32."
            )
        yield latent
