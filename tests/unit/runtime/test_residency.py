"""Lending networks, and streaming blocks through a device."""

import weakref
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from daifuku.config import DiTConfig, RuntimeConfig
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.residency import Alone, Lender, Resident, StreamedBlocks, lent, residency, stream_blocks

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
CONFIG = DiTConfig(
    num_blocks=3, num_heads=2, head_dim=16, text_width=16, video_mlp_width=32, text_mlp_width=16, text_features=8,
    time_features=16,
)  # fmt: skip


@pytest.fixture
def dit() -> AsymmDiT:
    torch.manual_seed(0)
    model = AsymmDiT(CONFIG).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def run(dit: AsymmDiT) -> Tensor:
    torch.manual_seed(1)
    latent, text = torch.randn(1, 12, 2, 4, 4), torch.randn(1, 5, 8)
    with torch.inference_mode():
        return dit(latent, torch.tensor([0.5]), text, torch.ones(1, 5, dtype=torch.bool))


def test_a_resident_network_is_read_once() -> None:
    reads: list[torch.device] = []
    home = Resident(CPU)
    for _ in range(2):
        with home.stage("dit", lambda device: reads.append(device) or nn.Linear(2, 2)) as network:
            assert isinstance(network, nn.Linear)
    assert reads == [CPU]


def test_on_the_host_a_network_that_runs_alone_is_dropped_after_use() -> None:
    home = Alone(CPU)
    with home.stage("dit", lambda _: nn.Linear(2, 2)) as network:
        gone = weakref.ref(network)
        del network
    assert gone() is None


def test_beside_a_device_a_network_that_runs_alone_waits_on_the_host() -> None:
    reads: list[torch.device] = []
    home = Alone(ELSEWHERE)
    for _ in range(2):
        with home.stage("dit", lambda device: reads.append(device) or nn.Linear(2, 2)) as network:
            assert network.weight.device == ELSEWHERE
        assert network.weight.device == CPU
    assert reads == [CPU]


def test_what_is_lent_comes_back_as_it_was_even_after_an_error() -> None:
    module = nn.Linear(2, 2)
    weight = module.weight
    with pytest.raises(ZeroDivisionError), lent(module, ELSEWHERE):
        assert module.weight.device == ELSEWHERE
        raise ZeroDivisionError
    assert module.weight is weight


def test_tied_weights_travel_once_and_stay_tied() -> None:
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module[1].weight = module[0].weight
    with lent(module, ELSEWHERE):
        assert module[0].weight is module[1].weight
    assert module[0].weight is module[1].weight


@pytest.mark.parametrize(("name", "kind"), [("resident", Resident), ("offload", Alone), ("stream", Alone)])
def test_a_plan_names_its_residency(name: str, kind: type) -> None:
    assert type(residency(RuntimeConfig(residency=name), CPU)) is kind


def streamed(dit: AsymmDiT) -> list[int]:
    """Streams the blocks of a model, which rest without data; returns which were asked for, as it goes."""
    asked: list[int] = []
    homes = [{name: tensor.clone() for name, tensor in block.state_dict().items()} for block in dit.blocks]

    def home(index: int) -> Mapping[str, Tensor]:
        asked.append(index)
        return homes[index]

    dit.blocks.to("meta")
    stream_blocks(dit, home, CPU)
    return asked


def test_streamed_blocks_compute_the_same_bits(dit: AsymmDiT) -> None:
    expected = run(dit)
    asked = streamed(dit)
    assert torch.equal(run(dit), expected) and torch.equal(run(dit), expected)
    assert asked == [0, 1, 2, 0, 1, 2]


def test_streamed_blocks_rest_without_data(dit: AsymmDiT) -> None:
    streamed(dit)
    run(dit)
    assert isinstance(dit.blocks, StreamedBlocks)
    assert {p.device.type for p in dit.blocks.parameters()} == {"meta"}
    assert {p.device.type for name, p in dit.named_parameters() if not name.startswith("blocks.")} == {"cpu"}


def test_only_the_block_whose_turn_it_is_has_data(dit: AsymmDiT) -> None:
    streamed(dit)
    assert isinstance(dit.blocks, StreamedBlocks)
    there = []
    for _ in dit.blocks:
        there.append(sum(next(block.parameters()).device.type == "cpu" for block in dit.blocks.children()))
    assert there == [1, 1, 1]


def test_a_pass_that_stops_early_puts_its_block_back(dit: AsymmDiT) -> None:
    streamed(dit)
    assert isinstance(dit.blocks, StreamedBlocks)
    blocks = iter(dit.blocks)
    first = next(blocks)
    assert next(first.parameters()).device.type == "cpu"
    blocks.close()
    assert next(first.parameters()).device.type == "meta"


def test_streamed_blocks_keep_the_names_of_their_weights(dit: AsymmDiT) -> None:
    names = list(dit.state_dict())
    streamed(dit)
    assert list(dit.state_dict()) == names


def test_a_lender_reads_again_only_what_another_run_or_other_loras_ask_for() -> None:
    read: list[str] = []
    lender = Lender(torch.device("cpu"))
    run = RuntimeConfig(residency="resident", text_on="device")

    def ask(name: str, run: RuntimeConfig, weights: object = ()) -> None:
        def reader(run: RuntimeConfig, device: torch.device) -> str:
            read.append(name)
            return name

        with lender.stage(name, reader, run, weights) as network:
            assert network == name

    for _ in range(2):
        ask("text", run)
        ask("dit", run)
    assert read == ["text", "dit"]
    ask("dit", run, ("style", 1.0))
    ask("dit", run, ("style", 1.0))
    ask("text", run)
    assert read[2:] == ["dit"]
    ask("dit", run)
    assert read[3:] == ["dit"], "weights with a LoRA in them are not those without"
    ask("text", RuntimeConfig(residency="resident", text_on="device", tabulate=True))
    ask("text", run)
    lender.forget()
    ask("text", run)
    assert read[4:] == ["text", "text", "text"]
