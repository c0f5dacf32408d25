"""Loading: precision, the tensors' names in errors, damaged files, halves of the VAE."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from daifuku.config import MOCHI_STATS, DecoderConfig, DiTConfig, EncoderConfig, LatentStats
from daifuku.errors import CheckpointError, InvalidRequest, ModelNotFound
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.weights.load import as_dtype, decoder_sizes, dit_sizes, load_dit, load_vae, open_dit
from daifuku.weights.locate import locate
from daifuku.weights.names import Layout
from daifuku.weights.save import save_dit, save_vae
from daifuku.weights.sizes import Shapes

DIT = DiTConfig(
    num_blocks=2, num_heads=3, head_dim=8, text_width=12, video_mlp_width=64, text_mlp_width=32, text_features=16
)
CHANNELS, NUM_BLOCKS = (32, 32, 64, 32), (0, 1, 1, 0, 1)


def small_dit() -> AsymmDiT:
    torch.manual_seed(0)
    model = AsymmDiT(DIT)
    torch.nn.init.normal_(model.pos_frequencies)
    return model


def small_vae(stats: LatentStats = MOCHI_STATS) -> AsymmVAE:
    torch.manual_seed(0)
    encoder = EncoderConfig(channels=CHANNELS, num_blocks=NUM_BLOCKS, attention=(False, True, True, False, True))
    return AsymmVAE(Encoder(encoder), Decoder(DecoderConfig(channels=CHANNELS, num_blocks=NUM_BLOCKS)), stats)


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Replaces tensors of a file; None takes one away."""
    content = load_file(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in content.items() if tensor is not None}, path)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path, layout: Layout):
    dit, vae = small_dit(), small_vae()
    save_dit(dit, tmp_path, layout=layout)
    save_vae(vae, tmp_path, layout=layout)
    loaded = load_dit(tmp_path)
    assert loaded.config == dit.config
    assert_equal(loaded, dit)
    assert_equal(load_vae(tmp_path), vae)


def test_a_model_goes_from_one_layout_to_the_other_and_back_bit_for_bit(tmp_path: Path):
    save_dit(small_dit(), tmp_path / "a", layout="original")
    save_dit(load_dit(tmp_path / "a"), tmp_path / "b", layout="diffusers")
    save_dit(load_dit(tmp_path / "b"), tmp_path / "c", layout="original")
    first, last = (load_file(tmp_path / folder / "dit.safetensors") for folder in "ac")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_weights_take_the_asked_precision_but_the_frequencies_stay_float32(tmp_path: Path, layout: Layout, dtype: str):
    dit = small_dit()
    save_dit(dit, tmp_path, layout=layout)
    loaded = load_dit(tmp_path, dtype=dtype)
    for name, tensor in loaded.state_dict().items():
        expected = dit.state_dict()[name]
        assert torch.equal(tensor, expected if name == "pos_frequencies" else expected.to(as_dtype(dtype))), name


def test_frequencies_stored_in_half_precision_become_float32(tmp_path: Path):
    save_dit(small_dit(), tmp_path, layout="original")
    half = load_file(tmp_path / "dit.safetensors")["pos_frequencies"].bfloat16()
    change(tmp_path / "dit.safetensors", pos_frequencies=half)
    assert torch.equal(load_dit(tmp_path, dtype="bfloat16").pos_frequencies, half.float())


def test_a_wrong_precision_names_the_choices(tmp_path: Path):
    for wrong in ("float8", torch.int8):
        with pytest.raises(InvalidRequest, match="float32, bfloat16, float16"):
            load_dit(tmp_path, dtype=wrong)


def test_a_single_file_needs_no_special_name(tmp_path: Path):
    save_dit(small_dit(), tmp_path, layout="original")
    path = (tmp_path / "dit.safetensors").rename(tmp_path / "anything.safetensors")
    assert_equal(load_dit(path), small_dit())


