"""The figures of docs/quantisation.md, measured again: each may be off by a tenth of itself."""

import re
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from daifuku import registry
from daifuku.config import QUANTISERS, DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.runtime.quant.int4 import Int4Linear
from daifuku.runtime.quant.int8 import Int8Linear
from daifuku.runtime.quantiser import Quantiser, large_layers, quantise
from daifuku.sample.noise import seeded_noise
from daifuku.sample.schedule import linear_quadratic
from daifuku.text import TextEncoder, load_text_encoder
from daifuku.weights.load import load_dit

PAGE = (Path(__file__).parents[3] / "docs" / "quantisation.md").read_text()
TOLERANCE = 0.1
PROMPTS = ("a large red ball bouncing on a black background", "a small blue star falls on beige")
SHAPE = (12, 7, 12, 12)


class Question(NamedTuple):
    """What a transformer is called with."""

    latent: Tensor
    sigma: Tensor
    features: Tensor
    mask: Tensor


class Subject(NamedTuple):
    """A network, what it is asked, and what it answers in full precision."""

    dit: AsymmDiT
    questions: list[Question]
    velocity: Tensor


@torch.inference_mode()
def answers(dit: AsymmDiT, questions: list[Question]) -> Tensor:
    return torch.cat([dit(*each).flatten().float() for each in questions])


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def text_encoder() -> TextEncoder:
    return load_text_encoder(BUILT_IN_FOLDER / "text_encoder", BUILT_IN_FOLDER / "tokenizer", zero_empty=False)


@cache
def captions() -> list[tuple[Tensor, Tensor]]:
    """Of the prompts and of the empty prompt."""
    encoded = [text_encoder().encode([prompt]) for prompt in (*PROMPTS, "")]
    return [(each.features, each.mask) for each in encoded]


@cache
def built_in() -> Subject:
    """The built-in model, asked at the steps of short runs of its own."""
    dit, questions = load_dit(BUILT_IN_FOLDER), []
    for seed, caption in enumerate(captions()[:-1]):
        latent = seeded_noise([seed], SHAPE)
        for now, after in pairwise(linear_quadratic(8, 0.1)):
            questions.append(Question(latent, torch.tensor([now]), *caption))
            latent = latent + (now - after) * answers(dit, questions[-1:]).view_as(latent)
    return Subject(dit, questions, answers(dit, questions))


@cache
def wide() -> Subject:
    """A random model of the width and depth that the page states."""
    torch.manual_seed(0)
    config = DiTConfig(
        num_blocks=8, num_heads=6, text_width=384, video_mlp_width=2048, text_mlp_width=1024, text_features=512
    )
    dit = AsymmDiT(config).eval().requires_grad_(False)
    for parameter in dit.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    questions = [
        Question(torch.randn(1, 12, 2, 8, 8), torch.tensor([sigma]), torch.randn(1, 40, 512), torch.ones(1, 40).bool())
        for sigma in (0.95, 0.5, 0.1)
    ]
    return Subject(dit, questions, answers(dit, questions))


@torch.inference_mode()
def guided_run(dit: AsymmDiT) -> Tensor:
    """Clean latents of the prompts, with the built-in model's own number of steps and guidance."""
    *prompts, empty = captions()
    finished = []
    for seed, caption in enumerate(prompts):
        latent = seeded_noise([seed], SHAPE)
        for now, after in pairwise(linear_quadratic(32, 0.1)):
            towards, away = (dit(latent, torch.tensor([now]), *each) for each in (caption, empty))
            latent = latent + (now - after) * (away + 4.5 * (towards - away)).float()
        finished.append(latent)
    return torch.cat(finished)


@cache
def exact_run() -> Tensor:
    return guided_run(built_in().dit)


@cache
def published() -> AsymmDiT:
    with torch.device("meta"):
        return AsymmDiT(DiTConfig())


def quantised(name: str, dit: AsymmDiT) -> tuple[AsymmDiT, float]:
    """A quantised copy and the mean error of its weights."""
    quantiser = registry.load(QUANTISERS, name, Quantiser)
    if (reason := quantiser.available()) is not None:
        pytest.skip(reason)
    copy = deepcopy(dit).to(quantiser.dtypes[0])
    copy.pos_frequencies = dit.pos_frequencies
    return copy, quantise(copy, name).mean_error


