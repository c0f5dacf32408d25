"""DoRAs beside PEFT's own: read, merged, trained and written."""

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_mochi import MochiTransformer3DModel
from diffusers.pipelines.mochi.pipeline_mochi import MochiPipeline
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import daifuku
from daifuku.model.dit import AsymmDiT
from daifuku.train.lora import LAYERS, add_lora, lora_pairs
from daifuku.train.sections import KindSection
from daifuku.train.velocity import velocity_error
from daifuku.weights.files import write_safetensors
from daifuku.weights.lora import combined, linear_shapes, read_lora
from daifuku.weights.lora_write import pairs_content
from daifuku.weights.low_rank import Dora, LowRank, merged
from tests.parity.test_peft import (
    ATTENTION,
    CONFIGS,
    linear_layers,
    save_as_pipelines_do,
    spread_loras,
    transformer,
    velocity,
)

MERGED, LIVE = 1e-5, 1e-4

DORAS = {
    "attention": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=ATTENTION),
    "q and v alone": LoraConfig(r=2, use_dora=True, target_modules=["to_q", "to_v", "add_v_proj"]),
    "every layer": LoraConfig(r=3, lora_alpha=2, use_dora=True, target_modules=linear_layers()),
    "rank-stabilised": LoraConfig(r=9, lora_alpha=6, use_rslora=True, use_dora=True, target_modules=ATTENTION),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    transformer().save_pretrained(folder / "transformer")
    return folder


