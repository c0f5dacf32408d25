"""Quantising a network: which layers, on which device, what is refused, what the report says."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from daifuku import registry
from daifuku.config import DiTConfig
from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.runtime import quantiser
from daifuku.runtime.quant import fp8_dynamic, int8, nf4
from daifuku.runtime.quant.fp8_storage import Fp8Linear
from daifuku.runtime.quant.int4 import Int4Linear
from daifuku.runtime.quant.int8 import Int8Linear
from daifuku.runtime.quant.int8_dynamic import FEWEST_TOKENS, Int8Product
from daifuku.runtime.quantiser import (
    QuantisationReport,
    QuantisedLinear,
    Quantiser,
    large_layers,
    quantise,
    stored_bytes,
)

CONFIG = DiTConfig(
    num_blocks=2,
    num_heads=2,
    head_dim=16,
    text_width=16,
    video_mlp_width=64,
    text_mlp_width=32,
    text_features=16,
    time_features=16,
)


@pytest.fixture
def dit() -> AsymmDiT:
    torch.manual_seed(0)
    return AsymmDiT(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def t5() -> T5EncoderModel:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=8, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def linear(rows: int = 16, cols: int = 32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(cols, rows, bias=False).requires_grad_(False)


def offer(monkeypatch: pytest.MonkeyPatch, plugin: Quantiser) -> None:
    monkeypatch.setattr(registry, "load", lambda *_: plugin)


def test_the_layers_of_the_blocks_are_quantised_and_no_others(dit: AsymmDiT) -> None:
    before = {name: layer for name, layer in dit.named_modules() if isinstance(layer, nn.Linear)}
    quantise(dit, "int8")
    for name in before:
        assert isinstance(dit.get_submodule(name), QuantisedLinear) == name.startswith("blocks."), name


def test_of_a_text_encoder_the_way_out_of_each_mlp_stays_as_it_is(t5: T5EncoderModel) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    assert stored_bytes(t5) == sum(parameter.nbytes for parameter in t5.parameters())
    exact = t5(input_ids=tokens).last_hidden_state
    assert {name.split(".")[-1] for name in large_layers(t5)} == {"q", "k", "v", "o", "wi_0", "wi_1"}
    report = quantise(t5, "int8")
    assert report.num_layers == 12
    assert isinstance(t5.get_submodule("encoder.block.0.layer.1.DenseReluDense.wo"), nn.Linear)
    found = t5(input_ids=tokens).last_hidden_state
    assert 0 < (found - exact).norm() / exact.norm() < 0.02


def test_only_layers_that_video_passes_multiply_in_fewer_bits(dit: AsymmDiT) -> None:
    quantise(dit, "int8_dynamic")
    found = {name.split(".", 2)[2] for name, layer in dit.named_modules() if isinstance(layer, Int8Product)}
    assert found == {"attention.video_qkv", "attention.video_out", "video_mlp.up", "video_mlp.down"}
    assert type(dit.get_submodule("blocks.0.attention.text_qkv")) is Int8Linear
    assert type(dit.get_submodule("blocks.0.video_modulation")) is Int8Linear


def test_each_layer_goes_to_the_device_only_when_the_one_before_is_quantised(
    dit: AsymmDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    high_precision: list[int] = []

    def pack(layer: nn.Linear) -> QuantisedLinear:
        placed = [each for each in dit.modules() if isinstance(each, nn.Linear) and each.weight.device.type == "meta"]
        high_precision.append(len(placed))
        assert layer.weight.device.type == "meta"
        return Int8Linear(layer)

    monkeypatch.setattr(quantiser, "_relative_error", lambda *_: 0.0)
    offer(monkeypatch, replace(int8.QUANTISER, pack=pack, devices=("meta",)))
    quantise(dit, "int8", device=torch.device("meta"))
    assert set(high_precision) == {1}
    assert {tensor.device.type for tensor in dit.state_dict().values()} == {"meta"}


def test_the_report_is_what_can_be_measured_afterwards(dit: AsymmDiT) -> None:
    weights = {name: dit.get_submodule(name).weight.clone() for name in large_layers(dit)}
    before = sum(parameter.nbytes for parameter in dit.parameters())
    report = quantise(dit, "int4")
    errors = {
        name: float((dit.get_submodule(name).dequantised(torch.float32) - weight).norm() / weight.norm())
        for name, weight in weights.items()
    }
    assert report.mean_error == pytest.approx(sum(errors.values()) / len(errors), rel=1e-4)
    assert report.worst_layer == max(errors, key=lambda name: errors[name])
    assert report.worst_error == pytest.approx(errors[report.worst_layer], rel=1e-4)
    assert report.bytes_before == before
    assert report.bytes_after == sum(tensor.nbytes for tensor in dit.state_dict().values())


def test_the_error_of_a_large_weight_is_that_of_all_its_rows() -> None:
    exact = linear(rows=quantiser.ROWS_AT_ONCE + 5).weight
    found = exact.clone()
    found[-1] += 1.0
    expected = float((found - exact).norm() / exact.norm())
    assert quantiser._relative_error(found, exact) == pytest.approx(expected, rel=1e-5)


def test_a_report_reads_as_a_sentence() -> None:
    report = QuantisationReport(
        quantiser="int8",
        num_layers=2,
        bytes_before=1000,
        bytes_after=530,
        mean_error=0.0072,
        worst_error=0.009,
        worst_layer="blocks.0.video_mlp.up",
    )
    assert str(report) == (
        "int8: 2 layers, weights take 53% of their memory and are off by 0.7% on average, 0.9% at worst "
        "(blocks.0.video_mlp.up)"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"available": lambda: "the moon is full"}, "does not run here: the moon is full"),
        ({"devices": ("cuda", "mps")}, "runs on cuda and mps, not on cpu"),
        ({"dtypes": (torch.bfloat16,)}, "computes in bfloat16, not torch.float32"),
        ({"multiple": 32}, r"multiples of 32, but the weight of blocks.0.attention.text_qkv is \[96, 16\]"),
    ],
)
def test_what_does_not_work_is_refused_before_anything_changes(
    dit: AsymmDiT, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    offer(monkeypatch, replace(int8.QUANTISER, **change))
    with pytest.raises(InvalidRequest, match=message):
        quantise(dit, "int8")
    assert not any(isinstance(layer, QuantisedLinear) for layer in dit.modules())


def test_weights_that_were_fp8_pass_unchanged() -> None:
    """Every finite value of the format, at any power of two."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    layer = linear(rows=3, cols=254)
    layer.weight.copy_(values[values.isfinite()] * torch.tensor([[1.0], [2**-10], [2**5]]))
    assert torch.equal(Fp8Linear(layer).dequantised(torch.float32), layer.weight)


