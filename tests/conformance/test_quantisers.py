"""What every quantiser keeps, whoever writes it: dropping a file into `runtime/quant/` is enough to be tested here."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import pytest
import torch
from jaxtyping import config
from torch import Tensor, nn

from daifuku import registry
from daifuku.config import QUANTISERS, DiTConfig
from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.quantiser import QuantisedLinear, Quantiser, large_layers, quantise, stored_bytes

CONFIG = DiTConfig(
    num_blocks=2,
    num_heads=2,
    head_dim=64,
    text_width=64,
    video_mlp_width=128,
    text_mlp_width=64,
    text_features=64,
    time_features=64,
)


DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


class Case(NamedTuple):
    """A quantiser, and where and in which precision it is tried."""

    quantiser: Quantiser
    device: torch.device
    dtype: torch.dtype

    def dit(self) -> AsymmDiT:
        torch.manual_seed(0)
        model = AsymmDiT(CONFIG).eval().requires_grad_(False).to(self.device, self.dtype)
        nn.init.normal_(model.pos_frequencies, std=0.05)
        return model

    def quantised(self) -> AsymmDiT:
        model = self.dit()
        quantise(model, self.quantiser.name)
        return model

    def linear(self, cols: int = 512, rows: int = 256) -> nn.Linear:
        linear = nn.Linear(cols, rows, device=self.device, dtype=self.dtype).requires_grad_(False)
        nn.init.normal_(linear.weight, generator=torch.Generator(self.device).manual_seed(0))
        return linear

    def pack(self, linear: nn.Linear) -> QuantisedLinear:
        """As a layer that video passes, which is where quantisers differ the most."""
        return self.quantiser.pack_layer("blocks.0.video_mlp.up", linear)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.device, self.dtype)

    def inputs(self, lengths: tuple[int, ...] = (8, 3)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch = len(lengths)
        sigma = torch.tensor([0.3, 0.9], device=self.device)[:batch]
        mask = torch.arange(8, device=self.device) < torch.tensor(lengths, device=self.device).unsqueeze(1)
        return self.randn(batch, 12, 2, 8, 8), sigma, self.randn(batch, 8, 64), mask


@pytest.fixture(params=product(registry.names(QUANTISERS), DEVICES), ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    name, device = request.param
    quantiser = registry.load(QUANTISERS, name, Quantiser)
    if (reason := quantiser.available()) is not None:
        pytest.skip(reason)
    if device not in quantiser.devices:
        pytest.skip(f"it does not run on {device}")
    return Case(quantiser, torch.device(device), quantiser.dtypes[0])


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Compiling does not see through the checks of shapes and types."""
    config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    config.update("jaxtyping_disable", False)


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).float().norm() / exact.float().norm())


@torch.inference_mode()
def test_a_layer_is_no_further_off_than_declared(case: Case) -> None:
    linear = case.linear()
    x, packed = case.randn(64, linear.in_features), case.pack(linear)
    assert 0 < relative(packed(x), linear(x)) < case.quantiser.max_error


def test_a_weight_takes_the_bits_declared_beside_bfloat16(case: Case) -> None:
    linear = case._replace(dtype=torch.bfloat16).linear(cols=1024)
    bits = 8 * (stored_bytes(case.pack(linear)) - linear.bias.nbytes) / linear.weight.numel()
    assert bits == pytest.approx(case.quantiser.bits, abs=0.05)


@torch.inference_mode()
def test_a_transformer_answers_nearly_the_same_from_less_memory(case: Case) -> None:
    exact, model = case.dit(), case.dit()
    report = quantise(model, case.quantiser.name)
    assert relative(model(*case.inputs()), exact(*case.inputs())) < 2 * case.quantiser.max_error
    assert stored_bytes(model) == report.bytes_after < 0.65 * report.bytes_before
    assert report.bytes_before == stored_bytes(exact)
    assert report.num_layers == len(large_layers(exact)) > 0
    assert 0 < report.mean_error <= report.worst_error < case.quantiser.max_error


@torch.inference_mode()
def test_an_answer_has_the_precision_of_the_network_and_does_not_depend_on_the_batch(case: Case) -> None:
    for dtype in case.quantiser.dtypes:
        model = case._replace(dtype=dtype).quantised()
        model.pos_frequencies.data = model.pos_frequencies.float()
        latent, sigma, text, mask = case._replace(dtype=dtype).inputs()
        together = model(latent, sigma, text, mask)
        assert together.dtype == dtype and together.isfinite().all()
        alone = model(latent[1:], sigma[1:], text[1:], mask[1:])
        # Of two sums that differ in their order, rounding may give neighbouring codes.
        assert relative(together[1:], alone) < (case.quantiser.max_error if case.quantiser.pack_video else 1e-2)


@torch.inference_mode()
def test_a_caption_without_tokens_is_no_trouble(case: Case) -> None:
    assert case.quantised()(*case.inputs(lengths=(0,))).isfinite().all()


def test_what_is_all_zero_stays_so(case: Case) -> None:
    linear = case.linear()
    linear.weight[:3] = 0
    assert torch.equal(case.pack(linear).dequantised(case.dtype)[:3], linear.weight[:3])


def test_the_layer_that_is_packed_stays_as_it_was(case: Case) -> None:
    linear, untouched = case.linear(), case.linear()
    case.pack(linear)
    assert type(linear.weight) is nn.Parameter and torch.equal(linear.weight, untouched.weight)


def test_the_same_weights_give_the_same_state_on_the_same_device(case: Case) -> None:
    first, second = (case.quantised().state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {tensor.device.type for tensor in first.values()} == {case.device.type}


@torch.inference_mode()
def test_the_state_may_leave_and_come_back(case: Case) -> None:
    """Networks that take turns on a device are handed over so."""
    model = case.quantised()
    expected = model(*case.inputs())
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.to("meta") for name, tensor in copies.items()}, assign=True)
    model.load_state_dict({name: tensor.to(case.device) for name, tensor in copies.items()}, assign=True)
    assert torch.equal(model(*case.inputs()), expected)


@torch.inference_mode()
def test_a_layer_compiles_to_a_single_graph(case: Case, unchecked: None) -> None:
    packed, x = case.pack(case.linear()), case.randn(2, 32, 512)
    assert torch.equal(torch.compile(packed, backend="eager", fullgraph=True)(x), packed(x))


@pytest.mark.slow
@torch.inference_mode()
def test_a_compiled_layer_gives_what_it_gives_without(case: Case, unchecked: None) -> None:
    packed, x = case.pack(case.linear()), case.randn(2, 32, 512)
    assert relative(torch.compile(packed, fullgraph=True)(x), packed(x)) < case.quantiser.max_error / 2


def test_quantised_weights_are_not_quantised_again(case: Case) -> None:
    model = case.quantised()
    before = model.state_dict().keys()
    with pytest.raises(InvalidRequest, match="already"):
        quantise(model, case.quantiser.name)
    assert model.state_dict().keys() == before
