"""What one model learnt beyond another, as a LoRA."""

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from daifuku.config import DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.weights.files import write_safetensors
from daifuku.weights.load import load_dit
from daifuku.weights.lora_extract import extracted, input_moments
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


def run(dit: AsymmDiT, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    latent = torch.randn(2, 12, 2, 4, 4, generator=random)
    text, mask = torch.randn(2, 5, 16, generator=random), torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        return dit(latent, torch.tensor([0.9, 0.3]), text, mask)


def whitened(dit: AsymmDiT) -> dict[str, Tensor]:
    """The moments of inputs that know no direction."""
    layers = {name: layer for name, layer in dit.named_modules() if isinstance(layer, torch.nn.Linear)}
    return {name: torch.eye(layer.in_features, dtype=torch.float64) for name, layer in layers.items()}


def test_with_every_rank_kept_the_lora_on_the_first_model_is_the_second(tmp_path: Path):
    before = model()
    after = learnt(before)
    save_dit(before, tmp_path)
    content = pairs_content(
        extracted(before, after, 1000, input_moments(after, lambda: run(after))), "diffusers", about={}
    )
    write_safetensors(tmp_path / "lora.safetensors", content.entries, content.metadata)
    found = load_dit(tmp_path, loras=[(str(tmp_path / "lora.safetensors"), 1.0)]).state_dict()
    for name, expected in after.state_dict().items():
        assert torch.allclose(found[name], expected, atol=1e-5), name


def test_a_lower_rank_leaves_as_little_as_any_change_of_that_rank_can():
    before = model()
    after = learnt(before)
    for name, pair in extracted(before, after, 3, whitened(before)).items():
        change = after.get_parameter(f"{name}.weight") - before.get_parameter(f"{name}.weight")
        left = torch.linalg.matrix_norm(change - pair.scale * pair.up @ pair.down)
        least = torch.linalg.svdvals(change)[3:].square().sum().sqrt()
        assert pair.rank == 3 and torch.allclose(left, least, rtol=1e-4), name


def test_what_did_not_change_is_left_out():
    before = model()
    after = deepcopy(before)
    after.get_parameter("blocks.1.video_mlp.down.weight").data[0, 0] += 1
    assert list(extracted(before, after, 4, whitened(before))) == ["blocks.1.video_mlp.down"]


def test_a_lora_for_the_inputs_that_come_leaves_less_of_the_output_than_one_for_any_input():
    before = model()
    after = learnt(before)
    moments = input_moments(after, lambda: run(after))

    def error(moments: dict[str, Tensor]) -> float:
        found = deepcopy(before)
        for name, pair in extracted(before, after, 4, moments).items():
            found.get_parameter(f"{name}.weight").data += pair.scale * pair.up @ pair.down
        return (run(found) - run(after)).square().mean().item()

    assert error(moments) < 0.7 * error(whitened(before))


def test_moments_are_those_of_what_reaches_a_layer_and_no_hook_stays():
    layer = torch.nn.Sequential(torch.nn.Linear(2, 1))
    x = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
    found = input_moments(layer, lambda: layer(x))
    assert torch.equal(found["0"], torch.tensor([[5.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    assert not layer[0]._forward_pre_hooks
