"""Saving: what diffusers makes of the folders, shards, and files that appear whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_mochi import AutoencoderKLMochi
from diffusers.models.transformers.transformer_mochi import MochiTransformer3DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from daifuku.config import DecoderConfig, DiTConfig, EncoderConfig, LatentStats
from daifuku.errors import InvalidRequest, UnwritableOutput
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.weights.load import load_dit
from daifuku.weights.save import save_dit, save_vae, write_defaults, write_model_index, write_scheduler

TOLERANCE = 2e-4
DIT = DiTConfig(
    num_blocks=3, num_heads=3, head_dim=16, text_width=24, video_mlp_width=128, text_mlp_width=64, text_features=32
)
STATS = LatentStats(mean=tuple(0.1 * i for i in range(12)), std=tuple(1 + 0.1 * i for i in range(12)))


def small_dit(config: DiTConfig = DIT) -> AsymmDiT:
    torch.manual_seed(0)
    model = AsymmDiT(config).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5)
    return model


def small_vae(decoder_blocks: tuple[int, int, int, int, int] = (0, 1, 1, 2, 1)) -> AsymmVAE:
    torch.manual_seed(0)
    encoder = EncoderConfig(channels=(32, 32, 64, 32), num_blocks=(0, 1, 1, 2, 1))
    decoder = DecoderConfig(channels=(32, 64, 32, 64), num_blocks=decoder_blocks)
    return AsymmVAE(Encoder(encoder), Decoder(decoder), STATS).requires_grad_(False)


def drop_first_frames(block: Any, _: Any, out: Any) -> Any:
    return out[0][:, :, block.temporal_expansion - 1 :], out[1]


@pytest.mark.parametrize("lengths", [(5, 12), (0, 9), (0, 0), (12, 12)])
def test_diffusers_computes_the_same_velocity_from_a_saved_folder(tmp_path: Path, lengths: tuple[int, int]):
    ours = small_dit()
    save_dit(ours, tmp_path)
    theirs = MochiTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert isinstance(theirs, MochiTransformer3DModel)
    latent, text = torch.randn(2, 12, 3, 6, 10), torch.randn(2, 12, 32)
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    sigma = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        expected = theirs(latent, text, (1 - sigma) * 1000, mask, return_dict=False)[0]
    found = ours(latent, sigma, text, mask)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_diffusers_encodes_and_decodes_the_same_from_a_saved_folder(tmp_path: Path):
    ours = small_vae()
    save_vae(ours, tmp_path)
    theirs = AutoencoderKLMochi.from_pretrained(tmp_path / "vae")
    assert isinstance(theirs, AutoencoderKLMochi)
    video, latent = torch.rand(2, 3, 13, 16, 24) * 2 - 1, torch.randn(2, 12, 3, 2, 3)
    posterior, expected = ours.encode(video), theirs.encode(video)[0]
    torch.testing.assert_close(posterior.mean, expected.mean, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(posterior.logvar, expected.logvar, atol=TOLERANCE, rtol=0)

    # diffusers drops the frames that never existed only at the very end, so they colour its first frames; the original
    # drops them stage by stage, and so does diffusers here.
    theirs.drop_last_temporal_frames = False
    for block in theirs.decoder.up_blocks:
        block.register_forward_hook(drop_first_frames)
    with torch.no_grad():
        torch.testing.assert_close(ours.decode(latent), theirs.decode(latent)[0], atol=TOLERANCE, rtol=0)
    assert tuple(theirs.config["latents_std"]) == STATS.std


def test_diffusers_reads_the_scheduler(tmp_path: Path):
    write_scheduler(tmp_path)
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    assert scheduler.config["invert_sigmas"] and scheduler.config["num_train_timesteps"] == 1000


def test_the_model_index_carries_the_empty_prompt_rule(tmp_path: Path):
    write_model_index(tmp_path, zero_empty=True)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "MochiPipeline" and index["force_zeros_for_empty_prompt"] is True


def test_large_weights_are_split_into_shards_that_diffusers_and_we_read(tmp_path: Path):
    model = small_dit()
    save_dit(model, tmp_path, max_shard_bytes=100_000)
    shards = sorted((tmp_path / "transformer").glob("*.safetensors"))
    assert len(shards) > 2 and all(path.stat().st_size < 120_000 for path in shards)
    theirs = MochiTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert isinstance(theirs, MochiTransformer3DModel)
    assert torch.equal(theirs.proj_out.weight, model.final.linear.weight)
    loaded = load_dit(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_saving_again_leaves_no_older_shards_behind(tmp_path: Path):
    save_dit(small_dit(), tmp_path, max_shard_bytes=100_000)
    variant = tmp_path / "transformer" / "diffusion_pytorch_model.bf16.safetensors"
    variant.touch()
    save_dit(small_dit(), tmp_path)
    names = {path.name for path in (tmp_path / "transformer").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors", variant.name}


def test_a_model_can_be_saved_over_the_file_it_was_loaded_from(tmp_path: Path):
    save_dit(small_dit(), tmp_path)
    save_dit(load_dit(tmp_path), tmp_path, dtype="bfloat16")
    loaded = load_dit(tmp_path, dtype="bfloat16")
    assert torch.equal(loaded.text_proj.weight, small_dit().text_proj.weight.bfloat16())
    stored = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored["pos_frequencies"].dtype == torch.float32 and stored["proj_out.bias"].dtype == torch.bfloat16


def test_a_save_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_dit(small_dit(), tmp_path, layout="original")
    before = (tmp_path / "dit.safetensors").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daifuku.weights.files.os.fsync", full_disk)
    with pytest.raises(UnwritableOutput, match=r"dit\.safetensors cannot be written: No space left on device"):
        save_dit(small_dit(), tmp_path, layout="original")
    assert [path.name for path in tmp_path.iterdir()] == ["dit.safetensors"]
    assert (tmp_path / "dit.safetensors").read_bytes() == before


def test_a_width_that_diffusers_cannot_hold_is_refused(tmp_path: Path):
    wide = DiTConfig(num_blocks=2, num_heads=3, head_dim=16, text_width=24, video_mlp_width=256, text_mlp_width=64)
    with torch.device("meta"):
        model = AsymmDiT(wide)
    with pytest.raises(InvalidRequest, match="video stream of width 48 to 128, and this model's has 256"):
        save_dit(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_vae_that_diffusers_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="one list of block counts"):
        save_vae(small_vae(decoder_blocks=(1, 1, 1, 2, 1)), tmp_path)
    with pytest.raises(InvalidRequest, match="one half is absent"):
        save_vae(AsymmVAE(None, small_vae().decoder, STATS), tmp_path)


def test_statistics_that_the_original_layout_cannot_hold_are_refused(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="no place for other latent statistics"):
        save_vae(small_vae(), tmp_path, layout="original")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableOutput, match=r"file.generation_config\.json"):
        write_defaults(tmp_path / "file", {"fps": 30})
