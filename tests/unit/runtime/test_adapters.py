"""LoRAs at work: merged or live, on weights that are quantised, streamed, tabulated or chunked."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from daifuku.config import RuntimeConfig
from daifuku.errors import CheckpointError, InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.request import GenerateRequest
from daifuku.runtime.adapters import Adapters, LiveLinear, live, merging, read_adapters
from daifuku.runtime.build import Parts, load_parts, settled
from daifuku.runtime.modulation import tabulated
from daifuku.runtime.quantiser import QuantisedLinear
from daifuku.sample.guidance import Caption, conditioned
from daifuku.weights.encoded_linear import EncodedLinear
from daifuku.weights.lora import linear_shapes, merge
from daifuku.weights.low_rank import Dora, LowRank, merged

CPU = torch.device("cpu")
SIGMA = 0.5
PLAIN = RuntimeConfig(
    residency="resident", dtype="float32", quantise="none", tabulate=False, chunk_tokens=0, compile=False, kernel="sdpa"
)
KINDS = ("video_qkv", "text_qkv", "video_out", "video_mlp.up", "text_mlp.down", "video_modulation", "text_modulation")
AROUND = ("text_proj", "final.modulation", "final.linear", "time_embed.up", "caption_pool.key_value")


@pytest.fixture(scope="module")
def parts() -> Parts:
    """Of the built-in model, which lies in files like any other."""
    return load_parts(device="cpu")


@pytest.fixture(scope="module")
def adapters(parts: Parts) -> Adapters:
    """Changes of every kind of layer, as large as the layers themselves: what is missing or doubled shows."""
    torch.manual_seed(0)
    deltas = {}
    for name, (rows, cols) in linear_shapes(parts.dit(PLAIN, CPU)).items():
        if name in AROUND or name.endswith(KINDS):
            deltas[name] = LowRank(down=torch.randn(2, cols) / cols**0.5, up=0.3 * torch.randn(rows, 2))
    return Adapters(deltas=deltas, fingerprints=("a",), key=(("a", 1.0),))


@pytest.fixture(scope="module", params=["LoRAs", "DoRAs"])
def changes(request: pytest.FixtureRequest, parts: Parts, adapters: Adapters) -> Adapters:
    """The same as DoRAs too, at half their strength and beside the LoRAs; some rows have no magnitude."""
    if request.param == "LoRAs":
        return adapters
    dit = parts.dit(PLAIN, CPU)
    generator = torch.Generator().manual_seed(3)
    deltas = {}
    for name, delta in adapters.deltas.items():
        norms = dit.get_parameter(f"{name}.weight").detach().norm(dim=1)
        magnitude = norms * (0.5 + torch.rand(len(norms), generator=generator))
        magnitude[: len(norms) // 3] = torch.nan
        dora = Dora(down=delta.down, up=delta.up, magnitude=magnitude, strength=0.5)
        deltas[name] = replace(delta, doras=(dora,))
    return replace(adapters, deltas=deltas)


def caption(dit: AsymmDiT) -> Caption:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 6, dit.text_proj.weight.shape[1], generator=generator)
    return Caption(features, torch.ones(1, 6, dtype=torch.bool))


def answer(parts: Parts, run: RuntimeConfig, adapters: Adapters | None = None) -> Tensor:
    """The velocity, the way a pipeline gets it."""
    deltas = {} if adapters is None else adapters.deltas
    merged = run.lora_mode == "merged"
    dit = parts.dit(run, CPU, deltas=deltas) if merged else parts.dit(run, CPU)
    latent = torch.randn(1, 12, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    said = caption(dit)
    with live(dit, deltas, merged_before=merged):
        if not run.tabulate:
            return velocity(dit, said, latent)
        with tabulated(dit, [said], [SIGMA], merging(partial(parts.read, run), deltas)):
            return velocity(dit, said, latent)


@torch.inference_mode()
def velocity(dit: AsymmDiT, said: Caption, latent: Tensor) -> Tensor:
    return conditioned(dit, said)(latent, SIGMA).clone()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def decoded(layer: QuantisedLinear) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False)
    linear.weight, linear.bias = nn.Parameter(layer.dequantised(torch.float32)), layer.bias
    return linear


@pytest.mark.parametrize("mode", ["merged", "live"])
@pytest.mark.parametrize(
    "change",
    [{}, {"tabulate": True}, {"residency": "stream"}, {"residency": "stream", "tabulate": True}, {"chunk_tokens": 8}],
    ids=str,
)
def test_a_lora_acts_the_same_however_a_model_runs(parts: Parts, changes: Adapters, change: dict, mode: str) -> None:
    merged = parts.dit(PLAIN, CPU)
    merge(merged, changes.deltas)
    latent = torch.randn(1, 12, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    expected = velocity(merged, caption(merged), latent)
    assert error(answer(parts, PLAIN), expected) > 0.1, "a LoRA that changes nothing shows nothing"
    assert error(answer(parts, replace(PLAIN, lora_mode=mode, **change), changes), expected) < 1e-5


@pytest.mark.parametrize("quantiser", ["int8", "int4", "fp8_storage"])
@pytest.mark.parametrize("change", [{}, {"tabulate": True}, {"residency": "stream", "tabulate": True}], ids=str)
def test_on_quantised_weights_a_live_lora_stays_exact(
    parts: Parts, changes: Adapters, quantiser: str, change: dict
) -> None:
    run = replace(PLAIN, quantise=quantiser, lora_mode="live", **change)
    plain = parts.dit(replace(run, residency="resident"), CPU)
    for name in changes.deltas:
        layer = plain.get_submodule(name)
        if isinstance(layer, QuantisedLinear):
            plain.set_submodule(name, decoded(layer))
    merge(plain, changes.deltas)
    latent = torch.randn(1, 12, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    said = caption(plain)
    if run.tabulate:
        with tabulated(plain, [said], [SIGMA], merging(partial(parts.read, run), changes.deltas)):
            expected = velocity(plain, said, latent)
    else:
        expected = velocity(plain, said, latent)
    assert error(answer(parts, run, changes), expected) < 1e-5


def test_a_lora_that_is_merged_is_quantised_with_the_weights(parts: Parts, changes: Adapters) -> None:
    run = replace(PLAIN, quantise="int8", lora_mode="merged")
    exact = answer(parts, replace(PLAIN, lora_mode="merged"), changes)
    assert 0 < error(answer(parts, run, changes), exact) < 0.05


def test_when_a_live_lora_has_gone_every_layer_is_its_own_again(parts: Parts, changes: Adapters) -> None:
    dit = parts.dit(PLAIN, CPU)
    before = dict(dit.named_modules())
    with pytest.raises(ZeroDivisionError), live(dit, changes.deltas, merged_before=False):
        assert sum(isinstance(layer, LiveLinear) for layer in dit.modules()) == len(changes.deltas)
        assert dit.state_dict().keys() == parts.dit(PLAIN, CPU).state_dict().keys()
        raise ZeroDivisionError
    assert dict(dit.named_modules()) == before


def test_what_was_merged_is_not_added_again_but_for_layers_that_nothing_merges_into(
    parts: Parts, changes: Adapters
) -> None:
    dit = parts.dit(PLAIN, CPU)

    class Kept(EncodedLinear):
        """A layer whose file keeps it encoded."""

        def __init__(self, linear: nn.Linear) -> None:
            nn.Module.__init__(self)
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.linear, self.bias = linear, linear.bias

        def dequantised(self, dtype: torch.dtype) -> Tensor:
            return self.linear.weight.to(dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    name = "blocks.0.attention.video_qkv"
    plain = dit.get_submodule(name)
    assert isinstance(plain, nn.Linear)
    dit.set_submodule(name, Kept(plain))
    merge(dit, changes.deltas)
    x = torch.randn(1, 3, plain.in_features)
    expected = F.linear(x, merged(plain.weight, changes.deltas[name]), plain.bias)
    with live(dit, changes.deltas, merged_before=True), torch.no_grad():
        assert sum(isinstance(layer, LiveLinear) for layer in dit.modules()) == 1
        torch.testing.assert_close(dit.get_submodule(name)(x), expected)


def test_merging_leaves_the_tensors_of_files_as_they_are(parts: Parts, adapters: Adapters) -> None:
    dit = parts.dit(PLAIN, CPU)
    views = {name: dit.get_parameter(f"{name}.weight") for name in adapters.deltas}
    before = {name: view.detach().clone() for name, view in views.items()}
    merge(dit, adapters.deltas)
    for name, view in views.items():
        assert torch.equal(view, before[name])
        assert not torch.equal(dit.get_parameter(f"{name}.weight"), view)


@pytest.mark.parametrize(
    "change, mode",
    [
        ({}, "merged"),
        ({"quantise": "int8"}, "live"),
        ({"residency": "stream"}, "live"),
        ({"residency": "offload"}, "merged"),
        ({"quantise": "int8", "lora_mode": "merged"}, "merged"),
        ({"lora_mode": "live"}, "live"),
    ],
    ids=str,
)
def test_loras_are_merged_where_weights_are_precise_and_in_memory(parts: Parts, change: dict, mode: str) -> None:
    run = replace(PLAIN, **{"lora_mode": "auto", **change})
    request = GenerateRequest(prompt="", num_frames=7, height=64, width=64).resolved()
    assert settled(run, parts.sizes().dit, request, CPU).lora_mode == mode


def test_a_lora_is_checked_against_the_sizes_of_the_model(parts: Parts, tmp_path: Path) -> None:
    path, missing = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    layers = {"blocks.0.attn.proj_x.lora_A": torch.ones(1, 8), "blocks.0.attn.proj_x.lora_B": torch.ones(8, 1)}
    save_file(layers, path)
    with pytest.raises(CheckpointError, match=r"changes \[8, 8\] where the layer is"):
        read_adapters(((str(path), 0.0),), lambda: parts.sizes().dit)
    with pytest.raises(InvalidRequest, match="no file"):
        read_adapters(((str(missing), 1.0),), lambda: parts.sizes().dit)


def test_loras_change_alike_when_files_and_strengths_are_the_same(parts: Parts, tmp_path: Path) -> None:
    width = parts.sizes().dit.video_width
    paths = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    for seed, path in enumerate(paths):
        matrices = {"lora_A": torch.full((1, width), float(seed)), "lora_B": torch.ones(width, 1)}
        save_file({f"blocks.0.attn.proj_x.{name}": tensor for name, tensor in matrices.items()}, path)
    read = [
        read_adapters(loras, lambda: parts.sizes().dit).key
        for loras in (((paths[0], 1.0),), ((paths[0], 0.5),), ((paths[1], 1.0),), ((paths[0], 1.0), (paths[1], 0.0)))
    ]
    assert len(set(read)) == 3 and read[0] == read[3]
    assert read_adapters((), lambda: parts.sizes().dit).key == ()


COMPILED = """
import json, torch
from daifuku.config import RuntimeConfig
from daifuku.runtime.adapters import live
from daifuku.runtime.build import load_parts
from daifuku.runtime.compile import compile_blocks
from daifuku.weights.low_rank import Dora, LowRank

