"""The networks and the sampler against reference vectors (see tests/data/README.md)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daifuku.sample.guidance import Caption, conditioned, guided, guided_together
from daifuku.sample.schedule import linear_quadratic
from daifuku.sample.solvers.euler import euler
from daifuku.weights.load import load_dit, load_vae

TOLERANCE = 2e-4

Golden = Callable[[str], dict[str, Tensor]]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("sigma", ["0.37", "1.0"])
@pytest.mark.parametrize("case", [0, 1, 2], ids=["partial prompt", "empty prompt", "one frame"])
@torch.no_grad()
def test_the_velocity_equals_the_reference(golden: Golden, golden_folder: Path, case: int, sigma: str):
    io = {name.removeprefix(f"case{case}."): tensor for name, tensor in golden("dit_io").items()}
    dit = load_dit(golden_folder)
    velocity = dit(io["x"], torch.tensor([float(sigma)]), io["y_feat"], io["y_mask"].bool())
    assert_same(velocity, io[f"sigma{sigma}.out"])


@pytest.mark.parametrize("batched", [False, True])
@torch.no_grad()
def test_eight_guided_euler_steps_equal_the_reference(
    golden: Golden, golden_folder: Path, golden_config: dict[str, Any], batched: bool
):
    io, settings = golden("dit_io"), golden_config["sample"]
    prompt = Caption(io["sample.y_feat"], io["sample.y_mask"].bool())
    null = Caption(io["sample.null_feat"], io["sample.null_mask"].bool())
    dit = load_dit(golden_folder)
    if batched:
        velocity = guided_together(dit, prompt, null, lambda sigma: settings["cfg"])
    else:
        velocity = guided(conditioned(dit, prompt), conditioned(dit, null), lambda sigma: settings["cfg"])
    *_, latent = euler(velocity, io["sample.z"], linear_quadratic(settings["steps"], settings["threshold_noise"]))
    assert_same(latent, io["sample.latents_dit"])
    assert_same(load_vae(golden_folder).unwhiten(latent), io["sample.latents_vae"])


def test_schedules_equal_the_reference(golden_config: dict[str, Any]):
    assert golden_config["schedules"]
    for name, sigmas in golden_config["schedules"].items():
        steps, threshold, linear = name.split(",")
        ours = linear_quadratic(int(steps), float(threshold), None if linear == "None" else int(linear))
        assert ours == pytest.approx(sigmas, abs=1e-9)


@torch.no_grad()
def test_the_encoder_equals_the_reference(golden: Golden, golden_folder: Path):
    io = golden("vae_io")
    posterior = load_vae(golden_folder / "encoder.safetensors").encode(io["video"])
    assert_same(posterior.mean, io["mean"])
    assert_same(posterior.logvar, io["logvar"])


@torch.no_grad()
def test_the_decoder_equals_the_reference_whole_and_frame_by_frame(golden: Golden, golden_folder: Path):
    io = golden("vae_io")
    vae = load_vae(golden_folder / "decoder.safetensors")
    assert vae.decoder is not None
    video = vae.decode(io["z"])
    assert_same(video, io["decoded"])
    assert_same(((video + 1) / 2).clamp(0, 1).movedim(1, -1), io["frames"])
    assert_same(torch.cat(list(vae.decoder.chunks(io["z"])), dim=2), io["decoded"])
