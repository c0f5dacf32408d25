"""The name tables against the published full-size models, and the sizes read off their shapes."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from daifuku.config import MOCHI_STATS, DecoderConfig, DiTConfig, EncoderConfig
from daifuku.errors import CheckpointError
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.weights.names import Layout, Part, find_parts, name_table, of_part, to_theirs
from daifuku.weights.save import transformer_config, vae_config
from daifuku.weights.sizes import decoder_config, dit_config, encoder_config
from daifuku.weights.tensors import TensorFiles, Wanted

PUBLISHED = json.loads(
    gzip.decompress(Path(__file__).parents[2].joinpath("data/published_layouts.json.gz").read_bytes())
)
NUM_PARAMETERS = {"dit": 10_027_677_744, "decoder": 362_526_595, "encoder": 97_222_016}
PARTS: tuple[Part, ...] = ("dit", "encoder", "decoder")
LAYOUTS: tuple[Layout, ...] = ("original", "diffusers")


def published(part: Part, layout: Layout) -> dict[str, list[int]]:
    if layout == "original":
        return PUBLISHED["original"][part]
    tensors = PUBLISHED["diffusers"]["transformer" if part == "dit" else "vae"]
    return {name: tensors[name] for name in of_part(tensors, part, layout)}


@pytest.fixture(scope="module")
def full_size() -> dict[str, torch.nn.Module]:
    with torch.device("meta"):
        return {"dit": AsymmDiT(DiTConfig()), "encoder": Encoder(EncoderConfig()), "decoder": Decoder(DecoderConfig())}


@pytest.mark.parametrize("part", PARTS)
def test_the_full_size_model_has_as_many_parameters_as_the_published_one(part: Part, full_size: dict[str, Any]):
    assert sum(parameter.numel() for parameter in full_size[part].parameters()) == NUM_PARAMETERS[part]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", PARTS)
def test_our_tensors_are_exactly_the_published_ones(part: Part, layout: Layout, full_size: dict[str, Any]):
    ours = full_size[part].state_dict()
    table = name_table(part, layout, ours)
    found: dict[str, list[int]] = {}
    for name, tensor in ours.items():
        stored = table.stored(name).names
        found |= {key: [tensor.shape[0] // len(stored), *tensor.shape[1:]] for key in stored}
    assert found == published(part, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", PARTS)
def test_a_published_name_leads_to_our_name_and_back(part: Part, layout: Layout):
    names = published(part, layout)
    table = name_table(part, layout, names)
    for name in names:
        ours = table.ours(name)
        assert ours is not None and name in table.stored(ours).names


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", PARTS)
def test_a_file_is_recognised_by_its_tensors(part: Part, layout: Layout):
    (found,) = find_parts(published(part, layout))
    assert (found.part, found.naming, found.prefix) == (part, layout, "")


def test_a_foreign_file_is_not_recognised():
    others = ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "blocks.0.attn.qkv", "decoder.up_blocks.0")
    assert find_parts([f"{name}.weight" for name in others]) == ()


def test_an_encoder_without_blocks_at_full_size_keeps_its_numbers_apart():
    config = EncoderConfig(channels=(32, 32, 32, 32), num_blocks=(0, 1, 0, 2, 1))
    with torch.device("meta"):
        ours = Encoder(config).state_dict()
    table = name_table("encoder", "original", ours)
    assert table.stored("stages.0.down.weight").names == ("layers.1.layers.0.weight",)
    assert table.stored("middle.0.conv1.bias").names == ("layers.4.stack.2.bias",)
    theirs = [name for ours_name in ours for name in table.stored(ours_name).names]
    again = name_table("encoder", "original", theirs)
    assert [again.ours(name) for name in theirs] == list(ours)


@pytest.mark.parametrize(
    ("part", "name"), [("dit", "blocks.0.video_mlp.up.weight"), ("dit", "blocks.0.attention.text_qkv.weight")]
)
def test_a_rearranged_tensor_comes_back_unchanged(tmp_path: Path, part: Part, name: str):
    stored = name_table(part, "diffusers", [name]).stored(name)
    tensor = torch.randn(6, 2)
    theirs = to_theirs(stored, tensor)
    assert not torch.equal(theirs[0], tensor)
    save_file(dict(zip(stored.names, map(torch.clone, theirs), strict=True)), tmp_path / "theirs.safetensors")
    files = TensorFiles([tmp_path / "theirs.safetensors"])
    wanted = {name: Wanted(stored=stored, dtype=torch.float32)}
    assert torch.equal(files.read(wanted, torch.device("cpu"))[name], tensor)


def test_sizes_are_read_off_the_shapes(full_size: dict[str, Any]):
    shapes = {part: {k: tuple(v.shape) for k, v in model.state_dict().items()} for part, model in full_size.items()}
    assert dit_config(shapes["dit"]) == DiTConfig()
    assert encoder_config(shapes["encoder"]) == EncoderConfig()
    assert decoder_config(shapes["decoder"]) == DecoderConfig()


@pytest.mark.parametrize("num_blocks", [(0, 1, 0, 2, 1), (2, 0, 0, 0, 0), (0, 0, 0, 0, 0)])
def test_block_counts_may_be_zero_anywhere(num_blocks: tuple[int, int, int, int, int]):
    attention = (num_blocks[0] > 0, False, num_blocks[2] > 0, num_blocks[3] > 0, False)
    encoder = EncoderConfig(channels=(32, 64, 96, 128), num_blocks=num_blocks, attention=attention, latent_channels=4)
    decoder = DecoderConfig(channels=(32, 64, 96, 128), num_blocks=num_blocks, latent_channels=4)
    with torch.device("meta"):
        halves = Encoder(encoder).state_dict(), Decoder(decoder).state_dict()
    encoder_shapes, decoder_shapes = ({k: tuple(v.shape) for k, v in half.items()} for half in halves)
    assert encoder_config(encoder_shapes) == encoder
    assert decoder_config(decoder_shapes) == decoder


def test_a_shape_that_tells_no_size_is_named():
    with pytest.raises(CheckpointError, match=r"pos_frequencies has shape \[3, 4\] where 3 axes belong"):
        dit_config({"pos_frequencies": (3, 4)})


def test_the_configurations_we_write_are_the_published_ones(full_size: dict[str, Any]):
    names = {"_class_name", "_diffusers_version"}
    transformer = transformer_config(DiTConfig())
    vae = vae_config(AsymmVAE(full_size["encoder"], full_size["decoder"], MOCHI_STATS))
    assert {key: transformer[key] for key in transformer.keys() - names} == PUBLISHED["diffusers"]["transformer_config"]
    assert {key: vae[key] for key in vae.keys() - names} == PUBLISHED["diffusers"]["vae_config"]


def test_the_statistics_are_the_published_ones():
    config = PUBLISHED["diffusers"]["vae_config"]
    assert (list(MOCHI_STATS.mean), list(MOCHI_STATS.std)) == (config["latents_mean"], config["latents_std"])
