"""LoRAs that diffusers and PEFT wrote, on the transformer of diffusers and on ours: the same velocities."""

from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_mochi import MochiTransformer3DModel
from diffusers.pipelines.mochi.pipeline_mochi import MochiPipeline
from peft import LoraConfig, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn

import daifuku
from daifuku.weights.lora import read_lora

TOLERANCE = 1e-4

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def transformer() -> MochiTransformer3DModel:
    torch.manual_seed(0)
    model = MochiTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        num_layers=3,
        pooled_projection_dim=24,
        text_embed_dim=32,
        time_embed_dim=64,
    ).eval()
    return spread(model)


def spread(model: nn.Module, seed: int = 0):
    """Random weights, LoRAs included, that let every path carry a signal."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name == "pos_frequencies":
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def linear_layers() -> list[str]:
    return [name for name, layer in transformer().named_modules() if isinstance(layer, nn.Linear)]


CONFIGS = {
    "attention": LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION),
    "q and v alone": LoraConfig(r=2, target_modules=["to_q", "to_v", "add_v_proj"]),
    "every layer": LoraConfig(r=3, lora_alpha=2, target_modules=linear_layers()),
    "ranks and alphas by pattern": LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=ATTENTION,
        rank_pattern={"to_q": 6, "transformer_blocks.1.attn1.to_k": 1},
        alpha_pattern={r"attn1\.to_q": 3, "transformer_blocks.1.attn1.to_k": 5},
    ),
    "rank-stabilised": LoraConfig(r=9, lora_alpha=6, use_rslora=True, target_modules=ATTENTION),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    transformer().save_pretrained(folder / "transformer")
    return folder


def velocity(model: nn.Module, *, theirs: bool) -> Tensor:
    torch.manual_seed(3)
    latent, text, sigma = torch.randn(2, 12, 2, 4, 6), torch.randn(2, 9, 32), torch.tensor([0.3, 0.9])
    mask = torch.arange(9) < torch.tensor([4, 9])[:, None]
    with torch.no_grad():
        if theirs:
            return model(latent, text, (1 - sigma) * 1000, mask, return_dict=False)[0]
        return model(latent, sigma, text, mask)


def assert_same(ours: Tensor, theirs: Tensor, plain: Tensor) -> None:
    assert (theirs - plain).abs().max() > 0.1, "a LoRA that changes nothing shows nothing"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_folder_that_peft_saved_changes_the_transformer_as_peft_does(
    config: LoraConfig, model_folder: Path, tmp_path: Path
) -> None:
    plain = velocity(transformer(), theirs=True)
    theirs = spread_loras(get_peft_model(transformer(), config))  # pyright: ignore[reportArgumentType]
    theirs.save_pretrained(tmp_path)
    ours = daifuku.load_dit(model_folder, loras=[(str(tmp_path), 1.0)])
    assert read_lora(tmp_path).layout == "peft"
    assert_same(velocity(ours, theirs=False), velocity(theirs, theirs=True), plain)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_file_that_diffusers_saved_changes_the_transformer_as_diffusers_does(
    config: LoraConfig, model_folder: Path, tmp_path: Path
) -> None:
    plain = velocity(transformer(), theirs=True)
    theirs = transformer()
    theirs.add_adapter(config)
    spread_loras(theirs)
    theirs.save_lora_adapter(tmp_path / "own")
    save_as_pipelines_do(theirs, tmp_path / "pipeline")
    expected = velocity(theirs, theirs=True)
    for folder in ("own", "pipeline"):
        ours = daifuku.load_dit(model_folder, loras=[(str(tmp_path / folder), 1.0)])
        assert_same(velocity(ours, theirs=False), expected, plain)


def spread_loras(model: nn.Module):
    """Random LoRAs: a new one changes nothing."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
    return model


def save_as_pipelines_do(model: MochiTransformer3DModel, folder: Path) -> None:
    layers = get_peft_model_state_dict(model)
    about = {"transformer": model.peft_config["default"].to_dict()}  # pyright: ignore[reportAttributeAccessIssue]
    MochiPipeline.save_lora_weights(
        folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=about["transformer"]
    )


def test_several_loras_with_strengths_act_as_in_diffusers(model_folder: Path, tmp_path: Path) -> None:
    plain = velocity(transformer(), theirs=True)
    loras: list[tuple[str, float]] = []
    for i, (name, strength) in enumerate({"attention": 0.7, "every layer": -0.4}.items()):
        one = transformer()
        one.add_adapter(CONFIGS[name])
        spread_loras(one)
        save_as_pipelines_do(one, tmp_path / str(i))
        loras.append((str(tmp_path / str(i)), strength))
    pipe = MochiPipeline(
        scheduler=None,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer(),  # pyright: ignore
    )
    for i, (folder, _) in enumerate(loras):
        pipe.load_lora_weights(folder, adapter_name=f"lora{i}")
    pipe.set_adapters(["lora0", "lora1"], [strength for _, strength in loras])
    ours = daifuku.load_dit(model_folder, loras=loras)
    assert_same(velocity(ours, theirs=False), velocity(pipe.transformer, theirs=True), plain)
