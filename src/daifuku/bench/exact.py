"""Networks in float64 from end to end: what rounding errors are measured from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from daifuku.bench.case import Action


def in_float64(action: Action) -> Action:
    """The action with every float32 inside it widened. Its networks and inputs must be float64 already."""

    def output() -> Tensor:
        assert action.output is not None, "only what has an output has an exact one"
        with _doubled():
            return action.output()

    return Action(run=output, output=output)


@contextmanager
def _doubled() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widened():
            yield
    finally:
        torch.set_default_dtype(before)


class _Widened(TorchFunctionMode):
    """Networks compute some steps in float32 on purpose, such as norms and angles; here those too are float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        kwargs = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **kwargs)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