def test_fp8_reaches_its_largest_value_and_no_infinity() -> None:
    layer = linear(rows=2, cols=2)
    layer.weight.copy_(torch.tensor([[448.0, 1.0], [449.0, 1e5]]))
    packed = Fp8Linear(layer)
    assert packed.scales.flatten().tolist() == [1.0, 256.0]
    assert packed.dequantised(torch.float32).isfinite().all()


def test_a_row_of_int8_uses_all_its_codes_whatever_its_size() -> None:
    layer = linear()
    layer.weight.mul_(torch.logspace(-3, 3, 16).unsqueeze(1))
    assert Int8Linear(layer).codes.abs().amax(dim=1).tolist() == [127] * 16


@pytest.mark.parametrize("cols, num_groups", [(128, 2), (48, 3)])
def test_int4_keeps_both_ends_of_each_group(cols: int, num_groups: int) -> None:
    layer = linear(cols=cols)
    packed = Int4Linear(layer)
    groups = (
        layer.weight.unflatten(1, (num_groups, -1)),
        packed.dequantised(torch.float32).unflatten(1, (num_groups, -1)),
    )
    for ends in (torch.amin, torch.amax):
        exact, found = (ends(each, dim=-1) for each in groups)
        assert torch.allclose(found, exact, atol=1e-6)
    assert packed.scales.shape == (16, num_groups, 1)


@pytest.mark.parametrize("num_tokens", [1, FEWEST_TOKENS - 1, FEWEST_TOKENS])
def test_few_tokens_are_multiplied_in_their_own_precision(num_tokens: int) -> None:
    layer, tokens = linear(), torch.randn(num_tokens, 32)
    found, exact = Int8Product(layer)(tokens), layer(tokens)
    assert torch.equal(found, Int8Linear(layer)(tokens)) == (num_tokens < FEWEST_TOKENS)
    assert (found - exact).norm() / exact.norm() < 0.015


def test_one_large_token_does_not_spoil_the_others() -> None:
    layer, tokens = linear(), torch.randn(32, 32)
    expected = Int8Product(layer)(tokens)
    tokens[0] *= 1000
    assert torch.allclose(Int8Product(layer)(tokens)[1:], expected[1:], atol=1e-5)


def test_nf4_reads_rows_that_are_no_multiple_of_a_group() -> None:
    if (reason := nf4.QUANTISER.available()) is not None:
        pytest.skip(reason)
    layer = linear(rows=32, cols=48)
    nn.init.normal_(layer.weight)
    found = nf4.NF4Linear(layer).dequantised(torch.float32)
    assert (found - layer.weight).norm() / layer.weight.norm() < 0.1


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "find_spec", lambda name: None)
    assert nf4.QUANTISER.available() == "bitsandbytes is not installed (pip install 'daifuku[nf4]')"


def test_fp8_products_ask_for_a_gpu_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    reason = fp8_dynamic.QUANTISER.available()
    assert reason is not None and "8.9" in reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert fp8_dynamic.QUANTISER.available() is None
