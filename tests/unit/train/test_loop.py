"""The loop: exact resume, schedules, averages, and what happens when numbers go bad."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from daifuku.errors import TrainingError
from daifuku.train.checkpoint import newest_checkpoint
from daifuku.train.ema import EMA
from daifuku.train.loop import Company, LoopSettings, lr_factor, train
from daifuku.train.muon import Muon, OptimiserSettings, orthogonalise

SETTINGS = LoopSettings(
    num_steps=12,
    optimiser=OptimiserSettings(lr=0.01),
    warmup_steps=2,
    ema_decay=0.9,
    checkpoint_every=5,
    validate_every=4,
)


class Regression:
    """A small problem whose data are a function of the step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))
        self.seen: list[int] = []

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        self.seen.append(step)
        x = torch.randn(16, 4, generator=generator)
        return (self.model(x) - x.sum(dim=1, keepdim=True)).square().mean(), {}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_run_killed_between_checkpoints_ends_bit_identical_to_an_unbroken_one(tmp_path: Path) -> None:
    whole = Regression()
    (tmp_path / "whole").mkdir()
    losses = {r.step: r.values["loss"] for r in train(whole.model, whole.loss, SETTINGS, tmp_path / "whole")}

    (tmp_path / "broken").mkdir()
    first = Regression()
    run = train(first.model, first.loss, SETTINGS, tmp_path / "broken")
    for _ in range(8):
        next(run)
    run.close()
    second = Regression()
    again = {r.step: r.values["loss"] for r in train(second.model, second.loss, SETTINGS, tmp_path / "broken")}

    assert second.seen[0] == 5, "it goes on from the last checkpoint, not from the last step"
    assert again == {step: loss for step, loss in losses.items() if step > 5}
    for name, weight in weights(whole.model).items():
        assert torch.equal(weight, weights(second.model)[name]), name


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path: Path) -> None:
    short, longer = Regression(), Regression()
    list(train(short.model, short.loss, SETTINGS, tmp_path))
    more = LoopSettings(num_steps=15, optimiser=SETTINGS.optimiser, warmup_steps=2, ema_decay=0.9)
    list(train(longer.model, longer.loss, more, tmp_path))
    assert longer.seen == [12, 13, 14]


def test_a_run_of_an_earlier_version_goes_on_while_what_is_new_is_off(tmp_path: Path) -> None:
    task, known = Regression(), {"optimiser.lr": "0.01", "dropout": "0.0"}
    list(train(task.model, task.loss, SETTINGS, tmp_path, company=Company(conditions=known)))

    def resumed(**changes: str) -> list[object]:
        return list(train(task.model, task.loss, SETTINGS, tmp_path, company=Company(conditions=known | changes)))

    assert resumed(given_share="0.0", distill="None") == []
    with pytest.raises(TrainingError, match=r"given_share is 0\.2 and was None\."):
        resumed(given_share="0.2", distill="None")
    with pytest.raises(TrainingError, match=r"dropout is False and was 0\.0\."):
        resumed(dropout="False")


def test_the_model_ends_with_the_averaged_weights(tmp_path: Path) -> None:
    task = Regression()
    list(train(task.model, task.loss, SETTINGS, tmp_path))
    saved = newest_checkpoint(tmp_path)
    assert saved is not None
    for name, weight in weights(task.model).items():
        assert torch.equal(weight, saved.groups["ema"][name])
        assert not torch.equal(weight, saved.groups["model"][name])


def test_validation_sees_the_averaged_weights_and_training_goes_on_with_its_own(tmp_path: Path) -> None:
    task = Regression()
    measured: list[dict[str, Tensor]] = []

    def validate() -> dict[str, float]:
        measured.append(weights(task.model))
        return {"val": 1.0}

    reports = list(train(task.model, task.loss, SETTINGS, tmp_path, validate=validate))
    assert [r.step for r in reports if "val" in r.values] == [4, 8, 12]
    assert torch.equal(measured[-1]["0.weight"], weights(task.model)["0.weight"])
    without = Regression()
    (tmp_path / "without").mkdir()
    plain = list(train(without.model, without.loss, SETTINGS, tmp_path / "without"))
    assert plain[-1].values["loss"] == reports[-1].values["loss"]


def test_a_loss_that_is_not_finite_stops_before_it_touches_a_weight(tmp_path: Path) -> None:
    task = Regression()
    before = weights(task.model)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        value, values = task.loss(step, generator)
        return value * math.nan, values

    with pytest.raises(TrainingError, match="step 0"):
        list(train(task.model, loss, SETTINGS, tmp_path))
    assert all(torch.equal(before[name], weight) for name, weight in weights(task.model).items())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    task = Regression()
    list(train(task.model, task.loss, SETTINGS, tmp_path))
    other = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
    with pytest.raises(TrainingError, match="other sizes"):
        list(train(other, task.loss, SETTINGS, tmp_path))


def test_a_truncated_checkpoint_of_an_older_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file({"model/weight": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors is damaged"):
        newest_checkpoint(tmp_path)


def test_the_learning_rate_warms_up_stays_and_falls_to_almost_zero() -> None:
    settings = LoopSettings(num_steps=100, optimiser=SETTINGS.optimiser, warmup_steps=10, decay_share=0.2)
    factors = [lr_factor(step, settings) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[10:80]) == {1.0}
    assert factors[80:] == sorted(factors[80:], reverse=True)
    assert factors[-1] == pytest.approx(0.05)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 16, 40), (3, 40, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert 0.5 < values.min() < values.max() < 1.4


def test_muon_solves_a_least_squares_problem() -> None:
    torch.manual_seed(0)
    target = torch.randn(6, 10)
    model = nn.Linear(10, 6)
    optimiser = Muon(model, OptimiserSettings(lr=0.2, weight_decay=0.0))
    for step in range(300):
        x = torch.randn(64, 10)
        (model(x) - x @ target.T).square().mean().backward()
        optimiser.step(1 - step / 300)
        model.zero_grad()
    assert (model.weight - target).abs().max() < 0.05


def test_frozen_parameters_stay_as_they_are(tmp_path: Path) -> None:
    task = Regression()
    task.model[0].requires_grad_(False)
    before = weights(task.model)
    list(train(task.model, task.loss, SETTINGS, tmp_path))
    assert torch.equal(before["0.weight"], task.model[0].weight)
    assert not torch.equal(before["2.weight"], task.model[2].weight)


def test_a_young_average_forgets_the_random_start() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 100.0)
    ema = EMA(model, decay=0.999)
    nn.init.constant_(model.weight, 1.0)
    for _ in range(50):
        ema.update(model)
    assert ema.weights["weight"].item() == pytest.approx(1.0, abs=0.01)


def test_a_run_that_ended_before_its_first_checkpoint_leaves_no_line_of_it_in_the_log(tmp_path: Path) -> None:
    first = Regression()
    run = train(first.model, first.loss, SETTINGS, tmp_path)
    for _ in range(3):
        next(run)
    del run
    second = Regression()
    list(train(second.model, second.loss, SETTINGS, tmp_path))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    task = Regression()
    spare = nn.Parameter(torch.zeros(1), requires_grad=False)
    task.model.register_parameter("spare", spare)
    with pytest.raises(TrainingError, match="after step 10 the weight spare is not finite"):
        for report in train(task.model, task.loss, SETTINGS, tmp_path):
            if report.step == 9:
                spare.fill_(math.inf)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 5
