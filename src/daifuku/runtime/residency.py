"""Where networks live: kept on the device, on it only while they work, or passing through it block by block."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from daifuku.config import RuntimeConfig
from daifuku.model.block import AsymmBlock
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.machine import trim_heap
from daifuku.text import TextEncoder

T = TypeVar("T")
Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Residency(Protocol):
    """Lends networks, one `with` block at a time."""

    def stage(self, name: str, read: Callable[[torch.device], T]) -> AbstractContextManager[T]:
        """The network `name`, at work on the device while the block lasts. `read` reads it onto a device."""
        ...


class Resident:
    """Reads each network once, onto the device, and keeps it there: the fastest, where all fit."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[str, Any] = {}

    @contextmanager
    def stage(self, name: str, read: Callable[[torch.device], T]) -> Iterator[T]:
        if name not in self._kept:
            self._kept[name] = read(self._device)
        yield self._kept[name]


class Alone:
    """One network on the device at a time.

    Beside a GPU the others wait in the host's memory. Where the device is the host itself, a network is dropped after
    use and read again when it is next needed: its file is as near as the memory it would wait in.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: dict[str, Any] = {}

    @contextmanager
    def stage(self, name: str, read: Callable[[torch.device], T]) -> Iterator[T]:
        if self._device.type == "cpu":
            yield read(self._device)
            return
        if name not in self._waiting:
            self._waiting[name] = read(torch.device("cpu"))
        with lent(_module(self._waiting[name]), self._device):
            yield self._waiting[name]


def residency(run: RuntimeConfig, device: torch.device) -> Residency:
    """The one that a plan names. Streaming is the transformer's own matter (`stream_blocks`): the rest is as alone."""
    return Resident(device) if run.residency == "resident" else Alone(device)


class Lender:
    """Lends a model's networks as each is asked for, and keeps no copy of what nobody asks for any more."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._run: RuntimeConfig | None = None
        self._stages: dict[str, tuple[object, Residency]] = {}

    def stage(
        self, name: str, read: Callable[[RuntimeConfig, torch.device], T], run: RuntimeConfig, weights: object = None
    ) -> AbstractContextManager[T]:
        """The network `name`, at work on the device for a `with` block.

        Another way of running starts from the files again; so does this network where `weights`, which tells what was
        merged into it, is another than before.
        """
        # What the stage before left in pieces would add to what this one takes.
        trim_heap()
        if name == "text" and run.text_on == "host":
            return Alone(torch.device("cpu")).stage(name, partial(read, run))
        if run != self._run:
            self.forget()
            self._run = run
        if name not in self._stages or self._stages[name][0] != weights:
            self._stages[name] = weights, residency(run, self._device)
        return self._stages[name][1].stage(name, partial(read, run))

    def forget(self) -> None:
        """Every network leaves memory."""
        self._run = None
        self._stages.clear()


@contextmanager
def lent(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A module of the host with its tensors on a device while the block lasts. The host keeps its copies."""
    home = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if not tensor.is_meta}
    # Tied weights stand under several names and travel once.
    away: dict[int, Tensor] = {}
    for tensor in home.values():
        if id(tensor) not in away:
            moved = tensor.detach().to(device, non_blocking=True)
            away[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    try:
        module.load_state_dict({name: away[id(tensor)] for name, tensor in home.items()}, strict=False, assign=True)
        yield
    finally:
        module.load_state_dict(home, strict=False, assign=True)


def _module(network: Any) -> nn.Module:
    """The module of a network: a text encoder also has a tokenizer."""
    return network.t5 if isinstance(network, TextEncoder) else network


class StreamedBlocks(nn.ModuleList):
    """Takes the place of a transformer's blocks: the tensors of each come to the device just before its turn.

    While one block computes, the next one is copied on a stream of its own, so beside a GPU the transfer hides behind
    the computation. A block is good until the next one is asked for; at rest it is without data. `home(i)` gives the
    tensors of block i from where they are kept: pinned memory, or a file.
    """

    def __init__(
        self, blocks: Sequence[AsymmBlock], home: Callable[[int], Mapping[str, Tensor]], device: torch.device
    ) -> None:
        super().__init__(block.to("meta") for block in blocks)
        self._home = home
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Generator[AsymmBlock, None, None]:
        arriving = self._send(0)
        for index, block in enumerate(super().__iter__()):
            assert isinstance(block, AsymmBlock), "only blocks stream"
            arrived = self._receive(arriving)
            if index + 1 < len(self):
                arriving = self._send(index + 1)
            resting = {name: tensor for name, tensor in block.state_dict(keep_vars=True).items() if name in arrived}
            block.load_state_dict(arrived, strict=False, assign=True)
            del arrived
            try:
                yield block
            finally:
                block.load_state_dict(resting, strict=False, assign=True)

    def _send(self, index: int) -> dict[str, Tensor]:
        """Starts the way of a block's tensors to the device. Beside a GPU it goes on while the caller computes."""
        with torch.cuda.stream(self._copies) if self._copies else nullcontext():
            return {name: tensor.to(self._device, non_blocking=True) for name, tensor in self._home(index).items()}

    def _receive(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Waits, on the device alone, until they are there."""
        if self._copies is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._copies)
            for tensor in tensors.values():
                # The copying stream must not reuse this memory while the computing one still reads it.
                tensor.record_stream(computing)
        return tensors


def stream_blocks(dit: AsymmDiT, home: Callable[[int], Mapping[str, Tensor]], device: torch.device) -> AsymmDiT:
    """The transformer with its blocks streamed; everything around them goes to the device and stays."""
    blocks = [block for block in dit.blocks if isinstance(block, AsymmBlock)]
    dit.blocks = StreamedBlocks(blocks, home, device)
    return place(dit, device)


def place(model: Network, device: torch.device) -> Network:
    """The network on a device, but for tensors without data, which stay as they are."""
    there = {name: tensor.to(device) for name, tensor in model.state_dict().items() if not tensor.is_meta}
    model.load_state_dict(there, strict=False, assign=True)
    return model


def kept(blocks: Iterable[nn.Module]) -> Callable[[int], Mapping[str, Tensor]]:
    """A home in ordinary memory."""
    homes = [_with_data(block) for block in blocks]
    return homes.__getitem__


def pinned(blocks: Iterable[nn.Module]) -> Callable[[int], Mapping[str, Tensor]]:
    """A home in page-locked memory, from which a GPU copies by itself."""
    homes = [{name: tensor.pin_memory() for name, tensor in _with_data(block).items()} for block in blocks]
    return homes.__getitem__


def _with_data(block: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in block.state_dict().items() if not tensor.is_meta}
