"""From a transformer and a request to the one function that a solver follows."""

from collections.abc import Sequence

from daifuku.config import RuntimeConfig
from daifuku.model.dit import AsymmDiT
from daifuku.request import NO_STEP_CACHE, ResolvedRequest
from daifuku.runtime.given import as_held
from daifuku.runtime.step_caching import cached
from daifuku.sample.guidance import Caption, Network, conditioned, guided, guided_together, scale_at
from daifuku.sample.solver import State, Velocity


def velocity_of(
    dit: AsymmDiT,
    request: ResolvedRequest,
    run: RuntimeConfig,
    prompt: Caption,
    negative: Caption | None,
    sigmas: Sequence[float],
    states: dict[str, State],
) -> Velocity:
    """Given frames over guidance over step caches over the transformer.

    All that they remember is in `states`, by who remembers it.
    """
    return as_held(_towards(dit, request, run, prompt, negative, sigmas, states), states)


def _towards(
    dit: AsymmDiT,
    request: ResolvedRequest,
    run: RuntimeConfig,
    prompt: Caption,
    negative: Caption | None,
    sigmas: Sequence[float],
    states: dict[str, State],
) -> Velocity:
    def network(name: str) -> Network:
        state = states.setdefault(name, {})
        return cached(dit, request.step_cache, state, threshold=request.cache_threshold, last_sigma=sigmas[-2])

    if negative is None:
        return conditioned(network("prompt"), prompt)
    scale = scale_at(
        request.guidance_scales, sigmas, start=request.guidance_start_sigma, end=request.guidance_end_sigma
    )
    state = states.setdefault("guidance", {})
    # A step cache decides for each caption alone, so that how a run is computed does not change what it shows.
    if run.batch_guidance and request.step_cache == NO_STEP_CACHE:
        return guided_together(network("both"), prompt, negative, scale, every=request.guidance_every, state=state)
    towards, away = conditioned(network("prompt"), prompt), conditioned(network("negative"), negative)
    return guided(towards, away, scale, every=request.guidance_every, state=state)
