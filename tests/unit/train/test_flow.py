"""What the network is shown: drawn, whitened, then noised; and for dropped captions the sampler's null."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from daifuku.config import MOCHI_STATS
from daifuku.sample.guidance import Caption
from daifuku.train.dataset import Batches, open_prepared
from daifuku.train.flow import Noised, Recipe, flow_loss, validation_loss
from daifuku.train.sections import SigmaSection
from tests.unit.train.prepared_data import write_prepared

CPU = torch.device("cpu")
NULL = Caption(torch.full((1, 1, 128), 7.0), torch.ones(1, 1, dtype=torch.bool))


def recipe(**changes: object) -> Recipe:
    plain = Recipe(
        stats=MOCHI_STATS, null=NULL, sigmas=SigmaSection(), caption_dropout=0.0, accumulate=1, seed=0, num_tokens=None
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    folder = write_prepared(tmp_path_factory.mktemp("data"), [((2, 4, 4), 12)])
    return Batches([(open_prepared(folder), 1.0)], size=4, sizes={}, seed=0)


def test_a_latent_is_drawn_anew_each_step_and_whitened_before_it_is_noised(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, [((1, 64, 64), 1)])
    mean = torch.tensor(MOCHI_STATS.mean).reshape(1, 12, 1, 1, 1).expand(1, 12, 1, 64, 64)
    shard = next((folder / "shards").iterdir())
    spread = 2 * torch.tensor(MOCHI_STATS.std).log().reshape(1, 12, 1, 1, 1).expand_as(mean)
    tensors = {"mean": mean.contiguous(), "logvar": spread.contiguous(), "text": load_file(shard)["text"]}
    save_file(tensors, shard)
    found = Batches([(open_prepared(folder, check=False), 1.0)], size=1, sizes={}, seed=0)
    first, second = recipe().noised(found, 0), recipe().noised(found, 1)
    # A posterior with the model's own statistics becomes standard normal, channel by channel.
    assert first.clean.mean(dim=(0, 2, 3, 4)).abs().max() < 0.07
    assert (first.clean.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.05
    assert not torch.equal(first.clean, second.clean)


def test_the_network_sees_the_mixture_and_its_target_is_clean_minus_noise(batches: Batches) -> None:
    batch = recipe().noised(batches, 3)
    seen: list[Tensor] = []

    def perfect(noisy: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        seen.append(noisy)
        return batch.clean - batch.noise

    assert flow_loss(perfect, batch, bfloat16=False).abs().max() == 0
    level = batch.sigma.reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(seen[0], (1 - level) * batch.clean + level * batch.noise)


def test_a_step_repeats_exactly_and_differs_from_every_other(batches: Batches) -> None:
    first, again, other, seed = (
        recipe(seed=seed).noised(batches, step) for step, seed in ((5, 0), (5, 0), (6, 0), (5, 1))
    )
    assert torch.equal(first.noise, again.noise) and torch.equal(first.sigma, again.sigma)
    assert torch.equal(first.clean, again.clean) and torch.equal(first.text, again.text)
    for different in (other, seed):
        assert not torch.equal(first.noise, different.noise)
    assert not torch.equal(first.noise[0], first.noise[1]), "samples of a batch have noise of their own"


def test_drawing_leaves_the_random_state_of_the_process_alone(batches: Batches) -> None:
    state = torch.get_rng_state()
    recipe().noised(batches, 0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_stratified_sigmas_fill_every_part_of_the_range_in_each_step(accumulate: int, batches: Batches) -> None:
    drawn = recipe(accumulate=accumulate)
    sigmas = torch.cat([drawn.noised(batches, micro).sigma for micro in range(accumulate)])
    assert sorted((sigmas * len(sigmas)).floor().tolist()) == list(range(len(sigmas)))


@pytest.mark.parametrize("sampling, median", [("uniform", 0.5), ("logit-normal", 1 / (1 + math.exp(-0.8)))])
def test_other_sigmas_have_the_distribution_that_they_are_called_after(
    sampling: str, median: float, batches: Batches
) -> None:
    drawn = recipe(sigmas=SigmaSection(sampling=sampling, mean=0.8, std=0.5))  # pyright: ignore[reportArgumentType]
    sigmas = torch.cat([drawn.noised(batches, step).sigma for step in range(150)])
    assert abs(float(sigmas.median()) - median) < 0.06
    assert float(sigmas.min()) > 0 and float(sigmas.max()) < 1
    if sampling == "logit-normal":
        assert abs(float(torch.logit(sigmas).std()) - 0.5) < 0.05


def test_a_dropped_caption_is_what_the_sampler_makes_of_an_empty_prompt(batches: Batches) -> None:
    dropped = recipe(caption_dropout=1.0).noised(batches, 0)
    assert torch.equal(dropped.text, NULL.features.expand(4, 1, 128))
    assert dropped.mask.all()
    silent = recipe(caption_dropout=1.0, null=Caption(NULL.features * 0, ~NULL.mask)).noised(batches, 0)
    assert not silent.mask.any()


def test_captions_are_dropped_as_often_as_asked(batches: Batches) -> None:
    drawn = [recipe(caption_dropout=0.25).noised(batches, step) for step in range(100)]
    dropped = sum(int((batch.text[:, 0] == 7.0).all(dim=1).sum()) for batch in drawn)
    assert 0.2 < dropped / 400 < 0.3


def test_text_is_padded_to_one_length_where_that_is_asked_for(batches: Batches) -> None:
    loose, fixed = recipe().noised(batches, 2), recipe(num_tokens=20).noised(batches, 2)
    assert fixed.text.shape[1] == 20
    length = loose.text.shape[1]
    assert torch.equal(fixed.text[:, :length], loose.text) and torch.equal(fixed.mask[:, :length], loose.mask)
    assert not fixed.mask[:, length:].any()


def test_validation_uses_the_same_noise_each_time_and_eight_levels(batches: Batches) -> None:
    samples = batches[0]
    seen: list[Tensor] = []

    def objective(batch: Noised) -> Tensor:
        seen.append(batch.noise)
        return batch.sigma

    first = validation_loss(objective, recipe(seed=1), samples, device=CPU)
    second = validation_loss(objective, recipe(seed=2), samples, device=CPU)
    assert first == second and len(first) == 9
    assert len(seen) == 2 * 8 * len(samples)
