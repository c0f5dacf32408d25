"""What every step cache keeps, whoever writes it: dropping a file into `runtime/step_cache/` is enough to be tested."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from daifuku import registry
from daifuku.config import DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.request import STEP_CACHES
from daifuku.runtime.step_caching import StepCache, cached
from daifuku.sample.guidance import Caption, conditioned, guided
from daifuku.sample.noise import seeded_noise
from daifuku.sample.schedule import linear_quadratic
from daifuku.sample.solver import State, Velocity
from daifuku.sample.solvers.euler import euler

NUM_BLOCKS = 3
CONFIG = DiTConfig(
    num_blocks=NUM_BLOCKS,
    num_heads=2,
    head_dim=16,
    text_width=16,
    video_mlp_width=64,
    text_mlp_width=32,
    text_features=16,
    time_features=16,
)
SIGMAS = linear_quadratic(10, 0.1)
NOISE = seeded_noise([5], (12, 2, 4, 6))
PROMPT, NEGATIVE = (
    Caption(torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(i)), torch.arange(5)[None] < 5 - i)
    for i in range(2)
)
ALL_BLOCKS = [NUM_BLOCKS] * (len(SIGMAS) - 1)

EASY = 0.2
"""A threshold under which some of the steps of the model below reuse work, and some do not."""


class Passing(nn.Module):
    """Blocks that can be passed through once, in order, as far as one likes: neither counted nor indexed."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks
        self.handed_out = 0

    def __iter__(self) -> Iterator[nn.Module]:
        for block in self.blocks:
            self.handed_out += 1
            yield block


@pytest.fixture(params=registry.names(STEP_CACHES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dit(request: pytest.FixtureRequest) -> AsymmDiT:

    torch.manual_seed(0)
    model = AsymmDiT(CONFIG).eval().requires_grad_(False)
    nn.init.normal_(model.pos_frequencies, std=0.05)
    model.blocks = Passing(model.blocks)
    return model.to(request.param)


def velocity(dit: AsymmDiT, name: str, threshold: float, states: Sequence[State]) -> Velocity:
    """Guidance over one cached network per caption. The states are those of prompt, negative prompt and guidance."""
    networks = [cached(dit, name, state, threshold=threshold, last_sigma=SIGMAS[-2]) for state in states[:2]]
    towards, away = (conditioned(*each) for each in zip(networks, (PROMPT, NEGATIVE), strict=True))
    return guided(towards, away, lambda sigma: 2.0, every=2, state=states[2])


def sample(dit: AsymmDiT, name: str, threshold: float) -> list[Tensor]:
    """The latent after each step of a guided run."""
    return list(euler(velocity(dit, name, threshold, ({}, {}, {})), NOISE, SIGMAS))


def through_a_file(state: State) -> State:
    """Tensors as safetensors keep them, and numbers as JSON does."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    numbers = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    return {**load(save(tensors)), **json.loads(json.dumps(numbers))}


def blocks_run(dit: AsymmDiT, name: str, threshold: float, state: State | None = None) -> list[int]:
    """How many blocks are handed out at each step of a run without guidance."""
    network = cached(dit, name, {} if state is None else state, threshold=threshold, last_sigma=SIGMAS[-2])
    counts, before = [], dit.blocks.handed_out
    for _ in euler(conditioned(network, PROMPT), NOISE, SIGMAS):
        counts.append(dit.blocks.handed_out - before)
        before = dit.blocks.handed_out
    return counts


def test_it_says_what_it_is(name: str) -> None:
    cache = registry.load(STEP_CACHES, name, StepCache)
    assert cache.available() is None
    assert cache.help.endswith(".")


def test_at_threshold_zero_a_whole_run_is_the_same_bit_for_bit(name: str, dit: AsymmDiT) -> None:
    plain, with_cache = sample(dit, "none", 0.0), sample(dit, name, 0.0)
    assert all(torch.equal(one, other) for one, other in zip(plain, with_cache, strict=True))
    assert blocks_run(dit, name, 0.0) == ALL_BLOCKS


def test_it_spares_blocks_where_little_changes(name: str, dit: AsymmDiT) -> None:
    counts = blocks_run(dit, name, EASY)
    assert 1 in counts and set(counts) <= {1, NUM_BLOCKS}
    assert NUM_BLOCKS in counts[1:-1], "the threshold of these tests should lie between always and never"


def test_the_first_and_the_last_step_run_all_blocks_even_if_any_change_is_passed_over(name: str, dit: AsymmDiT) -> None:
    assert blocks_run(dit, name, 1e9) == [NUM_BLOCKS, *[1] * (len(SIGMAS) - 3), NUM_BLOCKS]


def test_a_higher_threshold_spares_no_less(name: str, dit: AsymmDiT) -> None:
    totals = [sum(blocks_run(dit, name, threshold)) for threshold in (0.0, EASY, 0.5, 1e9)]
    assert totals == sorted(totals, reverse=True)


def test_it_counts_what_it_spared(name: str, dit: AsymmDiT) -> None:
    state: State = {}
    counts = blocks_run(dit, name, EASY, state)
    assert (state["computed"], state["reused"]) == (counts.count(NUM_BLOCKS), counts.count(1))


def test_a_small_threshold_changes_little(name: str, dit: AsymmDiT) -> None:
    exact, rough, rougher = (sample(dit, name, threshold)[-1] for threshold in (0.0, EASY, 1e9))
    assert 0 < (rough - exact).norm() < (rougher - exact).norm() < exact.norm()


@pytest.mark.parametrize("done", [1, 4, 8])
def test_a_run_goes_on_bit_for_bit_from_what_its_cache_remembers(name: str, dit: AsymmDiT, done: int) -> None:
    expected = sample(dit, name, EASY)
    states: list[State] = [{}, {}, {}]
    latents = euler(velocity(dit, name, EASY, states), NOISE, SIGMAS)
    *_, stopped = islice(latents, done)
    again = velocity(dit, name, EASY, [through_a_file(state) for state in states])
    rest = list(euler(again, stopped, SIGMAS[done:]))
    assert all(torch.equal(one, other) for one, other in zip(rest, expected[done:], strict=True))


def test_what_was_remembered_of_a_batch_of_another_size_is_not_used(name: str, dit: AsymmDiT) -> None:
    network = cached(dit, name, {}, threshold=1e9, last_sigma=0.0)
    plain = dit(NOISE, torch.tensor([0.8]), *PROMPT)
    network(
        NOISE.expand(2, -1, -1, -1, -1), torch.tensor([0.9, 0.9]), *(each.expand(2, *each.shape[1:]) for each in PROMPT)
    )
    assert torch.equal(network(NOISE, torch.tensor([0.8]), *PROMPT), plain)
