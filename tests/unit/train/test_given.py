"""Given frames: which they are, that the network sees them clean at every noise level, and nothing learnt there."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from daifuku.train.dataset import Batches, open_prepared
from daifuku.train.distill import objective
from daifuku.train.dit import DiTLossSettings, train_dit
from daifuku.train.dit import flow_loss as dit_loss
from daifuku.train.flow import Noised, flow_loss
from daifuku.train.given import beside_given, draw_given, kinds, of_open_frames
from daifuku.train.loop import LoopSettings, generator_for
from daifuku.train.muon import OptimiserSettings
from daifuku.train.sections import DistillSection
from daifuku.train.velocity import velocity_error
from tests.unit.train.prepared_data import write_prepared
from tests.unit.train.test_distill import NULL, small_dit
from tests.unit.train.test_dit_training import awake_model, batch
from tests.unit.train.test_flow import recipe


def drawn(count: int = 4, num_frames: int = 3) -> Noised:
    """Random samples, of which a different frame is given in each of the first few."""
    draw = torch.Generator().manual_seed(0)
    given = torch.zeros(count, num_frames, dtype=torch.bool)
    given[range(num_frames), range(num_frames)] = True
    return Noised(
        clean=torch.randn(count, 12, num_frames, 4, 4, generator=draw),
        noise=torch.randn(count, 12, num_frames, 4, 4, generator=draw),
        sigma=torch.tensor([0.05, 0.5, 1.0, 0.7]),
        text=torch.randn(count, 5, 8, generator=draw),
        mask=torch.ones(count, 5, dtype=torch.bool),
        given=given,
    )


def ones(frames: str) -> list[bool]:
    return [each == "1" for each in frames]


def test_the_first_frame_the_ends_or_how_a_clip_begins_may_be_given_and_something_is_always_left_to_learn() -> None:
    assert kinds(7).tolist() == [ones("1000000"), ones("1000001"), ones("1100000"), ones("1110000")]
    assert kinds(3).tolist() == [ones("100"), ones("101"), ones("110")]
    assert kinds(2).tolist() == [ones("10")]
    assert kinds(1).tolist() == []


def test_every_kind_comes_equally_often_and_together_as_often_as_asked() -> None:
    given = draw_given(0.4, 20_000, 7, generator_for(0, 0))
    found = [int((given == kind).all(dim=1).sum()) / len(given) for kind in kinds(7)]
    assert found == pytest.approx([0.1] * 4, abs=0.01)
    assert not draw_given(0.0, 1000, 7, generator_for(0, 0)).any()
    assert draw_given(1.0, 1000, 7, generator_for(0, 0))[:, 0].all()
    assert not draw_given(1.0, 10, 1, generator_for(0, 0)).any(), "of an image nothing can be given"


def test_the_network_sees_given_frames_clean_at_every_noise_level_and_the_others_noised() -> None:
    samples, seen = drawn(), []

    def network(noisy: Tensor, *_: Tensor) -> Tensor:
        seen.append(noisy)
        return torch.zeros_like(noisy)

    flow_loss(network, samples, bfloat16=False)
    plain: list[Tensor] = []
    velocity_error(lambda noisy, _: plain.append(noisy) or noisy, samples.clean, samples.noise, samples.sigma, False)
    for sample, frames in enumerate(samples.given):
        assert torch.equal(seen[0][sample][:, frames], samples.clean[sample][:, frames])
        assert torch.equal(seen[0][sample][:, ~frames], plain[0][sample][:, ~frames])


def test_what_the_network_says_about_given_frames_has_no_gradient_and_no_loss() -> None:
    samples = drawn()
    said = torch.randn(samples.clean.shape, generator=generator_for(1, 0)).requires_grad_()
    loss = flow_loss(lambda *_: said, samples, bfloat16=False)
    loss.sum().backward()
    assert said.grad is not None
    for sample, frames in enumerate(samples.given):
        assert not said.grad[sample][:, frames].any()
        assert said.grad[sample][:, ~frames].all()
        error = (said - samples.clean + samples.noise)[sample][:, ~frames]
        torch.testing.assert_close(loss[sample], error.square().mean())


def test_where_nothing_is_given_every_loss_is_what_it_is_without_given_frames_bit_for_bit() -> None:
    samples = drawn()
    samples = replace(samples, given=torch.zeros_like(samples.given))
    dit = small_dit()
    own = flow_loss(dit, samples, bfloat16=False)
    plain = velocity_error(
        lambda noisy, sigma: dit(noisy, sigma, samples.text, samples.mask),
        *(samples.clean, samples.noise, samples.sigma),
        False,
    )
    assert torch.equal(own, plain)
    given = torch.ones_like(samples.given)
    assert not torch.equal(own, flow_loss(dit, replace(samples, given=given ^ (given.cumsum(1) > 1)), bfloat16=False))


@pytest.mark.parametrize("method", ["guidance", "progressive", "consistency"])
def test_a_student_learns_beside_given_frames_too(method: str) -> None:
    """Its loss is zero where it is its own teacher, and given frames are known to both."""
    settings = DistillSection(method=method, guidance_scale=1.0, num_steps=4, linear_steps=2, teacher_steps=1)  # pyright: ignore[reportArgumentType]
    asked: list[Tensor] = []
    dit = small_dit()
    dit.register_forward_pre_hook(lambda _, given: asked.append(given[0]))
    samples = drawn()
    loss = objective(settings, dit, NULL, bfloat16=False)(samples)
    assert loss.shape == (4,) and loss.isfinite().all()
    for noisy in asked:
        for sample, frames in enumerate(samples.given):
            assert torch.equal(noisy[sample][:, frames], samples.clean[sample][:, frames])
    if method != "consistency":
        assert loss.abs().max() < 1e-9


def test_the_share_changes_nothing_else_that_is_drawn_for_a_sample(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, [((3, 4, 4), 12)])
    batches = Batches([(open_prepared(folder), 1.0)], size=4, sizes={}, seed=0)
    without, beside = recipe().noised(batches, 5), recipe(given_share=1.0).noised(batches, 5)
    assert not without.given.any() and beside.given[:, 0].all()
    for name in ("clean", "noise", "sigma", "text", "mask"):
        assert torch.equal(getattr(without, name), getattr(beside, name)), name
    assert torch.equal(beside.given, recipe(given_share=1.0).noised(batches, 5).given)
    measured = recipe(given_share=1.0).fixed(batches[0][0], 0, 0.5)
    assert not measured.given.any(), "runs with different shares are measured alike"


def _trained(folder: Path, stop_after: int, share: float) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    loop = LoopSettings(
        num_steps=4, optimiser=OptimiserSettings(lr=1e-3), warmup_steps=1, checkpoint_every=1, validate_every=4
    )
    folder.mkdir(exist_ok=True)
    losses = DiTLossSettings(batch_size=8, given_share=share)
    model = awake_model()
    run = train_dit(model, lambda _: batch(), loop, losses, folder, validation=batch(2), bfloat16=False)
    reports = [report.values for report in islice(run, stop_after)]
    return {name: each.detach().clone() for name, each in model.named_parameters()}, reports


def test_a_run_with_given_frames_that_was_stopped_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    whole, reports = _trained(tmp_path / "whole", 5, share=0.5)
    _trained(tmp_path / "broken", 2, share=0.5)
    resumed, rest = _trained(tmp_path / "broken", 5, share=0.5)
    assert [each["loss"] for each in rest] == [each["loss"] for each in reports[2:]] and len(rest) == 2
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert "val_given" in reports[-1]
    _, plain = _trained(tmp_path / "plain", 5, share=0.0)
    assert "val_given" not in plain[-1] and plain[0]["loss"] != reports[0]["loss"]


def test_the_built_in_models_loss_leaves_given_frames_out() -> None:
    samples, none = batch(4), torch.zeros(4, dtype=torch.bool)
    noise = torch.randn(samples.latents.shape, generator=generator_for(2, 0))
    model, sigma = awake_model(), torch.full((4,), 0.5)
    given = torch.tensor([[True, False]] * 4)
    with torch.no_grad():
        found = dit_loss(model, samples, sigma, noise, none, given, bfloat16=False)
        changed = replace(samples, latents=samples.latents.clone())
        other_noise = noise.clone()
        other_noise[:, :, 0] += 1
        assert torch.equal(found, dit_loss(model, changed, sigma, other_noise, none, given, bfloat16=False))
        changed.latents[:, :, 0] += 1
        assert not torch.equal(found, dit_loss(model, changed, sigma, noise, none, given, bfloat16=False))


def test_means_over_all_frames_become_means_over_those_that_are_open() -> None:
    given = torch.tensor([[False, False, False, False], [True, False, False, True]])
    assert of_open_frames(torch.tensor([3.0, 3.0]), given).tolist() == [3.0, 6.0]


def test_what_comes_after_the_noisy_latent_is_passed_on_as_it_is() -> None:
    told: list[tuple[Tensor, ...]] = []
    clean = torch.zeros(1, 12, 2, 2, 2)
    network = beside_given(
        lambda noisy, *others: told.append(others) or noisy, clean, clean, torch.zeros(1, 2, dtype=torch.bool)
    )
    text = torch.ones(3)
    network(clean, text, text + 1)
    assert told[0][0] is text and len(told[0]) == 2
