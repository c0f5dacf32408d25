"""LoRA files of every tool: the same change of the same layers, or an error that says what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.errors import CheckpointError, InvalidRequest, ModelNotFound
from daifuku.model.dit import AsymmDiT
from daifuku.weights.load import load_dit
from daifuku.weights.lora import combined, fingerprint, holds_lora, linear_shapes, read_lora
from daifuku.weights.save import save_dit

CONFIG = DiTConfig(
    num_blocks=3, num_heads=2, head_dim=16, text_width=24, video_mlp_width=85, text_mlp_width=64, text_features=16,
    time_features=16,
)  # fmt: skip
WIDTH, TEXT, MLP = CONFIG.video_width, CONFIG.text_width, CONFIG.video_mlp_width
RANK, ALPHA = 3, 6.0

Change = dict[str, tuple[Tensor, Tensor]]
"""Down and up of modules, by the names of the original layout."""


@pytest.fixture
def dit() -> AsymmDiT:
    torch.manual_seed(0)
    return AsymmDiT(CONFIG)


@pytest.fixture
def change() -> Change:
    torch.manual_seed(1)
    sizes = {
        "blocks.0.attn.qkv_x": (3 * WIDTH, WIDTH),
        "blocks.1.attn.qkv_y": (3 * WIDTH, TEXT),
        "blocks.2.attn.proj_x": (WIDTH, WIDTH),
        "blocks.1.attn.proj_y": (TEXT, WIDTH),
        "blocks.1.mlp_x.w1": (2 * MLP, WIDTH),
        "blocks.0.mlp_x.w2": (WIDTH, MLP),
        "blocks.2.mod_y": (TEXT, WIDTH),
        "t5_yproj": (TEXT, 16),
        "final_layer.mod": (2 * WIDTH, WIDTH),
    }
    return {name: (torch.randn(RANK, cols), torch.randn(rows, RANK)) for name, (rows, cols) in sizes.items()}


DIFFUSERS = {
    "blocks.2.attn.proj_x": "transformer_blocks.2.attn1.to_out.0",
    "blocks.1.attn.proj_y": "transformer_blocks.1.attn1.to_add_out",
    "blocks.0.mlp_x.w2": "transformer_blocks.0.ff.net.2",
    "blocks.2.mod_y": "transformer_blocks.2.norm1_context.linear_1",
    "t5_yproj": "time_embed.caption_proj",
}
"""Modules that diffusers only calls otherwise."""

SPLIT = {
    "blocks.0.attn.qkv_x": [f"transformer_blocks.0.attn1.to_{x}" for x in "qkv"],
    "blocks.1.attn.qkv_y": [f"transformer_blocks.1.attn1.add_{x}_proj" for x in "qkv"],
}
SWAPPED = {"blocks.1.mlp_x.w1": "transformer_blocks.1.ff.net.0.proj", "final_layer.mod": "norm_out.linear"}


def as_diffusers(change: Change) -> Change:
    found: Change = {}
    for name, (down, up) in change.items():
        if name in SPLIT:
            found |= {theirs: (down, part) for theirs, part in zip(SPLIT[name], up.chunk(3), strict=True)}
        elif name in SWAPPED:
            found[SWAPPED[name]] = down, torch.cat(up.chunk(2)[::-1])
        else:
            found[DIFFUSERS[name]] = down, up
    return found


def matrices(change: Change, down: str, up: str, alpha: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, called by these patterns."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in change.items():
        tensors |= {down.format(name): a.clone(), up.format(name): b.clone()}
        if alpha:
            tensors[f"{down.format(name).partition('.lora')[0]}.alpha"] = torch.tensor(ALPHA)
    return tensors


def write_original(folder: Path, change: Change) -> Path:
    # The original's own trainer only writes qkv and out projections; the alphas of others go with the tensors.
    tensors = matrices(change, "{}.lora_A", "{}.lora_B")
    for name in change:
        if ".attn." not in name:
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    kwargs = {f"{part}_proj_lora_{what}": value for part in ("qkv", "out") for what, value in
              (("rank", RANK), ("alpha", ALPHA), ("dropout", 0.0))}  # fmt: skip
    return write(folder / "original.safetensors", tensors, {"kwargs": json.dumps(kwargs)})


def write_diffusers(folder: Path, change: Change) -> Path:
    about = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.use_rslora": False}
    tensors = matrices(as_diffusers(change), "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
    return write(folder / "diffusers.safetensors", tensors, {"lora_adapter_metadata": json.dumps(about)})


def write_peft(folder: Path, change: Change) -> Path:
    prefix = "base_model.model.{}.lora_"
    tensors = matrices(as_diffusers(change), prefix + "A.default.weight", prefix + "B.default.weight")
    (folder / "peft").mkdir()
    write(folder / "peft" / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 99, "lora_alpha": 1.0, "alpha_pattern": {r".*\w": ALPHA}}
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(config))
    return folder / "peft"


def write_comfy(folder: Path, change: Change) -> Path:
    tensors = matrices(change, "diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight", alpha=True)
    return write(folder / "comfy.safetensors", tensors)


def write_comfy_scaled(folder: Path, change: Change) -> Path:
    """Without any alpha, so that the matrices are all there is."""
    scaled = {name: (down, up * ALPHA / RANK) for name, (down, up) in change.items()}
    prefix = "diffusion_model.{}.lora_"
    return write(folder / "comfy_scaled.safetensors", matrices(scaled, prefix + "A.weight", prefix + "B.weight"))


def write_kohya(folder: Path, change: Change) -> Path:
    named = {name.replace(".", "_"): pair for name, pair in change.items()}
    prefix = "lora_unet_{}.lora_"
    return write(
        folder / "kohya.safetensors", matrices(named, prefix + "down.weight", prefix + "up.weight", alpha=True)
    )


def write_kohya_diffusers(folder: Path, change: Change) -> Path:
    named = {name.replace(".", "_"): pair for name, pair in as_diffusers(change).items()}
    tensors = matrices(named, "lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", alpha=True)
    return write(folder / "kohya_diffusers.safetensors", tensors)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata)
    return path


WRITERS = {
    "original": write_original,
    "diffusers": write_diffusers,
    "peft": write_peft,
    "comfy": write_comfy,
    "comfy without alphas": write_comfy_scaled,
    "kohya": write_kohya,
    "kohya over diffusers": write_kohya_diffusers,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_of_a_lora_adds_the_same_to_the_same_layers(
    layout: str, change: Change, dit: AsymmDiT, tmp_path: Path
) -> None:
    lora = read_lora(WRITERS[layout](tmp_path, change))
    assert lora.layout == layout.split()[0]
    # Names of layers come from a model of ours that is read back from the original layout.
    ours = {
        "blocks.0.attn.qkv_x": "blocks.0.attention.video_qkv",
        "blocks.1.attn.qkv_y": "blocks.1.attention.text_qkv",
        "blocks.2.attn.proj_x": "blocks.2.attention.video_out",
        "blocks.1.attn.proj_y": "blocks.1.attention.text_out",
        "blocks.1.mlp_x.w1": "blocks.1.video_mlp.up",
        "blocks.0.mlp_x.w2": "blocks.0.video_mlp.down",
        "blocks.2.mod_y": "blocks.2.text_modulation",
        "t5_yproj": "text_proj",
        "final_layer.mod": "final.modulation",
    }
    assert lora.deltas.keys() == set(ours.values())
    found = combined([(lora, 1.0)], linear_shapes(dit))
    for theirs, layer in ours.items():
        down, up = change[theirs]
        torch.testing.assert_close(found[layer].up @ found[layer].down, ALPHA / RANK * up @ down)


def test_separate_changes_of_q_and_v_leave_k_alone(tmp_path: Path, dit: AsymmDiT) -> None:
    torch.manual_seed(2)
    pairs = {f"transformer_blocks.0.attn1.to_{x}": (torch.randn(r, WIDTH), torch.randn(WIDTH, r)) for x, r in
             (("q", 2), ("v", 4))}  # fmt: skip
    path = write(
        tmp_path / "a.safetensors", matrices(pairs, "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")
    )
    delta = combined([(read_lora(path), 1.0)], linear_shapes(dit))["blocks.0.attention.video_qkv"]
    assert delta.down.shape == (6, WIDTH)
    q, k, v = (delta.up @ delta.down).chunk(3)
    torch.testing.assert_close(
        q, pairs["transformer_blocks.0.attn1.to_q"][1] @ pairs["transformer_blocks.0.attn1.to_q"][0]
    )
    torch.testing.assert_close(
        v, pairs["transformer_blocks.0.attn1.to_v"][1] @ pairs["transformer_blocks.0.attn1.to_v"][0]
    )
    assert not k.any()


def test_several_loras_add_up_by_their_strengths_and_strength_0_adds_nothing(
    tmp_path: Path, change: Change, dit: AsymmDiT
) -> None:
    lora = read_lora(write_original(tmp_path, change))
    shapes = linear_shapes(dit)
    assert combined([(lora, 0.0)], shapes) == {}
    one, sum_of_two = combined([(lora, 1.0)], shapes), combined([(lora, 0.75), (lora, -0.5)], shapes)
    for layer, delta in sum_of_two.items():
        expected = 0.25 * one[layer].up @ one[layer].down
        torch.testing.assert_close(delta.up @ delta.down, expected, atol=1e-4, rtol=1e-4)


def test_a_rank_stabilised_lora_is_scaled_by_the_root_of_its_rank(tmp_path: Path, dit: AsymmDiT) -> None:
    pairs: Change = {"proj_out": (torch.ones(4, WIDTH), torch.ones(48, 4))}
    about = {"transformer.lora_alpha": 6, "transformer.use_rslora": True}
    path = write(
        tmp_path / "a.safetensors",
        matrices(pairs, "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
        {"lora_adapter_metadata": json.dumps(about)},
    )
    delta = combined([(read_lora(path), 1.0)], linear_shapes(dit))["final.linear"]
    torch.testing.assert_close(delta.up @ delta.down, torch.full((48, WIDTH), 4 * 6 / 2.0))


def spoilt(spoil: Callable[[dict[str, Tensor]], object]) -> Callable[[Path, Change], Path]:
    def writer(folder: Path, change: Change) -> Path:
        tensors = matrices(change, "diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight")
        spoil(tensors)
        return write(folder / "spoilt.safetensors", tensors)

    return writer


FIRST = "diffusion_model.blocks.0.attn.qkv_x"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda t: t.pop(f"{FIRST}.lora_B.weight"), "only in part.*qkv_x .*lora_A.weight without its partner"),
        (lambda t: t.update({f"{FIRST}.lora_B.weight": torch.ones(96, 5)}), "in part.*do not go together"),
        (lambda t: t.update({f"{FIRST}.lora_B.weight": torch.ones(9, 3)}), r"changes \[9, 32\].*layer is \[96, 32\]"),
        (lambda t: t.update({"diffusion_model.blocks.0.attn2.to_q.lora_A.weight": torch.ones(3, 2)}), "attn2.to_q"),
        (lambda t: t.update({"text_encoder.a.q.lora_A.weight": torch.ones(3, 2)}), "text_encoder.a.q"),
        (lambda t: t.update({"diffusion_model.t5_yproj.weight": torch.ones(3, 2)}), "no tensor of a LoRA"),
        (lambda t: t.update({f"{FIRST}.hada_w1_a": torch.ones(3)}), "is LoHa"),
        (lambda t: t.update({f"{FIRST}.lokr_w1": torch.ones(3)}), "is LoKr"),
        (lambda t: t.update({f"{FIRST}.lora_B.bias": torch.ones(3)}), "biases"),
        (lambda t: t.update({f"{FIRST}.lora_down.weight": torch.ones(3, 32)}), "a second one for the same module"),
        (lambda t: t.update({f"{FIRST}.alpha": torch.tensor(float("nan"))}), "alpha of .*qkv_x is no number"),
        (lambda t: t.update({f"{FIRST}.alpha": torch.ones(2)}), "alpha of .*qkv_x is no number"),
        (lambda t: t.clear(), "holds no LoRA"),
    ],
)
def test_a_lora_that_fits_only_in_part_is_refused_with_what_does_not_match(
    spoil: Callable[[dict[str, Tensor]], object], message: str, change: Change, dit: AsymmDiT, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        combined([(read_lora(spoilt(spoil)(tmp_path, change)), 1.0)], linear_shapes(dit))


def test_a_lora_of_another_model_fits_nothing_and_a_few_of_its_modules_are_named(tmp_path: Path) -> None:
    pairs = {f"down_blocks.{i}.attn1.to_q": (torch.ones(2, 4), torch.ones(4, 2)) for i in range(9)}
    path = write(tmp_path / "a.safetensors", matrices(pairs, "unet.{}.lora_A.weight", "unet.{}.lora_B.weight"))
    with pytest.raises(CheckpointError, match=r"fits nothing.*9 do not match.*down_blocks\.0.* and 6 more"):
        read_lora(path)


def test_a_lora_of_a_deeper_model_is_refused(tmp_path: Path, dit: AsymmDiT) -> None:
    pairs = {f"blocks.{i}.attn.proj_x": (torch.ones(2, WIDTH), torch.ones(WIDTH, 2)) for i in (0, 7)}
    lora = read_lora(write(tmp_path / "a.safetensors", matrices(pairs, "{}.lora_A", "{}.lora_B")))
    with pytest.raises(CheckpointError, match=r"in part: 1 do.*blocks\.7\.attn\.proj_x \(no layer of this model\)"):
        combined([(lora, 1.0)], linear_shapes(dit))


def test_a_layer_that_is_changed_whole_and_in_parts_is_refused(tmp_path: Path) -> None:
    pairs = {
        "blocks.0.attn.qkv_x": (torch.ones(2, WIDTH), torch.ones(3 * WIDTH, 2)),
        "transformer_blocks.0.attn1.to_q": (torch.ones(2, WIDTH), torch.ones(WIDTH, 2)),
    }
    with pytest.raises(CheckpointError, match="twice"):
        read_lora(write(tmp_path / "a.safetensors", matrices(pairs, "{}.lora_A", "{}.lora_B")))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_dora": True}, "has no magnitude, and all modules of a DoRA have one"),
        ({"lora_alpha": "many"}, "no number"),
        ({"lora_alpha": 1e999}, "no number"),
        ({"alpha_pattern": {"((a+)+)+b": 1}}, "too intricate"),
        ({"alpha_pattern": {"(": 1}}, "cannot be read"),
        ({"alpha_pattern": [1]}, "cannot be read"),
    ],
)
def test_a_configuration_that_is_no_plain_loras_is_refused(
    config: dict, message: str, change: Change, tmp_path: Path
) -> None:
    folder = write_peft(tmp_path, change)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        read_lora(folder)


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"qkv_proj_lora_alpha": "x"}', "[" * 100_000], ids=lambda t: t[:9])
def test_metadata_that_make_no_sense_are_told(text: str, change: Change, tmp_path: Path) -> None:
    tensors = matrices(change, "{}.lora_A", "{}.lora_B")
    with pytest.raises(CheckpointError, match="metadata"):
        read_lora(write(tmp_path / "a.safetensors", tensors, {"kwargs": text}))


def test_numbers_of_blocks_beyond_reason_cost_nothing(tmp_path: Path) -> None:
    pairs = {
        f"transformer_blocks.{'9' * n}.norm1_context.linear_1": (torch.ones(1, 2), torch.ones(2, 1)) for n in (9, 5000)
    }
    with pytest.raises(CheckpointError, match="fits nothing"):
        read_lora(write(tmp_path / "a.safetensors", matrices(pairs, "{}.lora_A", "{}.lora_B")))


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "adapter_model.bin"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="pickle"):
        read_lora(tmp_path / name)


def test_a_lora_that_is_not_there_is_missed(tmp_path: Path) -> None:
    for path in (tmp_path / "a.safetensors", tmp_path):
        with pytest.raises(ModelNotFound):
            read_lora(path)
    with pytest.raises(ModelNotFound):
        fingerprint(tmp_path / "a.safetensors")


def test_a_lora_is_told_from_a_model(tmp_path: Path, change: Change, dit: AsymmDiT) -> None:
    save_dit(dit, tmp_path / "model")
    [model] = (tmp_path / "model").rglob("*.safetensors")
    assert holds_lora(write_peft(tmp_path, change)) and holds_lora(write_kohya(tmp_path, change))
    assert not holds_lora(model) and not holds_lora(tmp_path / "model") and not holds_lora("genmo/mochi-1-preview")


def test_a_fingerprint_tells_one_lora_from_another(tmp_path: Path, change: Change) -> None:
    folder = write_peft(tmp_path, change)
    first = fingerprint(folder)
    assert fingerprint(folder / "adapter_model.safetensors") == first and len(first) == 16
    (folder / "adapter_config.json").write_text("{}")
    assert fingerprint(folder) != first


def test_a_small_lora_is_kept_until_its_file_or_its_configuration_changes(tmp_path: Path, change: Change) -> None:
    folder = write_peft(tmp_path, change)
    with torch.inference_mode():
        first = read_lora(folder)
    assert read_lora(folder) is first
    assert not any(delta.up.is_inference() for delta in first.deltas.values()), "others may learn from it"
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    again = read_lora(folder)
    assert again is not first and again.fingerprint != first.fingerprint
    name = next(iter(first.deltas))
    assert not torch.equal(
        again.deltas[name].up @ again.deltas[name].down, first.deltas[name].up @ first.deltas[name].down
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_read_with_loras_in_its_weights_and_its_file_stays_as_it_is(
    dtype: str, tmp_path: Path, change: Change, dit: AsymmDiT
) -> None:
    save_dit(dit, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    path = write_comfy(tmp_path, change)
    plain = load_dit(tmp_path, dtype=dtype).state_dict()
    found = load_dit(tmp_path, dtype=dtype, loras=[(str(path), 0.5)]).state_dict()
    lora = read_lora(path)
    for name, tensor in plain.items():
        layer = name.removesuffix(".weight")
        if layer in lora.deltas and name.endswith(".weight"):
            delta = lora.deltas[layer]
            tensor = (tensor.float() + 0.5 * delta.up @ delta.down).to(tensor.dtype)
        torch.testing.assert_close(found[name], tensor, msg=name)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_piece_of_a_model_has_its_loras_before_anything_else_happens_to_it(
    tmp_path: Path, change: Change, dit: AsymmDiT
) -> None:
    save_dit(dit, tmp_path)
    path = write_original(tmp_path, change)
    seen: dict[str, Tensor] = {}

    def each(piece: str, module: nn.Module) -> None:
        if piece == "text_proj":
            seen[piece] = module.get_parameter("weight").detach().clone()

    found = load_dit(tmp_path, loras=[(str(path), 1.0)], each=each)
    assert torch.equal(seen["text_proj"], found.text_proj.weight)
    assert not torch.equal(found.text_proj.weight, dit.text_proj.weight)


def test_loras_are_not_merged_into_weights_that_stay_encoded(tmp_path: Path, change: Change, dit: AsymmDiT) -> None:
    save_dit(dit, tmp_path)
    with pytest.raises(InvalidRequest, match="encoded"):
        load_dit(tmp_path, encoded=True, loras=[(str(write_original(tmp_path, change)), 1.0)])