parts = load_parts(device="cpu")
run = RuntimeConfig(residency="resident", dtype="float32", quantise="none", kernel="sdpa", compile=False)
eager, compiled = parts.dit(run, torch.device("cpu")), parts.dit(run, torch.device("cpu"))
compile_blocks(compiled, backend="eager")
torch.manual_seed(0)

def delta(rank):
    layer = eager.blocks[0].attention.video_qkv
    low_rank = {"down": torch.randn(rank, layer.in_features), "up": torch.randn(layer.out_features, rank)}
    magnitude = torch.rand(layer.out_features)
    return LowRank(**low_rank, doras=(Dora(**low_rank, magnitude=magnitude),) if rank == 3 else ())

def run(dit):
    torch.manual_seed(1)
    with torch.inference_mode():
        return dit(torch.randn(1, 12, 1, 4, 4), torch.tensor([0.5]), torch.randn(1, 4, dit.text_proj.in_features),
                   torch.ones(1, 4, dtype=torch.bool))

errors, changes, plain = [], [], run(eager)
for rank in (0, 2, 3, 0, 2):
    deltas = {"blocks.0.attention.video_qkv": delta(rank)} if rank else {}
    with live(eager, deltas, merged_before=False), live(compiled, deltas, merged_before=False):
        expected = run(eager)
        errors.append((run(compiled) - expected).abs().max().item())
        changes.append((expected - plain).abs().max().item())
print(json.dumps([errors, changes]))
"""


@pytest.mark.slow
def test_compiled_blocks_notice_that_a_lora_has_come_or_gone() -> None:
    # In a process of its own: what checks shapes while tests run cannot be compiled.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", COMPILED], check=True, capture_output=True, text=True, env=environment)
    errors, changes = json.loads(out.stdout)
    assert max(errors) < 1e-4
    assert [change > 0.01 for change in changes] == [False, True, True, False, True]
