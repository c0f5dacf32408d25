"""A quantised file stays as it is stored, unless something else is asked for; the video is the same."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from daifuku.config import RuntimeConfig
from daifuku.events import Notice
from daifuku.pipeline import Pipeline, load
from daifuku.request import GenerateRequest
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.weights.encoded_linear import EncodedLinear

REQUEST = GenerateRequest(prompt="a red ball", width=32, height=32, num_frames=7, num_inference_steps=2, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, its transformer and its T5 as files of 8-bit floats."""
    root = tmp_path_factory.mktemp("fp8") / "model"
    shutil.copytree(BUILT_IN_FOLDER, root)
    for part, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = root / part / f"{stem}.safetensors"
        tensors = load_file(path)
        codes = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items() if "block" in name}
        codes = {name: tensor for name, tensor in codes.items() if tensor.dim() == 2}
        path.unlink()
        save_file(tensors | codes, path.with_name("any.safetensors" if part == "text_encoder" else path.name))
    return root


def frames(pipeline: Pipeline) -> tuple[np.ndarray, list[str]]:
    events = list(pipeline.run(REQUEST))
    notices = [event.text for event in events if isinstance(event, Notice)]
    return events[-1].video.frames, notices


@pytest.mark.parametrize("residency", ["resident", "offload", "stream"])
@pytest.mark.parametrize("tabulate", [True, False])
def test_weights_that_stay_as_stored_make_the_same_video(folder: Path, residency: str, tabulate: bool):
    run = RuntimeConfig(residency=residency, tabulate=tabulate)
    stored, notices = frames(load(folder, device="cpu", runtime=run))
    run = RuntimeConfig(residency=residency, tabulate=tabulate, quantise="none", quantise_text="none")
    decoded, silence = frames(load(folder, device="cpu", runtime=run))
    assert np.array_equal(stored, decoded)
    assert any("stays fp8 e4m3fn" in notice for notice in notices) and not silence


def test_a_plan_counts_the_bits_of_the_file(folder: Path):
    pipeline = load(folder, device="cpu", runtime=RuntimeConfig(remember_text=False))
    planner = pipeline.planner(pipeline.resolve(REQUEST))
    plan = planner.choose()
    assert plan.runtime.quantise == plan.runtime.quantise_text == "stored"
    decoded = planner.evaluate(RuntimeConfig(quantise="none", quantise_text="none"))
    for kept, plain in zip(plan.stages[:2], decoded.stages[:2], strict=True):
        assert kept.weight_bytes < 0.6 * plain.weight_bytes, kept.name
    dit = pipeline.parts.dit(plan.runtime, torch.device("cpu"))
    assert any(isinstance(layer, EncodedLinear) for layer in dit.modules())


def test_a_plan_for_plain_weights_stays_what_it_was():
    pipeline = load(device="cpu")
    plan = pipeline.planner(pipeline.resolve(REQUEST)).choose()
    assert plan.runtime.quantise == plan.runtime.quantise_text == "none"