def test_a_file_of_another_part_is_refused_by_its_part(tmp_path: Path):
    save_vae(small_vae(), tmp_path, layout="original")
    with pytest.raises(ModelNotFound, match="holds the vae and nothing else"):
        load_dit(tmp_path / "decoder.safetensors")
    (tmp_path / "decoder.safetensors").rename(tmp_path / "dit.safetensors")
    with pytest.raises(CheckpointError, match="holds the VAE decoder, original names"):
        load_dit(tmp_path)


def test_a_file_of_another_model_is_refused(tmp_path: Path):
    save_file({"unet.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no part of a Mochi model"):
        load_dit(tmp_path / "other.safetensors")


def test_missing_unknown_and_misshapen_tensors_are_named_together(tmp_path: Path):
    save_dit(small_dit(), tmp_path)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    name = "transformer_blocks.0.attn1.to_k.weight"
    changes = {"proj_out.bias": None, name: torch.zeros(24, 5), "scale_weight": torch.zeros(1)}
    change(path, **changes)
    with pytest.raises(CheckpointError) as error:
        load_dit(tmp_path)
    message = str(error.value)
    assert str(path) in message
    assert "1 missing: proj_out.bias" in message
    assert "1 unknown: scale_weight" in message
    assert f"1 of the wrong shape: {name} is [24, 5] instead of [24, 24]" in message


def test_many_missing_tensors_are_counted(tmp_path: Path):
    save_vae(small_vae(), tmp_path, layout="original")
    gone = [f"blocks.0.1.stack.{i}.{parameter}" for i in (0, 2, 3, 5) for parameter in ("weight", "bias")]
    change(tmp_path / "decoder.safetensors", **dict.fromkeys(gone[1:]))
    with pytest.raises(CheckpointError, match=r"7 missing: blocks.0.1.stack.0.bias, \S+, \S+, \.\.\.$"):
        load_vae(tmp_path)


def test_a_missing_tensor_that_tells_a_size_is_named_as_the_file_names_it(tmp_path: Path):
    save_dit(small_dit(), tmp_path, layout="original")
    change(tmp_path / "dit.safetensors", **{"t5_yproj.weight": None})
    with pytest.raises(CheckpointError, match=r"t5_yproj\.weight is missing"):
        load_dit(tmp_path)


def test_quantised_weights_are_refused_rather_than_misread(tmp_path: Path):
    save_dit(small_dit(), tmp_path, layout="original")
    change(tmp_path / "dit.safetensors", **{"t5_yproj.bias": torch.zeros(12, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"t5_yproj\.bias is I8"):
        load_dit(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 3000, -1])
def test_a_file_cut_short_is_named(tmp_path: Path, keep: int):
    save_dit(small_dit(), tmp_path, layout="original")
    path = tmp_path / "dit.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"dit\.safetensors is damaged or cut short"):
        load_dit(tmp_path)


def test_a_file_with_a_scrambled_header_is_named(tmp_path: Path):
    save_dit(small_dit(), tmp_path, layout="original")
    path = tmp_path / "dit.safetensors"
    content = bytearray(path.read_bytes())
    content[8:40] = bytes(32)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"dit\.safetensors is damaged"):
        load_dit(tmp_path)


def test_the_vae_loads_from_either_file_or_both(tmp_path: Path):
    vae = small_vae()
    save_vae(vae, tmp_path, layout="original")
    encoder, decoder = tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors"
    assert_equal(load_vae([decoder, encoder]), vae)
    assert load_vae(encoder).decoder is None
    assert load_vae([decoder]).encoder is None
    encoder.unlink()
    alone = load_vae(tmp_path)
    assert alone.encoder is None and alone.decoder is not None
    with pytest.raises(ModelNotFound, match="encoder"):
        load_vae([encoder])


def test_the_statistics_come_from_the_configuration_of_the_vae(tmp_path: Path):
    stats = LatentStats(mean=tuple(map(float, range(12))), std=tuple(map(float, range(1, 13))))
    save_vae(small_vae(stats), tmp_path)
    assert load_vae(tmp_path).stats == stats
    assert load_vae(tmp_path / "vae").stats == stats
    assert load_vae(tmp_path / "vae" / "diffusion_pytorch_model.safetensors").stats == stats


def test_channels_that_make_no_vae_are_an_error_of_the_file(tmp_path: Path):
    save_vae(small_vae(), tmp_path, layout="original")
    change(tmp_path / "decoder.safetensors", **{"output_proj.weight": torch.zeros(3, 33)})
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_vae(tmp_path)


def test_a_loaded_model_can_be_trained_without_touching_its_file(tmp_path: Path):
    save_dit(small_dit(), tmp_path, layout="original")
    before = (tmp_path / "dit.safetensors").read_bytes()
    model = load_dit(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad
            parameter.add_(1)
    assert (tmp_path / "dit.safetensors").read_bytes() == before


def test_tensors_that_are_left_out_stay_on_the_meta_device_and_can_be_read_one_by_one(tmp_path: Path):
    dit = small_dit()
    save_dit(dit, tmp_path)
    loaded = load_dit(tmp_path, without=lambda name: "modulation." in name)
    tensors = loaded.state_dict()
    left_out = [name for name, tensor in tensors.items() if tensor.is_meta]
    assert left_out == [name for name in tensors if "modulation." in name] and len(left_out) == 10
    assert all(torch.equal(tensor, dit.state_dict()[name]) for name, tensor in tensors.items() if name not in left_out)
    unread = open_dit(tmp_path, dtype="bfloat16")
    for name in ("blocks.0.video_modulation.weight", "final.modulation.bias"):
        assert torch.equal(unread.read(name)[name], dit.state_dict()[name].bfloat16())


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_pieces_come_one_after_the_other_each_whole(tmp_path: Path, layout: Layout):
    dit, pieces, seen = small_dit(), dict[str, torch.nn.Module](), list[str]()
    save_dit(dit, tmp_path, layout=layout)
    unread = open_dit(tmp_path)

    def build(shapes: Shapes) -> AsymmDiT:
        model = unread.build(shapes)
        pieces.update({f"blocks.{i}": block for i, block in enumerate(model.blocks)})
        return model

    def each(name: str, module: torch.nn.Module) -> None:
        assert_equal(module, dit.get_submodule(name))
        pieces.pop(name, None)
        assert all(tensor.is_meta for later in pieces.values() for tensor in later.state_dict().values())
        seen.append(name)

    assert_equal(replace(unread, build=build).load(each=each), dit)
    blocks = ["blocks.0", "blocks.1"]
    assert seen == ["patch_embed", "time_embed", "caption_pool", "text_proj", *blocks, "final"]


def test_a_piece_may_be_changed_before_the_next_is_read(tmp_path: Path):
    save_dit(small_dit(), tmp_path)
    loaded = load_dit(tmp_path, each=lambda name, module: module.to("meta") if name.startswith("blocks") else None)
    assert {name.split(".")[0] for name, tensor in loaded.state_dict().items() if tensor.is_meta} == {"blocks"}


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_one_half_of_a_vae_can_be_left_in_its_file(tmp_path: Path, layout: Layout):
    vae = small_vae()
    save_vae(vae, tmp_path, layout=layout)
    alone = load_vae(tmp_path, halves=["decoder"])
    assert alone.encoder is None and alone.decoder is not None and vae.decoder is not None
    assert_equal(alone.decoder, vae.decoder)
    assert load_vae(tmp_path, halves=["encoder"]).decoder is None


def test_weights_that_are_loaded_while_nothing_can_be_trained_can_be_trained_later(tmp_path: Path):
    save_dit(small_dit(), tmp_path)
    with torch.inference_mode():
        model = load_dit(tmp_path, dtype="bfloat16")
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_sizes_are_known_without_weights(tmp_path: Path):
    vae = small_vae()
    save_dit(small_dit(), tmp_path)
    save_vae(vae, tmp_path)
    files = locate(tmp_path, parts=["transformer", "vae"])
    assert dit_sizes(files) == DIT and vae.decoder is not None and decoder_sizes(files) == vae.decoder.config
    assert all(tensor.is_meta for tensor in open_dit(files).skeleton().state_dict().values())
