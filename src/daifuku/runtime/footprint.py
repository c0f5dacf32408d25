"""What a computation costs, found by running the real code on the meta device: no data, no formula to keep in step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that live at once at the worst moment, and floating-point operations (a multiply-add is two)."""

    peak_bytes: int
    flops: int


def footprint(run: Callable[[], object]) -> Footprint:
    """The cost of `run`, whose tensors are all on the meta device. Tensors made before it do not count."""
    # Not inference mode, which would hide the matrix products inside of linear layers.
    with torch.no_grad(), _Costs() as costs:
        kept = run()
        del kept
    return Footprint(peak_bytes=costs.peak, flops=costs.flops)


class _Costs(TorchDispatchMode):
    """Counts operations, and follows every storage from its birth to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.peak = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for tensor in tree_iter(result):
                if isinstance(tensor, Tensor):
                    self._follow(tensor)
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        finalize(storage, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size
