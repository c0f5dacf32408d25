"""Finding a model's networks, and where and how precisely they run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from daifuku.config import DiTConfig, RuntimeConfig
from daifuku.errors import CheckpointError, InvalidRequest, ModelNotFound
from daifuku.pipeline import load
from daifuku.request import GenerateRequest
from daifuku.runtime import build
from daifuku.runtime.build import default_dtype, find_device, load_parts, settled
from daifuku.weights.locate import ModelFiles

WEIGHTS = (
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose files are all there, but empty: it is found, and cannot be read."""
    for name in WEIGHTS:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text('{"height": 64, "num_frames": 31}')
    return tmp_path


def test_a_model_is_found_and_knows_its_defaults_before_any_weight_is_read(folder: Path) -> None:
    parts = load_parts(folder, device="cpu")
    assert parts.defaults == {"height": 64, "num_frames": 31}
    with pytest.raises(CheckpointError):
        parts.dit(RuntimeConfig(), parts.device)


def test_a_pipeline_refuses_a_wrong_request_before_any_weight_is_read(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="Try 25 or 31"):
        load(folder, device="cpu")("a red ball", num_frames=30)


def test_a_local_model_is_remembered_by_its_whole_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    info = load_parts(folder.name, device="cpu").info
    assert (info.name, info.device) == (str(folder), "cpu")
    assert info.identity is not None


def test_an_unknown_model_is_refused_at_once() -> None:
    with pytest.raises(ModelNotFound):
        load("no/such/model/anywhere", device="cpu")


def test_a_folder_called_like_the_built_in_model_does_not_hide_it(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BUILT_IN_FOLDER", folder)
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    Path(build.BUILT_IN).mkdir()
    named, default = load_parts(build.BUILT_IN, device="cpu"), load_parts(device="cpu")
    assert named.info == default.info and named.info.name == build.BUILT_IN


@pytest.mark.parametrize("device", ["gpu", "", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(InvalidRequest, match=r"cpu|cuda:0"):
        find_device(device)


def test_the_cpu_is_always_there() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device() == find_device(find_device())


def test_an_unknown_dtype_is_refused_before_any_weight_is_read(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="float32"):
        load(folder, device="cpu", dtype="int4")


@pytest.mark.parametrize(
    "stored, on_gpu",
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.bfloat16)],
)
def test_a_gpu_keeps_float32_weights_and_takes_narrower_ones_as_bfloat16(
    tmp_path: Path, stored: torch.dtype, on_gpu: torch.dtype
) -> None:
    path = tmp_path / "dit.safetensors"
    weights = {"pos_frequencies": torch.zeros(2), "a": torch.zeros(2, dtype=stored), "b": torch.zeros(2, dtype=stored)}
    save_file(weights, path)
    files = ModelFiles(layout="original", root=tmp_path, transformer=(path,))
    assert default_dtype(files, torch.device("cuda")) == on_gpu
    assert default_dtype(files, torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("wins", [True, False])
def test_what_a_plan_leaves_open_is_measured_where_a_pass_is_short(wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "batching_wins", lambda *_: wins)
    cpu, config = torch.device("cpu"), DiTConfig(num_heads=2, head_dim=16, text_width=16, video_mlp_width=32)
    short, long = (GenerateRequest(prompt="", num_frames=7, height=side, width=side) for side in (32, 2048))
    short, long, unguided = short.resolved(), long.resolved(), replace(short, guidance_scale=1.0).resolved()
    run = RuntimeConfig(kernel="sdpa")
    assert settled(run, config, short, cpu).batch_guidance is wins
    assert settled(run, config, unguided, cpu).batch_guidance is False, "there is one caption"
    assert settled(run, config, long, cpu).batch_guidance is False
    assert settled(replace(run, batch_guidance=True), config, long, cpu).batch_guidance is True
