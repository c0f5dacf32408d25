"""LoRAs in another layout: the same change, and the same matrices where both layouts can hold them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MochiTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from daifuku.config import DiTConfig
from daifuku.errors import InvalidRequest, UnwritableOutput
from daifuku.model.dit import AsymmDiT
from daifuku.weights import publish
from daifuku.weights.convert import plan_convert
from daifuku.weights.files import metadata
from daifuku.weights.load import load_dit
from daifuku.weights.lora import read_lora
from daifuku.weights.save import save_dit

CONFIG = DiTConfig(
    num_blocks=3, num_heads=2, head_dim=16, text_width=24, video_mlp_width=85, text_mlp_width=64, text_features=16,
    time_features=16,
)  # fmt: skip
WIDTH, TEXT, MLP = CONFIG.video_width, CONFIG.text_width, CONFIG.video_mlp_width
RANK, ALPHA = 3, 6.0

FUSED = {
    "blocks.0.attn.qkv_x": (3 * WIDTH, WIDTH),
    "blocks.1.attn.qkv_y": (3 * WIDTH, TEXT),
    "blocks.2.attn.proj_x": (WIDTH, WIDTH),
    "blocks.1.attn.proj_y": (TEXT, WIDTH),
}
"""What the original can change."""

ALL = FUSED | {
    "blocks.1.mlp_x.w1": (2 * MLP, WIDTH),
    "blocks.1.mod_y": (4 * TEXT, WIDTH),
    "blocks.2.mod_y": (TEXT, WIDTH),
    "t5_yproj": (TEXT, 16),
    "final_layer.mod": (2 * WIDTH, WIDTH),
}

SEPARATE = {
    "blocks.0.attn1.to_q": (WIDTH, WIDTH, 2, 4.0),
    "blocks.0.attn1.to_v": (WIDTH, WIDTH, 3, 6.0),
    "blocks.1.attn1.add_k_proj": (WIDTH, TEXT, 1, 2.0),
    "blocks.1.attn1.to_out.0": (WIDTH, WIDTH, 2, 1.0),
}
"""With rank and alpha: apart, and of several ranks."""


def write_original(path: Path, alpha: float = ALPHA) -> Path:
    torch.manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for name, (rows, cols) in FUSED.items():
        tensors |= {f"{name}.lora_A": torch.randn(RANK, cols), f"{name}.lora_B": torch.randn(rows, RANK)}
    kwargs = {f"{part}_proj_lora_{what}": value for part in ("qkv", "out") for what, value in
              (("rank", RANK), ("alpha", alpha), ("dropout", 0.0))}  # fmt: skip
    save_file(tensors, path, {"kwargs": json.dumps(kwargs), "modelspec.trigger_phrase": "zxc"})
    return path


def write_comfy(path: Path) -> Path:
    torch.manual_seed(2)
    tensors: dict[str, Tensor] = {}
    for name, (rows, cols) in ALL.items():
        prefix = f"diffusion_model.{name}"
        tensors |= {
            f"{prefix}.lora_down.weight": torch.randn(RANK, cols).half(),
            f"{prefix}.alpha": torch.tensor(ALPHA),
        }
        tensors[f"{prefix}.lora_up.weight"] = torch.randn(rows, RANK).half()
    save_file(tensors, path, {"ss_tag_frequency": "{}"})
    return path


def write_separate(path: Path) -> Path:
    torch.manual_seed(3)
    tensors: dict[str, Tensor] = {}
    for name, (rows, cols, rank, alpha) in SEPARATE.items():
        prefix = f"transformer.transformer_{name}"
        tensors |= {f"{prefix}.lora_A.weight": torch.randn(rank, cols), f"{prefix}.alpha": torch.tensor(alpha)}
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, rank)
    save_file(tensors, path)
    return path


WRITERS = {"original": write_original, "comfy": write_comfy, "separate": write_separate}


def convert(source: Path, target: Path, to: str, **settings: Any) -> Path:
    return publish.run(plan_convert(source, target, to=to, **settings))


def changes(path: Path) -> dict[str, Tensor]:
    return {layer: delta.up @ delta.down for layer, delta in read_lora(path).deltas.items()}


def assert_same_file(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name
    assert metadata(one) == metadata(other) | {"format": "pt"}


@pytest.mark.parametrize("to", ["original", "diffusers", "comfy"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_lora_adds_the_same_in_every_layout(tmp_path: Path, name: str, to: str):
    path = WRITERS[name](tmp_path / "a.safetensors")
    if (name, to) == ("comfy", "original"):
        with pytest.raises(InvalidRequest, match=r"mlp_x.w1.* and 2 more, and the original layout holds"):
            plan_convert(path, tmp_path / "b.safetensors", to=to)
        return
    expected, found = changes(path), changes(convert(path, tmp_path / "b.safetensors", to))
    assert expected.keys() == found.keys()
    for layer, change in expected.items():
        assert torch.allclose(found[layer], change, rtol=1e-5, atol=1e-5), layer


@pytest.mark.parametrize(("name", "back"), [("original", "original"), ("comfy", "comfy")])
def test_a_lora_comes_back_from_diffusers_bit_for_bit(tmp_path: Path, name: str, back: str):
    path = WRITERS[name](tmp_path / "a.safetensors")
    middle = convert(path, tmp_path / "b.safetensors", "diffusers")
    assert_same_file(convert(middle, tmp_path / "c.safetensors", back), path)


def test_separate_matrices_come_back_from_a_fused_layout_bit_for_bit(tmp_path: Path):
    path = convert(write_separate(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", "diffusers")
    middle = convert(path, tmp_path / "c.safetensors", "comfy")
    assert load_file(middle)["diffusion_model.blocks.0.attn.qkv_x.lora_down.weight"].shape == (5, WIDTH)
    assert_same_file(convert(middle, tmp_path / "d.safetensors", "diffusers"), path)


def test_a_fused_change_whose_parts_use_some_of_the_rank_comes_back_bit_for_bit(tmp_path: Path):
    path = write_original(tmp_path / "a.safetensors")
    tensors = load_file(path)
    for part, up in enumerate(tensors["blocks.0.attn.qkv_x.lora_B"].chunk(3)):
        up[:, part] = 0
    save_file(tensors, path, metadata(path))
    middle = convert(path, tmp_path / "b.safetensors", "diffusers")
    assert_same_file(convert(middle, tmp_path / "c.safetensors", "original"), path)


def test_a_fused_change_is_split_with_its_first_matrix_shared(tmp_path: Path):
    path = write_original(tmp_path / "a.safetensors")
    found = load_file(convert(path, tmp_path / "b.safetensors", "diffusers"))
    source = load_file(path)
    for part, up in zip("qkv", source["blocks.0.attn.qkv_x.lora_B"].chunk(3), strict=True):
        prefix = f"transformer.transformer_blocks.0.attn1.to_{part}"
        assert torch.equal(found[f"{prefix}.lora_A.weight"], source["blocks.0.attn.qkv_x.lora_A"])
        assert torch.equal(found[f"{prefix}.lora_B.weight"], up)


def test_the_original_has_one_rank_and_one_alpha_for_each_group(tmp_path: Path):
    path = convert(write_separate(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", "original")
    kwargs = json.loads(metadata(path)["kwargs"])
    # q and v of one block make rank 5, and k of the other is filled up; all have alpha / rank 2.
    assert (kwargs["qkv_proj_lora_rank"], kwargs["qkv_proj_lora_alpha"]) == (5, 10)
    assert (kwargs["out_proj_lora_rank"], kwargs["out_proj_lora_alpha"]) == (2, 1)
    assert {tensor.shape[0] for name, tensor in load_file(path).items() if name.endswith("qkv_y.lora_A")} == {5}


def test_diffusers_and_peft_load_a_converted_lora(tmp_path: Path):
    torch.manual_seed(0)
    dit = AsymmDiT(CONFIG)
    save_dit(dit, tmp_path / "model")
    path = write_original(tmp_path / "a.safetensors")
    there = convert(path, tmp_path / "b.safetensors", "diffusers")
    model = MochiTransformer3DModel.from_pretrained(tmp_path / "model" / "transformer")
    model.load_lora_adapter(there, prefix="transformer", use_safetensors=True)
    latent, text = torch.randn(1, 12, 2, 4, 4), torch.randn(1, 5, 16)
    mask = torch.ones(1, 5, dtype=torch.bool)
    merged = load_dit(tmp_path / "model", loras=[(str(path), 1.0)])
    with torch.no_grad():
        theirs = model(latent, text, torch.tensor([500.0]), mask, return_dict=False)[0]
        ours = merged(latent, torch.tensor([0.5]), text, mask)
        plain = dit(latent, torch.tensor([0.5]), text, mask)
    assert (ours - plain).abs().max() > 0.01
    assert (theirs - ours).abs().max() < 1e-4 * max(1.0, float(ours.abs().max()))


def test_what_a_file_says_about_itself_comes_along(tmp_path: Path):
    path = convert(write_original(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", "comfy")
    assert metadata(path)["modelspec.trigger_phrase"] == "zxc"
    assert "kwargs" not in metadata(path)


def test_a_lora_takes_another_precision(tmp_path: Path):
    path = convert(write_original(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", "comfy", dtype="bfloat16")
    for name, tensor in load_file(path).items():
        assert tensor.dtype == (torch.float32 if name.endswith(".alpha") else torch.bfloat16)


@pytest.mark.parametrize(
    "settings", [{"to": "gguf"}, {"to": "comfy", "quantise": "fp8_scaled"}, {"to": "comfy", "only": ["dit"]}]
)
def test_what_a_lora_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any]):
    path = write_original(tmp_path / "a.safetensors")
    with pytest.raises(InvalidRequest, match="is a LoRA: it is converted --to original, diffusers or comfy"):
        plan_convert(path, tmp_path / "b.safetensors", **settings)


def test_a_lora_is_not_written_over_another_file(tmp_path: Path):
    path = write_original(tmp_path / "a.safetensors")
    with pytest.raises(UnwritableOutput, match="is, or contains, what is to be converted"):
        plan_convert(path, path, to="comfy", force=True)
    with pytest.raises(InvalidRequest, match=r"call it b.safetensors"):
        plan_convert(path, tmp_path / "b", to="comfy")
