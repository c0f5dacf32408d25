"""One step of training beside PEFT on the transformer of diffusers, and what comes out of a run, read by diffusers."""

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_mochi import MochiTransformer3DModel
from diffusers.pipelines.mochi.pipeline_mochi import MochiPipeline
from torch import Tensor, nn

import daifuku
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.kernels import blocks_of
from daifuku.train.lora import LAYERS, add_lora, lora_pairs
from daifuku.train.sections import KindSection
from daifuku.train.velocity import velocity_error
from daifuku.weights.files import write_safetensors
from daifuku.weights.lora_write import pairs_content
from daifuku.weights.save import save_dit

TOLERANCE = 1e-4

KINDS = {name: KindSection(rank=2 + i, alpha=3.0 + i) for i, name in enumerate(LAYERS)}

QKV = {"video_qkv": ("to_q", "to_k", "to_v"), "text_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}

SINGLE = {
    "attention.video_out": "attn1.to_out.0",
    "attention.text_out": "attn1.to_add_out",
    "video_mlp.up": "ff.net.0.proj",
    "video_mlp.down": "ff.net.2",
    "text_mlp.up": "ff_context.net.0.proj",
    "text_mlp.down": "ff_context.net.2",
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer that diffusers made, whose every path carries a signal."""
    torch.manual_seed(0)
    model = MochiTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        num_layers=3,
        pooled_projection_dim=24,
        text_embed_dim=32,
        time_embed_dim=64,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def ours(model_folder: Path) -> AsymmDiT:
    """Our transformer with LoRAs of all kinds that change something."""
    dit = add_lora(daifuku.load_dit(model_folder), KINDS, seed=0)
    torch.manual_seed(1)
    for parameter in dit.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3 * parameter.shape[1] ** -0.5)
    return dit


def with_our_lora(model_folder: Path, ours: AsymmDiT, folder: Path) -> MochiTransformer3DModel:
    content = pairs_content(lora_pairs(ours), "diffusers", about={})
    write_safetensors(folder / "lora.safetensors", content.entries, content.metadata)
    theirs = MochiTransformer3DModel.from_pretrained(model_folder / "transformer")
    pipe = MochiPipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=theirs)  # pyright: ignore
    pipe.load_lora_weights(folder, weight_name="lora.safetensors")
    return theirs


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(3)
    mask = torch.arange(9) < torch.tensor([4, 9])[:, None]
    latents = {name: torch.randn(2, 12, 2, 4, 6) for name in ("clean", "noise")}
    return latents | {"sigma": torch.tensor([0.3, 0.9]), "text": torch.randn(2, 9, 32), "mask": mask}


def predicted(model: nn.Module, noisy: Tensor, sigma: Tensor) -> Tensor:
    given = inputs()
    if isinstance(model, MochiTransformer3DModel):
        return model(noisy, given["text"], (1 - sigma) * 1000, given["mask"], return_dict=False)[0]
    return model(noisy, sigma, given["text"], given["mask"])


def loss(model: nn.Module) -> Tensor:
    given = inputs()
    return velocity_error(partial(predicted, model), given["clean"], given["noise"], given["sigma"], False).mean()


@torch.no_grad()
def velocity(model: nn.Module) -> Tensor:
    return predicted(model, inputs()["noise"], inputs()["sigma"])


def assert_same_velocity(found: nn.Module, expected: nn.Module, plain: nn.Module) -> None:
    assert (velocity(expected) - velocity(plain)).abs().max() > 0.1, "training that changes nothing shows nothing"
    torch.testing.assert_close(velocity(found), velocity(expected), atol=TOLERANCE, rtol=0)


def test_a_step_of_a_lora_has_the_gradients_of_peft_on_the_transformer_of_diffusers(
    model_folder: Path, ours: AsymmDiT, tmp_path: Path
) -> None:
    theirs = with_our_lora(model_folder, ours, tmp_path)
    theirs.requires_grad_(True)
    mine, other = loss(ours), loss(theirs)
    torch.testing.assert_close(mine, other, atol=TOLERANCE, rtol=0)
    mine.backward()
    other.backward()
    compared = 0
    for i in range(len(blocks_of(ours))):
        block, their_block = ours.blocks[i], theirs.transformer_blocks[i]
        for layer, names in QKV.items():
            down, up = gradients(block.get_submodule(f"attention.{layer}"), "default")
            parts = [gradients(their_block.get_submodule(f"attn1.{name}"), "default_0") for name in names]
            # Ours are one layer with one first matrix: what its three copies learn adds up.
            compared += same(down, sum(part[0] for part in parts))
            compared += same(up, torch.cat([part[1] for part in parts]))
        for layer, name in SINGLE.items():
            if "text" in layer and i == len(blocks_of(ours)) - 1:
                continue
            down, up = gradients(block.get_submodule(layer), "default")
            their_down, their_up = gradients(their_block.get_submodule(name), "default_0")
            # diffusers stacks value and gate the other way round.
            swapped = torch.cat(their_up.chunk(2)[::-1]) if layer.endswith("up") else their_up
            compared += same(down, their_down) + same(up, swapped)
    assert compared == sum(p.requires_grad for p in ours.parameters())


def gradients(layer: nn.Module, adapter: str) -> tuple[Tensor, Tensor]:
    found = []
    for side in ("lora_A", "lora_B"):
        weight = layer.get_submodule(f"{side}.{adapter}").weight
        assert isinstance(weight, Tensor) and weight.grad is not None
        found.append(weight.grad)
    return found[0], found[1]


def same(ours: Tensor, theirs: Tensor | int) -> int:
    assert isinstance(theirs, Tensor) and theirs.abs().max() > 1e-4, "gradients of nothing show nothing"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)
    return 1


def test_a_trained_lora_gives_diffusers_our_velocity(model_folder: Path, ours: AsymmDiT, tmp_path: Path) -> None:
    assert_same_velocity(with_our_lora(model_folder, ours, tmp_path), ours, daifuku.load_dit(model_folder))


@pytest.mark.parametrize("layout", ["diffusers", "comfy", "original"])
def test_our_own_pipeline_reads_the_trained_lora_in_every_layout(
    layout: str, model_folder: Path, tmp_path: Path
) -> None:
    kinds = {name: kind for name, kind in KINDS.items() if layout != "original" or "mlp" not in name}
    dit = add_lora(daifuku.load_dit(model_folder), kinds, seed=0)
    for parameter in dit.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3 * parameter.shape[1] ** -0.5)
    content = pairs_content(lora_pairs(dit), layout, about={"base_model": "test"})  # pyright: ignore[reportArgumentType]
    path = tmp_path / "lora.safetensors"
    write_safetensors(path, content.entries, content.metadata)
    found = daifuku.load_dit(model_folder, loras=[(str(path), 1.0)])
    assert_same_velocity(found, dit, daifuku.load_dit(model_folder))


def test_a_fully_trained_transformer_gives_diffusers_our_velocity(model_folder: Path, tmp_path: Path) -> None:
    dit = daifuku.load_dit(model_folder).requires_grad_(True)
    loss(dit).backward()
    with torch.no_grad():
        for parameter in dit.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.05)
    save_dit(dit, tmp_path)
    theirs = MochiTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert_same_velocity(theirs, dit, daifuku.load_dit(model_folder))
