"""A run of many processes: weights, averages and moments in shards (FSDP2), replicated groups, shared clips.

A process has the number (replica x shard + its shard) x context + its part of a clip. A step's passes are dealt to the
replicate x shard groups of `context` processes; those of one group compute one clip together, and draw the same numbers
for it, since these are a function of (seed, step, place). Weights are split over shard x context, so that a longer clip
costs no memory for weights either.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import get_node_local_rank
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from daifuku.errors import DaifukuError, InvalidRequest, TrainingError
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.context import share_tokens
from daifuku.runtime.kernels import blocks_of
from daifuku.train.checkpoint import Groups
from daifuku.train.config import TrainConfig
from daifuku.train.ranks import ALONE, Passed, Ranks

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long the others wait while the first process saves or shows. Where it ends instead, they know at once."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many processes there are of each kind."""

    replicate: int
    shard: int
    context: int

    @property
    def num_groups(self) -> int:
        """Groups that learn from samples of their own."""
        return self.replicate * self.shard

    @property
    def world(self) -> int:
        return self.num_groups * self.context


@contextmanager
def joined(config: TrainConfig) -> Iterator[Ranks]:
    """The processes of a run that torchrun started, or the one that this is.

    Raises InvalidRequest where their number is not what the configuration says, and, inside, TrainingError where
    another process has gone.
    """
    here = not dist.is_initialized() and dist.is_torchelastic_launched()
    if here:
        _initialise(config)
    try:
        shape = shape_of(config, dist.get_world_size() if dist.is_initialized() else 1)
        yield ALONE if shape.world == 1 else ManyRanks(shape, config)
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise TrainingError(
            "another process of the run has ended, or has not answered for parallel.timeout_s="
            f"{config.parallel.timeout_s} s: its own message says why. The last checkpoint in {config.output} is sound."
        ) from error
    if here:
        dist.destroy_process_group()