def stirred(model: nn.Module):
    """Random matrices, and magnitudes up to half larger or smaller than those of the weights."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 0.5 + torch.rand(parameter.shape)
        elif "lora_" in name:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
    return model


def assert_same(ours: Tensor, theirs: Tensor, plain: Tensor, tolerance: float) -> None:
    assert (theirs - plain).abs().max() > 0.1, "a DoRA that changes nothing shows nothing"
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_a_weight_is_merged_as_peft_merges_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 7, bias=False))
    weights = [layer.weight.detach().clone() for layer in model]
    theirs = stirred(get_peft_model(model, LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=["0", "1"])))
    layers = [theirs.get_submodule(f"base_model.model.{i}") for i in range(2)]
    deltas = []
    for layer in layers:
        up, down = layer.lora_B.default.weight, layer.lora_A.default.weight
        dora = Dora(down=down, up=up * 5 / 3, magnitude=layer.lora_magnitude_vector.default.weight)
        deltas.append(LowRank(down=down[:0], up=up[:, :0], doras=(dora,)))
    expected = theirs.merge_and_unload()
    for weight, delta, layer in zip(weights, deltas, expected, strict=True):
        assert (layer.weight - weight).abs().max() > 0.05
        torch.testing.assert_close(merged(weight, delta), layer.weight, atol=MERGED, rtol=0)


@pytest.mark.parametrize("config", DORAS.values(), ids=DORAS.keys())
def test_a_dora_that_peft_saved_is_merged_as_peft_merges_it(
    config: LoraConfig, model_folder: Path, tmp_path: Path
) -> None:
    plain = velocity(transformer(), theirs=True)
    theirs = stirred(get_peft_model(transformer(), config))  # pyright: ignore[reportArgumentType]
    theirs.save_pretrained(tmp_path)
    ours = daifuku.load_dit(model_folder, loras=[(str(tmp_path), 1.0)])
    unloaded = theirs.merge_and_unload()
    assert_same(velocity(ours, theirs=False), velocity(unloaded, theirs=True), plain, LIVE)
    # Through diffusers' layout, the weights themselves.
    unloaded.save_pretrained(tmp_path / "merged" / "transformer")
    for name, weight in daifuku.load_dit(tmp_path / "merged").state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, atol=MERGED, rtol=0, msg=name)


@pytest.mark.parametrize("config", DORAS.values(), ids=DORAS.keys())
def test_a_dora_that_diffusers_saved_acts_as_in_diffusers(
    config: LoraConfig, model_folder: Path, tmp_path: Path
) -> None:
    plain = velocity(transformer(), theirs=True)
    theirs = transformer()
    theirs.add_adapter(config)
    stirred(theirs)
    theirs.save_lora_adapter(tmp_path / "own")
    save_as_pipelines_do(theirs, tmp_path / "pipeline")
    expected = velocity(theirs, theirs=True)
    for folder in ("own", "pipeline"):
        ours = daifuku.load_dit(model_folder, loras=[(str(tmp_path / folder), 1.0)])
        assert_same(velocity(ours, theirs=False), expected, plain, LIVE)


def test_a_lora_and_a_dora_add_up_to_what_each_makes_of_the_models_own_weights(
    model_folder: Path, tmp_path: Path
) -> None:
    folders = {"plain": CONFIGS["attention"], "dora": DORAS["attention"]}
    changes: dict[str, dict[str, Tensor]] = {}
    base = daifuku.load_dit(model_folder).state_dict()
    for name, config in folders.items():
        theirs = get_peft_model(transformer(), config)  # pyright: ignore[reportArgumentType]
        (stirred if name == "dora" else spread_loras)(theirs).save_pretrained(tmp_path / name)
        theirs.merge_and_unload().save_pretrained(tmp_path / f"{name}-merged" / "transformer")
        found = daifuku.load_dit(tmp_path / f"{name}-merged").state_dict()
        changes[name] = {key: found[key] - base[key] for key in base}
    loras = [(str(tmp_path / "plain"), 0.7), (str(tmp_path / "dora"), -0.4)]
    one, other = (daifuku.load_dit(model_folder, loras=each).state_dict() for each in (loras, loras[::-1]))
    for key, weight in base.items():
        expected = weight + 0.7 * changes["plain"][key] - 0.4 * changes["dora"][key]
        torch.testing.assert_close(one[key], expected, atol=MERGED, rtol=0, msg=key)
        torch.testing.assert_close(other[key], expected, atol=MERGED, rtol=0, msg=key)
    layers = linear_shapes(daifuku.load_dit(model_folder))
    assert combined([(read_lora(tmp_path / "dora"), 0.0)], layers) == {}


KINDS = {name: KindSection(rank=2 + i, alpha=3.0 + i) for i, name in enumerate(LAYERS)}


def predicted(model: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    torch.manual_seed(3)
    text, mask = torch.randn(2, 9, 32), torch.arange(9) < torch.tensor([4, 9])[:, None]
    return model(noisy, sigma, text, mask)


def loss(dit: nn.Module) -> Tensor:
    torch.manual_seed(4)
    clean, noise = torch.randn(2, 12, 2, 4, 6), torch.randn(2, 12, 2, 4, 6)
    return velocity_error(partial(predicted, dit), clean, noise, torch.tensor([0.3, 0.9]), False).mean()


@pytest.fixture(scope="module")
def trained(model_folder: Path) -> AsymmDiT:
    """After a few steps of a DoRA of all kinds, which lower the loss."""
    dit = add_lora(daifuku.load_dit(model_folder), KINDS, seed=0, dora=True)
    optimiser = torch.optim.AdamW([p for p in dit.parameters() if p.requires_grad], lr=0.02)
    losses: list[float] = []
    for _ in range(6):
        error = loss(dit)
        losses.append(float(error.detach()))
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    return dit


def test_a_trained_dora_gives_diffusers_our_velocity(model_folder: Path, trained: AsymmDiT, tmp_path: Path) -> None:
    content = pairs_content(lora_pairs(trained), "diffusers", about={})
    write_safetensors(tmp_path / "dora.safetensors", content.entries, content.metadata)
    theirs = MochiTransformer3DModel.from_pretrained(model_folder / "transformer")
    pipe = MochiPipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=theirs)  # pyright: ignore
    pipe.load_lora_weights(tmp_path, weight_name="dora.safetensors")
    plain = velocity(daifuku.load_dit(model_folder), theirs=False)
    assert_same(velocity(trained, theirs=False), velocity(theirs, theirs=True), plain, LIVE)


@pytest.mark.parametrize("layout", ["diffusers", "comfy"])
def test_our_own_reader_gives_a_trained_dora_the_same_velocity(
    layout: str, model_folder: Path, trained: AsymmDiT, tmp_path: Path
) -> None:
    content = pairs_content(lora_pairs(trained), layout, about={})  # pyright: ignore[reportArgumentType]
    path = tmp_path / "dora.safetensors"
    write_safetensors(path, content.entries, content.metadata)
    found = daifuku.load_dit(model_folder, loras=[(str(path), 1.0)])
    plain = velocity(daifuku.load_dit(model_folder), theirs=False)
    assert_same(velocity(found, theirs=False), velocity(trained, theirs=False), plain, LIVE)
