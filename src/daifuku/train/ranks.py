"""How the processes of a run agree. This is a run of one process, in which there is nothing to agree on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from daifuku.model.dit import AsymmDiT
from daifuku.train.checkpoint import Groups

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What one pass measured."""

    micro: int
    loss: float
    about: dict[str, float]


class Ranks:
    """One process. `train/parallel.py` has many, which answer every question below together and alike.

    Each method is called by all processes at the same place of the run.
    """

    is_first = True
    """Whether this process is the one that logs, shows and writes."""

    def device(self, wanted: str | None) -> str | None:
        """Where this process computes, if `wanted` is what the configuration says."""
        return wanted

    def sharded(self, dit: AsymmDiT) -> AsymmDiT:
        """The transformer, of which each process holds its part. Raises InvalidRequest where it cannot be shared."""
        return dit

    def describe(self) -> str:
        """How many there are and what they share, as checkpoints remember it."""
        return "1"

    def own(self, micro_steps: Sequence[int]) -> Sequence[int]:
        """Those of a step's passes that are made here; gradients are averaged over processes."""
        return micro_steps

    def gathered(self, passed: Sequence[Passed]) -> Sequence[Passed]:
        """The passes of all, in their order."""
        return passed

    def alike(self, value: object) -> bool:
        """Whether all say the same."""
        return True

    def any(self, flag: bool) -> bool:
        """Whether it is so in any."""
        return flag

    def number(self, value: Tensor) -> float:
        """A number that may be spread over processes."""
        return float(value)

    def whole(self, groups: Groups) -> Groups:
        """Tensors as a single process has them. Empty but in the first."""
        return groups

    def spread(self, group: dict[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The inverse: what belongs to a parameter, by the end of its name, becomes spread as that is."""
        return group

    def first_before_others(self, do: Callable[[], T]) -> T:
        """Everybody does it, the others once the first has done it. What the first raises, all raise."""
        return do()

    def on_first(self, do: Callable[[], object]) -> None:
        """Only the first does it, the others wait. What it raises, all raise."""
        do()

    def with_whole(self, dit: AsymmDiT, make: Callable[[], AsymmDiT], do: Callable[[AsymmDiT], object]) -> None:
        """`do` is given the transformer as one process has it, in the first. `make` makes such a one, untrained."""
        do(dit)


ALONE = Ranks()