def rows(title: str) -> dict[str, list[str]]:
    """The table below a heading: cells by the first of their row."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {name: cells for name, *cells in table}


def about(cell: str) -> object:
    """What a measured figure may be, from "1.5 %" or "6.4 GB"."""
    found = re.fullmatch(r"([\d.]+) (%|GB)", cell)
    assert found, f"{cell!r} is no figure"
    return pytest.approx(float(found[1]) * (1e9 if found[2] == "GB" else 0.01), rel=TOLERANCE)


def test_the_page_tells_of_every_quantiser() -> None:
    assert rows("What they cost").keys() == set(registry.names(QUANTISERS))


by_name = pytest.mark.parametrize("name", registry.names(QUANTISERS))


@by_name
def test_bits_and_gigabytes_are_those_of_the_page(name: str) -> None:
    bits, gigabytes, *_ = rows("What they cost")[name]
    assert float(bits) == registry.load(QUANTISERS, name, Quantiser).bits
    weights = {name: each.numel() for name, each in published().named_parameters() if "modulation" not in name}
    large = sum(weights.get(f"{layer}.weight", 0) for layer in large_layers(published()))
    assert large * float(bits) / 8 + (sum(weights.values()) - large) * 2 == about(gigabytes)


@by_name
def test_errors_on_the_built_in_model_are_those_of_the_page(name: str) -> None:
    _, _, weights, velocity, *_ = rows("What they cost")[name]
    dit, error = quantised(name, built_in().dit)
    assert error == about(weights)
    assert relative(answers(dit, built_in().questions), built_in().velocity) == about(velocity)


@pytest.mark.slow
@by_name
def test_errors_on_a_wide_model_and_after_a_whole_run_are_those_of_the_page(name: str) -> None:
    *_, velocity, latent = rows("What they cost")[name]
    dit, _ = quantised(name, wide().dit)
    assert relative(answers(dit, wide().questions), wide().velocity) == about(velocity)
    dit, _ = quantised(name, built_in().dit)
    assert relative(guided_run(dit), exact_run()) == about(latent)


LAYERS = {
    "all layers of the blocks": r"^blocks\.",
    "without the first block": r"^blocks\.(?!0\.)",
    "without the last block": r"^blocks\.(?!{last}\.)",
    "without the modulations": r"^blocks\.(?!.*modulation)",
    "the modulations alone": r"^blocks\..*modulation",
    "patch_embed and final.linear alone": r"^(patch_embed|final\.linear)",
    "all layers of the model": r"",
}


def chosen(dit: AsymmDiT, which: str) -> list[nn.Linear | nn.Conv2d]:
    pattern = LAYERS[which].replace("{last}", str(dit.config.num_blocks - 1))
    layers = dit.named_modules()
    return [layer for name, layer in layers if isinstance(layer, nn.Linear | nn.Conv2d) and re.match(pattern, name)]


def round_to(pack: Callable[[nn.Linear], Int8Linear | Int4Linear], layer: nn.Linear | nn.Conv2d) -> None:
    """Changes weights to what quantising makes of them. A convolution of patches is a linear layer."""
    matrix = layer.weight.flatten(1)
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    linear.weight = nn.Parameter(matrix, requires_grad=False)
    layer.weight.copy_(pack(linear).dequantised(torch.float32).view_as(layer.weight))


@pytest.mark.slow
@pytest.mark.parametrize("which", LAYERS)
def test_the_errors_of_groups_of_layers_are_those_of_the_page(which: str) -> None:
    share, *errors = rows("Which layers")[which]
    weights = sum(layer.weight.numel() for layer in chosen(published(), which))
    assert weights / sum(each.numel() for each in published().parameters()) == about(share)
    for pack, error in zip((Int8Linear, Int4Linear), errors, strict=True):
        dit = deepcopy(built_in().dit).requires_grad_(False)
        for layer in chosen(dit, which):
            round_to(pack, layer)
        assert relative(answers(dit, built_in().questions), built_in().velocity) == about(error)


@by_name
def test_errors_of_text_features_are_those_of_the_page(name: str) -> None:
    quantiser = registry.load(QUANTISERS, name, Quantiser)
    if (reason := quantiser.available()) is not None:
        pytest.skip(reason)
    text = text_encoder()
    text.t5.to(quantiser.dtypes[0])
    quantise(text.t5, name)
    found = torch.cat([text.encode([prompt]).features[0] for prompt in PROMPTS])
    exact = torch.cat([features[0] for features, _ in captions()[:-1]])
    assert relative(found, exact) == about(rows("The text encoder")[name][0])


def test_the_share_of_the_text_encoder_that_is_quantised_is_that_of_the_page() -> None:
    with torch.device("meta"):
        t5 = T5EncoderModel(
            T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
        )
    large = sum(t5.get_submodule(name).weight.numel() for name in large_layers(t5))
    share = re.search(r"(\d+ %) of the published text encoder", PAGE)
    assert share and large / sum(each.numel() for each in t5.parameters()) == about(share[1])
