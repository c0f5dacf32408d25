"""What one model learnt beyond another, as a LoRA."""

from copy import deepcopy
from pathlib import Path

import torch

from daifuku.config import DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.weights.files import write_safetensors
from daifuku.weights.load import load_dit
from daifuku.weights.lora_extract import extracted
from daifuku.weights.lora_write import pairs_content
from daifuku.weights.save import save_dit

CONFIG = DiTConfig(
    num_blocks=2, num_heads=2, head_dim=16, text_width=24, video_mlp_width=85, text_mlp_width=64, text_features=16,
    time_features=16,
)  # fmt: skip


def model() -> AsymmDiT:
    torch.manual_seed(0)
    return AsymmDiT(CONFIG)


def learnt(before: AsymmDiT, size: float = 0.1) -> AsymmDiT:
    """The same with other weights in every linear layer."""
    after = deepcopy(before)
    for layer in after.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data += size * torch.randn_like(layer.weight)
    return after


def test_with_every_rank_kept_the_lora_on_the_first_model_is_the_second(tmp_path: Path):
    before = model()
    after = learnt(before)
    save_dit(before, tmp_path)
    content = pairs_content(extracted(before, after, rank=1000), "diffusers", about={})
    write_safetensors(tmp_path / "lora.safetensors", content.entries, content.metadata)
    found = load_dit(tmp_path, loras=[(str(tmp_path / "lora.safetensors"), 1.0)]).state_dict()
    for name, expected in after.state_dict().items():
        assert torch.allclose(found[name], expected, atol=1e-5), name


def test_a_lower_rank_leaves_as_little_as_any_change_of_that_rank_can():
    before = model()
    after = learnt(before)
    for name, pair in extracted(before, after, rank=3).items():
        change = after.get_parameter(f"{name}.weight") - before.get_parameter(f"{name}.weight")
        left = torch.linalg.matrix_norm(change - pair.scale * pair.up @ pair.down)
        least = torch.linalg.svdvals(change)[3:].square().sum().sqrt()
        assert pair.rank == 3 and torch.allclose(left, least, rtol=1e-4), name


def test_what_did_not_change_is_left_out():
    before = model()
    after = deepcopy(before)
    after.blocks[1].video_mlp.down.weight.data[0, 0] += 1
    assert list(extracted(before, after, rank=4)) == ["blocks.1.video_mlp.down"]
