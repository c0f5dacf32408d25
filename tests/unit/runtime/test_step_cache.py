"""Step caches: how a change is measured, and that they leave the transformer as it is."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.runtime.step_cache.teacache import FITTED_UP_TO, rescaled
from daifuku.runtime.step_caching import cached, relative_change
from daifuku.sample.guidance import Caption, conditioned
from daifuku.sample.noise import seeded_noise
from daifuku.sample.schedule import linear_quadratic
from daifuku.sample.solver import State
from daifuku.sample.solvers.euler import euler
from daifuku.weights.load import load_dit

CONFIG = DiTConfig(
    num_blocks=2,
    num_heads=2,
    head_dim=16,
    text_width=16,
    video_mlp_width=64,
    text_mlp_width=32,
    text_features=16,
    time_features=16,
)
LATENT = seeded_noise([1], (12, 1, 4, 4))
TEXT, MASK = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0)), torch.ones(1, 3, dtype=torch.bool)


@pytest.fixture
def dit() -> AsymmDiT:
    torch.manual_seed(0)
    return AsymmDiT(CONFIG).eval().requires_grad_(False)


def states_at(dit: AsymmDiT, name: str, sigmas: list[float], threshold: float) -> list[State]:
    """What a cache remembers after a call at each of the sigmas."""
    state: State = {}
    network = cached(dit, name, state, threshold=threshold, last_sigma=0.0)
    states = []
    for sigma in sigmas:
        network(LATENT, torch.tensor([sigma]), TEXT, MASK)
        states.append(dict(state))
    return states


def test_without_a_cache_the_transformer_is_called_itself(dit: AsymmDiT) -> None:
    assert cached(dit, "none", {}, threshold=0.5, last_sigma=0.0) is dit


def test_a_change_is_relative_to_what_was_before() -> None:
    assert relative_change(torch.tensor([1.0, -5.0]), torch.tensor([2.0, -4.0])) == pytest.approx(2 / 6)


@pytest.mark.parametrize("change, output", [(0.0, 0.00305), (0.02, 0.03309), (0.05, 0.05142), (0.1, 0.09652)])
def test_teacache_rescales_as_published(change: float, output: float) -> None:
    assert rescaled(change) == pytest.approx(output, abs=1e-5)


def test_a_larger_change_is_never_rescaled_to_less_than_a_small_one() -> None:
    """The bare polynomial falls below zero at a change of 0.15, where every step would be taken for the same."""
    changes = [i / 1000 for i in range(1000)]
    outputs = [rescaled(change) for change in changes]
    assert all(after > before for before, after in pairwise(outputs))
    assert rescaled(FITTED_UP_TO) == pytest.approx(FITTED_UP_TO, rel=0.1)


def test_teacache_adds_up_small_changes_until_they_are_too_many(dit: AsymmDiT) -> None:
    sigmas = [0.9, 0.89, 0.88, 0.87, 0.86]
    parts = [float(states_at(dit, "teacache", list(pair), threshold=1e9)[1]["drift"]) for pair in pairwise(sigmas)]
    sums = [state["drift"] for state in states_at(dit, "teacache", sigmas, threshold=sum(parts[:3]))]
    assert sums == pytest.approx([0.0, parts[0], parts[0] + parts[1], 0.0, parts[3]])


def test_the_first_block_is_compared_with_the_last_step_that_ran_all_blocks(dit: AsymmDiT) -> None:
    first, second, third = states_at(dit, "first_block", [0.9, 0.89, 0.88], threshold=1e9)
    assert third["mark"] is second["mark"] is first["mark"]
    alone = states_at(dit, "first_block", [0.9, 0.88], threshold=1e9)[1]
    assert third["drift"] == alone["drift"] != second["drift"]


def test_a_step_that_is_computed_again_forgets_the_one_before(dit: AsymmDiT) -> None:
    before, after = states_at(dit, "first_block", [0.9, 0.5], threshold=0.0)
    alone = states_at(dit, "first_block", [0.5], threshold=0.0)[0]
    for key in ("mark", "update"):
        assert torch.equal(torch.as_tensor(after[key]), torch.as_tensor(alone[key]))
        assert not torch.equal(torch.as_tensor(after[key]), torch.as_tensor(before[key]))


def test_teacache_looks_at_what_enters_the_first_attention_and_first_block_at_what_leaves_the_block(
    dit: AsymmDiT,
) -> None:
    block, seen = dit.blocks[0], {}
    block.attention.register_forward_pre_hook(lambda _, inputs: seen.update(enters=inputs[0]))
    block.register_forward_hook(lambda _, inputs, outputs: seen.update(added=outputs[0] - inputs[0]))
    for name, what in (("teacache", "enters"), ("first_block", "added")):
        mark = states_at(dit, name, [0.7], threshold=0.1)[0]["mark"]
        assert torch.equal(torch.as_tensor(mark), seen[what])


class Table(nn.Module):
    """A modulation that was computed beforehand: it has no weights to look at."""

    def __init__(self, modulation: nn.Module, conditioning: Tensor) -> None:
        super().__init__()
        self.row = modulation(conditioning)

    def forward(self, conditioning: Tensor) -> Tensor:
        return self.row


def test_teacache_asks_the_modulation_as_the_block_does(dit: AsymmDiT) -> None:
    inputs = LATENT, torch.tensor([0.7]), TEXT, MASK
    expected = states_at(dit, "teacache", [0.7], threshold=0.1)[0]["mark"]
    first = dit.blocks[0]
    first.video_modulation = Table(first.video_modulation, dit.embed(*inputs).conditioning)
    found = states_at(dit, "teacache", [0.7], threshold=0.1)[0]["mark"]
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


@pytest.mark.parametrize("name", ["first_block", "teacache"])
def test_at_threshold_zero_the_built_in_model_samples_the_same_bit_for_bit(name: str) -> None:
    dit = load_dit(BUILT_IN_FOLDER)
    caption = Caption(
        torch.randn(1, 6, dit.config.text_features, generator=torch.Generator().manual_seed(2)),
        torch.ones(1, 6, dtype=torch.bool),
    )
    sigmas, noise = linear_quadratic(5, 0.1), seeded_noise([4], (12, 2, 8, 8))
    ends = []
    with torch.inference_mode():
        for each in ("none", name):
            network = cached(dit, each, {}, threshold=0.0, last_sigma=sigmas[-2])
            *_, latent = euler(conditioned(network, caption), noise, sigmas)
            ends.append(latent)
    assert torch.equal(*ends)