class ManyRanks(Ranks):
    """The processes of a run, as seen by one of them."""

    def __init__(self, shape: Shape, config: TrainConfig) -> None:
        self.shape = shape
        rank, timeout = dist.get_rank(), timedelta(seconds=config.parallel.timeout_s)
        self.is_first = rank == 0
        self._group = rank // shape.context
        self._patient = _subgroup(torch.arange(shape.world)[None], PATIENCE, backend="gloo")
        grid = torch.arange(shape.world).view(shape.replicate, shape.shard * shape.context)
        replicas, shards = _subgroup(grid.T, timeout), _subgroup(grid, timeout)
        kind = torch.device(_device(config.compute.device)).type
        self._mesh = DeviceMesh.from_group([replicas, shards], kind, grid, mesh_dim_names=("replicate", "shard"))
        self._context = _subgroup(grid.view(-1, shape.context), timeout)

    def device(self, wanted: str | None) -> str | None:
        return _device(wanted)

    def describe(self) -> str:
        return f"{self.shape.replicate} x {self.shape.shard} x {self.shape.context}"

    def sharded(self, dit: AsymmDiT) -> AsymmDiT:
        if self.shape.context > 1:
            share_tokens(dit, self._context)
        for block in blocks_of(dit):
            fully_shard(block, mesh=self._mesh)
        # Without a way back, as when it is measured, it would stay whole.
        fully_shard(dit, mesh=self._mesh, reshard_after_forward=True)
        return dit

    def own(self, micro_steps: Sequence[int]) -> Sequence[int]:
        return micro_steps[self._group :: self.shape.num_groups]

    def gathered(self, passed: Sequence[Passed]) -> Sequence[Passed]:
        every = {each.micro: each for process in self._all(passed) for each in process}
        return [every[micro] for micro in sorted(every)]

    def alike(self, value: object) -> bool:
        return len(set(self._all(value))) == 1

    def any(self, flag: bool) -> bool:
        return any(self._all(flag))

    def number(self, value: Tensor) -> float:
        return float(_full(value))

    def whole(self, groups: Groups) -> Groups:
        return {name: self._whole_group(tensors) for name, tensors in groups.items()}

    def spread(self, group: dict[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        return {name: _spread(tensor, _owner(name, parameters)) for name, tensor in group.items()}

    def first_before_others(self, do: Callable[[], T]) -> T:
        done: list[T] = []
        self.on_first(lambda: done.append(do()))
        return done[0] if done else do()

    def on_first(self, do: Callable[[], object]) -> None:
        failed: list[DaifukuError | None] = [None]
        if self.is_first:
            try:
                do()
            except DaifukuError as error:
                failed = [error]
        dist.broadcast_object_list(failed, src=0, group=self._patient)
        if failed[0] is not None:
            raise failed[0]

    def with_whole(self, dit: AsymmDiT, make: Callable[[], AsymmDiT], do: Callable[[AsymmDiT], object]) -> None:
        trained = {name: p.detach() for name, p in dit.named_parameters() if p.requires_grad}
        weights = self._whole_group(trained)

        def fill() -> None:
            own = make()
            with torch.no_grad():
                for name, parameter in own.named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(weights[name])
            do(own)

        self.on_first(fill)

    def _whole_group(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One tensor after the other, so that no process but the first holds more than one whole."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            full = _full(tensor)
            if self.is_first:
                found[name] = full.cpu()
        return found

    def _all(self, own: T) -> list[T]:
        found: list[T] = [own] * self.shape.world
        dist.all_gather_object(found, own)
        return found


def _device(wanted: str | None) -> str:
    """Each process of a machine has a GPU of its own, where there are some."""
    if wanted not in (None, "cuda") or not torch.cuda.is_available():
        return wanted or "cpu"
    return f"cuda:{get_node_local_rank(0)}"


def _initialise(config: TrainConfig) -> None:
    device = torch.device(_device(config.compute.device))
    if on_gpu := device.type == "cuda":
        torch.cuda.set_device(device)
    # What is agreed on is told between hosts, what is computed between GPUs.
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=config.parallel.timeout_s))


def shape_of(config: TrainConfig, world: int) -> Shape:
    """How so many processes share a run. Raises InvalidRequest for a number, or for settings, that cannot be."""
    own = config.parallel
    shard = own.shard or max(1, world // (own.replicate * own.context))
    shape = Shape(replicate=own.replicate, shard=shard, context=own.context)
    if shape.world != world:
        raise InvalidRequest(
            f"parallel: replicate x shard x context = {own.replicate} x {shard} x {own.context} = {shape.world}, and "
            f"the number of processes is {world}: torchrun --nproc-per-node {shape.world} -m daifuku train ..."
        )
    if world == 1:
        return shape
    if config.method == "vae":
        raise InvalidRequest("a VAE is trained by one process: start it without torchrun")
    if config.batch.accumulate % shape.num_groups:
        near = -(-config.batch.accumulate // shape.num_groups) * shape.num_groups
        raise InvalidRequest(
            f"batch.accumulate={config.batch.accumulate} passes of a step cannot be dealt to replicate x shard = "
            f"{shape.num_groups} groups of processes: try {near}"
        )
    if config.optimiser.name != "adamw":
        raise InvalidRequest(f"optimiser.name={config.optimiser.name!r} needs whole matrices: try 'adamw'")
    if config.compute.compile and shape.context > 1:
        raise InvalidRequest("compute.compile does not go with parallel.context: leave one of them out")
    return shape


def _subgroup(ranks: Tensor, timeout: timedelta, backend: str | None = None) -> dist.ProcessGroup:
    """That row of a table of all processes in which this one is."""
    found, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=timeout, backend=backend)
    assert isinstance(found, dist.ProcessGroup)
    return found


def _is_lost(error: RuntimeError) -> bool:
    """Gloo has no type of error of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _owner(name: str, parameters: Mapping[str, nn.Parameter]) -> nn.Parameter | None:
    """The parameter with that name, or with its end: that of `exp_avg.final.linear.weight` is `final.linear.weight`."""
    return parameters.get(name, parameters.get(name.partition(".")[2]))


def _spread(tensor: Tensor, like: nn.Parameter | None) -> Tensor:
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
