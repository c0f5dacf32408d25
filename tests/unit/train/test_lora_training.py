"""LoRA layers on the transformer: what they leave alone, what they learn, on quantised weights too."""

import pytest
import torch
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.quantiser import quantise
from daifuku.train.initialise import initialise_dit
from daifuku.train.lora import add_known_lora, add_lora, kept_pairs, lora_pairs
from daifuku.train.recompute import recompute
from daifuku.train.sections import KindSection, LoraSection, RecomputeSection

KINDS = LoraSection(video_mlp=KindSection(rank=2, alpha=1.0), text_mlp=KindSection(rank=3)).kinds
CONFIG = DiTConfig(
    num_blocks=2, num_heads=2, head_dim=32, text_width=64, video_mlp_width=64, text_mlp_width=64, text_features=64
)


def awake_dit() -> AsymmDiT:
    """Random weights without the zeros of initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dit = AsymmDiT(CONFIG)
    generator = torch.Generator().manual_seed(0)
    initialise_dit(dit, generator)
    for parameter in dit.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return dit


def velocity(dit: AsymmDiT) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latent, text = torch.randn(1, 12, 2, 4, 4, generator=generator), torch.randn(1, 5, 64, generator=generator)
    return dit(latent, torch.tensor([0.4]), text, torch.ones(1, 5, dtype=torch.bool))


def gradients(dit: AsymmDiT) -> dict[str, Tensor]:
    velocity(dit).square().mean().backward()
    return {name: p.grad for name, p in dit.named_parameters() if p.grad is not None}


def stir(dit: AsymmDiT) -> AsymmDiT:
    """LoRAs that change something."""
    generator = torch.Generator().manual_seed(2)
    for parameter in dit.parameters():
        if parameter.requires_grad and parameter.ndim == 1:
            parameter.data *= 0.5 + torch.rand(len(parameter), generator=generator)
        elif parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return dit


def test_a_new_lora_changes_nothing_bit_for_bit_and_only_its_matrices_learn() -> None:
    before = velocity(awake_dit())
    dit = add_lora(awake_dit(), KINDS, seed=0)
    assert torch.equal(velocity(dit), before)
    assert {name.split(".")[-3] for name, p in dit.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_a_lora_that_is_known_learns_on_from_where_it_was() -> None:
    learnt = stir(add_lora(awake_dit(), KINDS | {"text_qkv": KindSection(rank=3, alpha=1.5)}, seed=0))
    pairs = lora_pairs(learnt)
    again = add_known_lora(awake_dit(), pairs)
    assert torch.allclose(velocity(again), velocity(learnt), atol=1e-6)
    assert gradients(again).keys() == gradients(learnt).keys()
    assert {name: (pair.rank, pair.alpha) for name, pair in lora_pairs(again).items()} == {
        name: (pair.rank, pair.alpha) for name, pair in pairs.items()
    }


def test_what_a_checkpoint_keeps_of_a_lora_is_the_lora() -> None:
    even = {name: KindSection(rank=2, alpha=2.0) for name in KINDS}
    dit = stir(add_lora(awake_dit(), even, seed=0))
    kept = kept_pairs({name: p for name, p in dit.named_parameters() if p.requires_grad})
    for name, pair in lora_pairs(dit).items():
        assert torch.equal(kept[name].down, pair.down) and torch.equal(kept[name].up, pair.up)
        assert kept[name].alpha == pair.alpha == 2.0
    assert len(kept) > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_dora_changes_nothing_and_learns_a_magnitude_for_each_row(dtype: torch.dtype) -> None:
    base = awake_dit().to(dtype).float()
    before = velocity(base)
    norms = base.get_parameter("blocks.0.attention.video_qkv.weight").norm(dim=1)
    dit = add_lora(awake_dit().to(dtype), KINDS, seed=0, dora=True)
    layer = dit.get_submodule("blocks.0.attention.video_qkv")
    # In bfloat16 PEFT by itself starts with rounded norms, and so with another model.
    assert torch.equal(layer.get_parameter("lora_magnitude_vector.default.weight"), norms)
    assert torch.equal(velocity(dit.float()), before)
    trained = {name.split(".")[-3] for name, p in dit.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B", "lora_magnitude_vector"}


def test_a_dora_of_a_weight_with_rows_of_zeros_is_refused_by_the_name_of_its_kind() -> None:
    dit = awake_dit()
    nn.init.zeros_(dit.get_parameter("blocks.0.text_mlp.down.weight")[3])
    with pytest.raises(InvalidRequest, match=r"blocks\.0\.text_mlp\.down has rows of zeros.*lora\.text_mlp\.rank = 0"):
        add_lora(dit, KINDS, seed=0, dora=True)


def test_every_kind_has_its_own_rank_and_alpha() -> None:
    pairs = lora_pairs(add_lora(awake_dit(), KINDS, seed=0))
    assert {
        (name.removeprefix("blocks.0."), pair.rank, pair.alpha) for name, pair in pairs.items() if ".0." in name
    } == {
        ("attention.video_qkv", 16, 16.0),
        ("attention.video_out", 16, 16.0),
        ("attention.text_qkv", 16, 16.0),
        ("attention.text_out", 16, 16.0),
        ("video_mlp.up", 2, 1.0),
        ("video_mlp.down", 2, 1.0),
        ("text_mlp.up", 3, 16.0),
        ("text_mlp.down", 3, 16.0),
    }


def test_the_same_seed_gives_the_same_lora_and_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    found = [lora_pairs(add_lora(awake_dit(), KINDS, seed=seed))["blocks.1.video_mlp.up"].down for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("name, tolerance", [("int8", 0.05), ("nf4", 0.5), ("fp8_storage", 0.15)])
def test_on_a_quantised_base_a_lora_learns_what_the_dequantised_weights_teach(
    name: str, tolerance: float, dora: bool
) -> None:
    packed = awake_dit()
    quantise(packed, name)
    plain = awake_dit()
    with torch.no_grad():
        for layer, module in packed.named_modules():
            if hasattr(module, "dequantised"):
                plain.get_submodule(layer).weight.copy_(module.dequantised(torch.float32))
    found, expected = (gradients(stir(add_lora(dit, KINDS, seed=0, dora=dora))) for dit in (packed, plain))
    assert found.keys() == expected.keys() and len(found) == (3 if dora else 2) * (8 + 5)
    for layer, gradient in expected.items():
        torch.testing.assert_close(found[layer], gradient, rtol=1e-4, atol=1e-6, msg=layer)
    exact = gradients(stir(add_lora(awake_dit(), KINDS, seed=0, dora=dora)))
    off = [float((found[layer] - exact[layer]).norm() / exact[layer].norm()) for layer in exact]
    assert 0 < sum(off) / len(off) < tolerance


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_a_quantised_base_keeps_no_weights_in_high_precision_for_the_way_back(dora: bool) -> None:
    dit = awake_dit()
    quantise(dit, "int8")
    add_lora(dit, KINDS, seed=0, dora=dora)
    kept: list[tuple[int, ...]] = []
    weights = {tuple(shape) for shape in ((192, 64), (64, 192), (128, 64), (64, 128))}

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        velocity(dit)
    assert kept and not weights.intersection(kept)


@pytest.mark.parametrize("policy", [{"block": -1}, {"attention": 1, "mlp": -1}, {"block": 1, "mlp": 2}])
def test_recomputing_gives_the_same_gradients_bit_for_bit_and_keeps_less(policy: dict[str, int]) -> None:
    def learn(dit: AsymmDiT) -> tuple[dict[str, Tensor], int]:
        kept = 0

        def note(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = velocity(dit).square().mean()
        loss.backward()
        return {name: p.grad for name, p in dit.named_parameters() if p.grad is not None}, kept

    plain, kept = learn(awake_dit())
    found, kept_now = learn(recompute(awake_dit(), RecomputeSection(**policy)))
    assert plain.keys() == found.keys()
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    assert kept_now < 0.8 * kept
