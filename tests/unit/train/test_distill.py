"""What a student learns from its teacher: formulas, answers without loss, and whose gradients there are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.sample.guidance import Caption, Network
from daifuku.sample.schedule import linear_quadratic
from daifuku.train.config import parse_config
from daifuku.train.distill import (
    consistency_loss,
    guidance_loss,
    guided_teacher,
    objective,
    phase_ends,
    progressive_loss,
)
from daifuku.train.flow import Noised
from daifuku.train.initialise import initialise_dit
from daifuku.train.lora import LAYERS, add_lora
from daifuku.train.sections import DistillSection, KindSection

NULL = Caption(torch.zeros(1, 1, 8), torch.zeros(1, 1, dtype=torch.bool))
SIZES = DiTConfig(
    num_blocks=2, num_heads=2, head_dim=8, text_width=8, video_mlp_width=16, text_mlp_width=16, text_features=8
)


@pytest.fixture
def batch() -> Noised:
    draw = torch.Generator().manual_seed(0)
    return Noised(
        clean=torch.randn(4, 12, 2, 4, 4, generator=draw),
        noise=torch.randn(4, 12, 2, 4, 4, generator=draw),
        sigma=torch.tensor([0.05, 0.3, 0.6, 0.95]),
        text=torch.randn(4, 5, 8, generator=draw),
        mask=torch.ones(4, 5, dtype=torch.bool),
        given=torch.zeros(4, 2, dtype=torch.bool),
    )


def small_dit() -> AsymmDiT:
    dit = AsymmDiT(SIZES)
    initialise_dit(dit, torch.Generator().manual_seed(0))
    for parameter in dit.parameters():
        # A fresh one answers zero whatever it is asked.
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    return dit


def linear(a: float, b: float) -> Network:
    """A velocity whose field is linear in the latent, and whose way of any length is therefore known."""
    return lambda latent, sigma, text, mask: a * latent + b * sigma.reshape(-1, 1, 1, 1, 1)


def section(method: str, **values: Any) -> DistillSection:
    return DistillSection.model_validate({"method": method, **values})


def test_a_guided_teacher_goes_away_from_the_empty_prompt_and_has_no_gradient(batch: Noised) -> None:
    asked: list[tuple[Tensor, Tensor]] = []
    weight = torch.ones((), requires_grad=True)

    def network(latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        asked.append((text, mask))
        return weight * (latent + text.sum())

    null = Caption(torch.full((1, 2, 8), 0.5), torch.ones(1, 2, dtype=torch.bool))
    velocity = guided_teacher(network, null, 3.0)(batch.clean, batch.sigma, batch.text, batch.mask)
    (caption, _), (empty, empty_mask) = asked
    assert torch.equal(empty[2, :2], null.features[0]) and empty[:, 2:].abs().max() == 0
    assert empty_mask[0].tolist() == [True, True, False, False, False], "as long as the captions, for compiled blocks"
    towards, away = batch.clean + caption.sum(), batch.clean + empty.sum()
    torch.testing.assert_close(velocity, away + 3.0 * (towards - away))
    assert not velocity.requires_grad


def test_without_guidance_the_empty_prompt_is_not_asked(batch: Noised) -> None:
    asked: list[Tensor] = []

    def network(latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        asked.append(text)
        return latent

    guided_teacher(network, NULL, 1.0)(batch.clean, batch.sigma, batch.text, batch.mask)
    assert len(asked) == 1


def test_a_student_that_answers_as_the_guided_teacher_has_no_loss_and_any_other_has(batch: Noised) -> None:
    teacher = linear(0.5, 1.0)
    assert guidance_loss(teacher, teacher, batch).abs().max() == 0
    off = guidance_loss(linear(0.5, 1.5), teacher, batch)
    torch.testing.assert_close(off, (0.5 * batch.sigma) ** 2)


@pytest.mark.parametrize("teacher_steps", [1, 2, 5])
def test_one_step_that_goes_as_far_as_the_teachers_many_has_no_loss(teacher_steps: int, batch: Noised) -> None:
    own = section("progressive", num_steps=8, linear_steps=4, teacher_steps=teacher_steps)
    sigmas = torch.tensor(linear_quadratic(8, 0.1, 4))

    def many(latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """In closed form: x + h a x, so many times."""
        place = (sigmas[:, None] - sigma).abs().argmin(dim=0)
        way = (sigmas[place] - sigmas[place + 1]).reshape(-1, 1, 1, 1, 1)
        return ((1 + 0.5 * way / teacher_steps) ** teacher_steps - 1) / way * latent

    assert progressive_loss(own, many, linear(0.5, 0.0), batch).max() < 1e-9
    assert progressive_loss(own, linear(0.4, 0.0), linear(0.5, 0.0), batch).min() > 1e-3


def test_a_samples_level_tells_its_point_of_the_schedule_and_equal_parts_get_equal_shares(batch: Noised) -> None:
    seen: list[Tensor] = []

    def student(latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        seen.append(sigma)
        return latent

    own = section("progressive", num_steps=8, linear_steps=4)
    progressive_loss(own, student, linear(1.0, 0.0), batch)
    sigmas = linear_quadratic(8, 0.1, 4)
    assert seen[0].tolist() == pytest.approx([sigmas[7], sigmas[5], sigmas[3], sigmas[0]])


def test_a_student_that_goes_where_the_way_ends_has_no_loss(batch: Noised) -> None:
    # A constant field is followed to the same end from everywhere on its way.
    constant = linear(0.0, 0.0)
    own = section("consistency", num_steps=8, linear_steps=4, num_phases=2)

    def straight(latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return torch.full_like(latent, 0.7)

    assert consistency_loss(own, straight, straight, _nothing, batch).max() < 1e-6
    assert consistency_loss(own, constant, straight, _nothing, batch).min() > 1e-3


def test_at_the_end_of_its_phase_the_target_is_where_the_teacher_stands(batch: Noised) -> None:
    """Where a step of the teacher ends there, the averaged student is not believed, whatever it says."""
    own = section("consistency", num_steps=8, linear_steps=4, num_phases=8)
    teacher, wild = linear(0.5, 0.0), linear(100.0, 7.0)
    student = linear(0.4, 0.0)
    calls: list[bool] = []
    now_wild = False

    @contextmanager
    def averaged() -> Iterator[None]:
        nonlocal now_wild
        now_wild = True
        yield
        now_wild = False

    def network(latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        calls.append(now_wild)
        return (wild if now_wild else student)(latent, sigma, text, mask)

    found = consistency_loss(own, network, teacher, averaged, batch)
    assert calls == [True, False], "the target comes first"
    torch.testing.assert_close(found, consistency_loss(own, student, teacher, _nothing, batch))


def test_small_errors_count_squared_and_large_ones_as_they_are(batch: Noised) -> None:
    own = section("consistency", num_steps=1, linear_steps=0, huber=1e-3)

    def student(error: float) -> Network:
        return lambda latent, sigma, text, mask: torch.full_like(latent, error)

    zero = linear(0.0, 0.0)
    small, large = (consistency_loss(own, student(error), zero, _nothing, batch)[0] for error in (1e-5, 10.0))
    assert float(small) == pytest.approx(1e-5**2 / 2e-3, rel=0.01)
    assert float(large) == pytest.approx(10.0 - 1e-3, rel=1e-4)


def test_phases_have_equal_parts_of_the_schedule() -> None:
    assert phase_ends(8, 2) == [4, 4, 4, 4, 8, 8, 8, 8]
    assert phase_ends(5, 1) == [5] * 5
    assert phase_ends(3, 3) == [1, 2, 3]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize("method", ["guidance", "progressive", "consistency"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_only_the_student_learns_and_its_teacher_stays_what_it_was(kind: str, method: str, batch: Noised) -> None:
    dit = small_dit()
    if kind == "lora":
        add_lora(dit, dict.fromkeys(LAYERS, KindSection(rank=2, alpha=2)), seed=0)
    own = section(method, num_steps=4, linear_steps=2, guidance_scale=3.0)
    learnt = objective(own, dit, NULL, bfloat16=False)
    wanted = _wanted(dit, own, batch) if method == "guidance" else None
    trained = {name: p for name, p in dit.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained) == (kind == "lora")
    learnt(batch).sum().backward()
    for name, parameter in dit.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().max() > 0)) <= (name in trained)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.5)
    if wanted is not None:
        own_answer = dit(_noisy(batch), batch.sigma, batch.text, batch.mask)
        torch.testing.assert_close(learnt(batch), (own_answer - wanted).square().mean(dim=(1, 2, 3, 4)))
    assert trained.keys() == {name for name, p in dit.named_parameters() if p.requires_grad}


def _noisy(batch: Noised) -> Tensor:
    return torch.lerp(batch.clean, batch.noise, batch.sigma.reshape(-1, 1, 1, 1, 1))


@torch.no_grad()
def _wanted(dit: AsymmDiT, own: DistillSection, batch: Noised) -> Tensor:
    towards = dit(_noisy(batch), batch.sigma, batch.text, batch.mask)
    away = dit(_noisy(batch), batch.sigma, batch.text, torch.zeros_like(batch.mask))
    return away + own.guidance_scale * (towards - away)


@pytest.mark.parametrize(
    "table, words",
    [
        ({"method": "guidance", "guidance_scale": 0.5}, "guidance_scale: input should be greater than or equal to 1"),
        ({"method": "progressive", "num_steps": 8, "linear_steps": 8}, "linear_steps=8 leaves nothing of 8 steps"),
        ({"method": "consistency", "num_phases": 51}, "num_phases is at most the number of steps, 50"),
        ({"method": "magic"}, "'guidance', 'progressive' or 'consistency'"),
    ],
)
def test_what_cannot_be_learnt_is_refused(table: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_config({"method": "full", "output": "run", "data": [{"folder": "data"}], "distill": table})


def test_a_student_from_scratch_is_refused() -> None:
    content = {"method": "vae", "output": "run", "data": [{"folder": "data"}], "distill": {"method": "guidance"}}
    with pytest.raises(InvalidRequest, match='goes with method = "lora" or "full"'):
        parse_config(content)
