"""DoRA files of every tool: the same weights out of the same file, in every layout that holds it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from daifuku.errors import CheckpointError, InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.weights.files import metadata
from daifuku.weights.load import load_dit
from daifuku.weights.lora import combined, linear_shapes, read_lora
from daifuku.weights.low_rank import Dora, LowRank, merged
from daifuku.weights.save import save_dit
from tests.unit.weights.test_lora import CONFIG, MLP, TEXT, WIDTH, as_diffusers
from tests.unit.weights.test_lora_write import convert

RANK, ALPHA = 3, 6.0

SIZES = {
    "blocks.0.attn.qkv_x": (3 * WIDTH, WIDTH),
    "blocks.1.attn.qkv_y": (3 * WIDTH, TEXT),
    "blocks.2.attn.proj_x": (WIDTH, WIDTH),
    "blocks.1.mlp_x.w1": (2 * MLP, WIDTH),
    "final_layer.mod": (2 * WIDTH, WIDTH),
}

OURS = {
    "blocks.0.attn.qkv_x": "blocks.0.attention.video_qkv",
    "blocks.1.attn.qkv_y": "blocks.1.attention.text_qkv",
    "blocks.2.attn.proj_x": "blocks.2.attention.video_out",
    "blocks.1.mlp_x.w1": "blocks.1.video_mlp.up",
    "final_layer.mod": "final.modulation",
}

Parts = dict[str, tuple[Tensor, Tensor, Tensor]]
"""Down, up and magnitude of modules, by the names of a layout."""


def parts(layout: str = "original") -> Parts:
    torch.manual_seed(1)
    matrices = {name: (torch.randn(RANK, cols), torch.randn(rows, RANK)) for name, (rows, cols) in SIZES.items()}
    # As a third column, so that it goes wherever its rows go.
    long = {name: (down, torch.cat([up, 1 + torch.rand(len(up), 1)], dim=1)) for name, (down, up) in matrices.items()}
    found = as_diffusers(long) if layout == "diffusers" else long
    return {
        name: (down.clone(), up[:, :RANK].contiguous(), up[:, RANK].contiguous()) for name, (down, up) in found.items()
    }


def write_peft(folder: Path, adapter: str = "", ending: str = "") -> Path:
    prefix, tensors = "base_model.model.", {}
    for name, (down, up, magnitude) in parts("diffusers").items():
        tensors |= {f"{prefix}{name}.lora_A{adapter}.weight": down, f"{prefix}{name}.lora_B{adapter}.weight": up}
        tensors[f"{prefix}{name}.lora_magnitude_vector{adapter}{ending}"] = magnitude
    (folder / "peft").mkdir()
    save_file(tensors, folder / "peft" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_dora": True}
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(config))
    return folder / "peft"


def write_comfy(folder: Path, *, prefix: str = "diffusion_model.", dot: str = ".") -> Path:
    tensors: dict[str, Tensor] = {}
    for name, (down, up, magnitude) in parts().items():
        module = prefix + name.replace(".", dot)
        tensors |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
        tensors |= {f"{module}.alpha": torch.tensor(ALPHA), f"{module}.dora_scale": magnitude[:, None].contiguous()}
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "peft": write_peft,
    "peft with the name of its adapter": lambda folder: write_peft(folder, ".default", ".weight"),
    "peft with the name of its adapter alone": lambda folder: write_peft(folder, ".default"),
    "comfy": write_comfy,
    "kohya": lambda folder: write_comfy(folder, prefix="lora_unet_", dot="_"),
}


@pytest.fixture
def dit() -> AsymmDiT:
    torch.manual_seed(0)
    return AsymmDiT(CONFIG)


def written_out(weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor) -> Tensor:
    """As the paper has it, in double precision."""
    changed = weight.double() + ALPHA / RANK * up.double() @ down.double()
    return magnitude.double()[:, None] * changed / changed.square().sum(dim=1, keepdim=True).sqrt()


def weights(path: Path, dit: AsymmDiT, strength: float = 1.0) -> dict[str, Tensor]:
    """Of the layers that a file changes."""
    deltas = combined([(read_lora(path), strength)], linear_shapes(dit))
    return {layer: merged(dit.get_parameter(f"{layer}.weight"), delta) for layer, delta in deltas.items()}


@pytest.mark.parametrize("tool", WRITERS)
def test_a_dora_of_every_tool_makes_the_weights_of_the_paper(tool: str, dit: AsymmDiT, tmp_path: Path) -> None:
    path = WRITERS[tool](tmp_path)
    lora, found = read_lora(path), weights(path, dit)
    assert lora.layout == tool.split()[0] and found.keys() == set(OURS.values())
    assert lora.num_doras == len(parts("diffusers" if lora.layout == "peft" else "original"))
    # Of layers with halves ours are in the order of the original.
    for theirs, layer in OURS.items():
        expected = written_out(dit.get_parameter(f"{layer}.weight"), *parts()[theirs])
        torch.testing.assert_close(found[layer], expected.float(), atol=1e-5, rtol=1e-5, msg=layer)


def test_a_strength_goes_straight_from_the_weight_to_the_doras(dit: AsymmDiT, tmp_path: Path) -> None:
    path = write_comfy(tmp_path)
    whole, some = weights(path, dit), weights(path, dit, -0.3)
    for layer, weight in whole.items():
        base = dit.get_parameter(f"{layer}.weight").detach()
        torch.testing.assert_close(some[layer], base - 0.3 * (weight - base), atol=1e-5, rtol=0)
    save_dit(dit, tmp_path / "model")
    plain, nothing = (load_dit(tmp_path / "model", loras=loras).state_dict() for loras in ((), [(str(path), 0.0)]))
    assert all(torch.equal(nothing[name], tensor) for name, tensor in plain.items())


def test_a_row_of_zeros_stays_and_rows_without_magnitude_are_plain() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    matrices = {"down": torch.tensor([[1.0, 0.0]]), "up": torch.tensor([[0.0], [0.0], [2.0]])}
    dora = Dora(**matrices, magnitude=torch.tensor([7.0, 10.0, torch.nan]))
    found = merged(weight, LowRank(down=torch.zeros(0, 2), up=torch.zeros(3, 0), doras=(dora,)))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [6.0, 8.0], [5.0, 4.0]]))


def test_a_dora_of_q_and_v_leaves_k_bit_for_bit(dit: AsymmDiT, tmp_path: Path) -> None:
    path = q_and_v(tmp_path)
    layer = "blocks.0.attention.video_qkv"
    before = dit.get_parameter(f"{layer}.weight").detach()
    after = weights(path, dit)[layer]
    same = [torch.equal(old, new) for old, new in zip(before.chunk(3), after.chunk(3), strict=True)]
    assert same == [False, True, False]


def q_and_v(folder: Path, *, down: Tensor | None = None) -> Path:
    torch.manual_seed(4)
    tensors: dict[str, Tensor] = {}
    for name in ("to_q", "to_v"):
        module = f"transformer.transformer_blocks.0.attn1.{name}"
        own = torch.randn(2, WIDTH) if down is None else down.clone()
        tensors |= {f"{module}.lora_A.weight": own, f"{module}.lora_B.weight": torch.randn(WIDTH, 2)}
        tensors[f"{module}.lora_magnitude_vector"] = 1 + torch.rand(WIDTH)
    save_file(tensors, folder / "q_and_v.safetensors")
    return folder / "q_and_v.safetensors"


@pytest.mark.parametrize("tool", WRITERS)
@pytest.mark.parametrize("to", ["diffusers", "comfy"])
def test_a_dora_makes_the_same_weights_in_every_layout_that_holds_it(
    tool: str, to: str, dit: AsymmDiT, tmp_path: Path
) -> None:
    path = WRITERS[tool](tmp_path)
    there = convert(path, tmp_path / "b.safetensors", to)
    expected, found = weights(path, dit), weights(there, dit)
    for layer, weight in expected.items():
        torch.testing.assert_close(found[layer], weight, atol=1e-5, rtol=1e-5, msg=layer)


def test_a_dora_comes_back_from_diffusers_bit_for_bit(tmp_path: Path) -> None:
    path = write_comfy(tmp_path)
    middle = convert(path, tmp_path / "b.safetensors", "diffusers")
    assert json.loads(metadata(middle)["lora_adapter_metadata"])["transformer.use_dora"] is True
    back, source = load_file(convert(middle, tmp_path / "c.safetensors", "comfy")), load_file(path)
    assert back.keys() == source.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in source.items())


@pytest.mark.parametrize("down", [None, torch.ones(2, WIDTH)], ids=["own matrices", "a shared matrix"])
def test_a_dora_of_q_and_v_comes_through_diffusers_and_is_refused_where_qkv_is_one(
    down: Tensor | None, dit: AsymmDiT, tmp_path: Path
) -> None:
    path = q_and_v(tmp_path, down=down)
    there = convert(path, tmp_path / "b.safetensors", "diffusers")
    assert load_file(there).keys() == load_file(path).keys()
    [found], [expected] = weights(there, dit).values(), weights(path, dit).values()
    assert torch.equal(found, expected)
    with pytest.raises(InvalidRequest, match=r"magnitudes for a part of blocks\.0\.attn\.qkv_x.*convert it to diffus"):
        convert(path, tmp_path / "c.safetensors", "comfy")


def test_a_dora_that_has_only_learnt_magnitudes_keeps_them(dit: AsymmDiT, tmp_path: Path) -> None:
    path = write_comfy(tmp_path)
    zeros = {name: torch.zeros_like(t) if "lora_up" in name else t for name, t in load_file(path).items()}
    save_file(zeros, path)
    there = convert(path, tmp_path / "b.safetensors", "diffusers")
    expected, found = weights(path, dit), weights(there, dit)
    assert all(torch.equal(found[layer], weight) for layer, weight in expected.items())


def test_the_original_layout_holds_no_dora_and_diffusers_none_beside_loras(tmp_path: Path) -> None:
    path = write_comfy(tmp_path)
    with pytest.raises(InvalidRequest, match="is a DoRA, and the original layout holds no magnitudes: convert it to"):
        convert(path, tmp_path / "b.safetensors", "original")
    tensors = load_file(path)
    del tensors["diffusion_model.blocks.2.attn.proj_x.dora_scale"]
    save_file(tensors, path)
    assert read_lora(path).num_doras == len(SIZES) - 1
    with pytest.raises(InvalidRequest, match=r"none for transformer_blocks\.2\.attn1\.to_out\.0.* convert it to comfy"):
        convert(path, tmp_path / "c.safetensors", "diffusers")
    convert(path, tmp_path / "d.safetensors", "comfy")


FIRST = "diffusion_model.blocks.2.attn.proj_x"


@pytest.mark.parametrize(
    "magnitude, message",
    [
        (torch.ones(3), r"in part.*its magnitudes \[3\] are not one for each of its 32 outputs"),
        (torch.ones(1, WIDTH), r"magnitudes \[1, 32\] are not one for each"),
        (torch.ones(WIDTH, 2), "not one for each"),
        (torch.ones(()), r"magnitudes \[\] are not"),
        (torch.ones(0), r"magnitudes \[0\] are not"),
        (torch.full((WIDTH,), torch.nan), "a magnitude of .*proj_x is no number"),
        (torch.full((WIDTH, 1), torch.inf), "a magnitude of .*proj_x is no number"),
    ],
    ids=lambda value: str(list(value.shape)) if isinstance(value, Tensor) else None,
)
def test_magnitudes_that_do_not_fit_are_refused(magnitude: Tensor, message: str, tmp_path: Path) -> None:
    path = write_comfy(tmp_path)
    save_file(load_file(path) | {f"{FIRST}.dora_scale": magnitude}, path)
    with pytest.raises(CheckpointError, match=message):
        read_lora(path)


def test_a_magnitude_without_matrices_and_a_peft_module_without_one_are_refused(tmp_path: Path) -> None:
    path = write_comfy(tmp_path)
    save_file(load_file(path) | {"diffusion_model.blocks.0.attn.proj_x.dora_scale": torch.ones(WIDTH)}, path)
    with pytest.raises(CheckpointError, match=r"proj_x \(has dora_scale without its partner"):
        read_lora(path)
    path = q_and_v(tmp_path)
    tensors = load_file(path)
    del tensors["transformer.transformer_blocks.0.attn1.to_v.lora_magnitude_vector"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"to_v \(has no magnitude, and all modules of a DoRA have one"):
        read_lora(path)
