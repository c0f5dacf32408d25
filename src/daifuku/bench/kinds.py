"""Where the time of a run goes: the operators that a profiler saw, by kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from time import perf_counter

import torch

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "matmul", "*linear", "*_linear_pointwise"),
    "attention": ("*scaled_dot_product*", "*_attention_forward"),
    "convolutions": ("*convolution*", "*conv[123]d*"),
    "copies": ("copy_", "cat", "stack", "clone", "contiguous", "to", "_to_copy", "*_pad*"),
}
"""Names of operators by kind, as patterns, without the library (aten, mkldnn) that each is from."""

REST = "other operators"
"""Norms, activations, sums, and everything that inductor compiled."""

NO_OPERATOR = "no operator"
"""Python between operators, files that are read, and waiting for threads that do."""

NUM_OPERATORS = 10


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Seconds of one run under a profiler."""

    kinds_s: Mapping[str, float]
    """By kind; together they are the whole run."""
    operators_s: Mapping[str, float]
    """The operators that take longest, themselves without what they call."""

    @property
    def total_s(self) -> float:
        """From start to end."""
        return sum(self.kinds_s.values())


def kind_of(operator: str) -> str:
    """The kind of an operator, by the name that a profiler gives it."""
    _, _, name = operator.partition("::")
    # A compiled kernel is from no library, and its name lists what was fused into it.
    fits = (kind for kind, patterns in KINDS.items() if name and any(fnmatchcase(name, one) for one in patterns))
    return next(fits, REST)


def profiled(run: Callable[[], object]) -> Profile:
    """Runs once, watched.

    On a GPU an operator takes as long as the kernels that it starts; elsewhere as long as its caller waits for it,
    whatever number of threads it computes with.
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_initialized()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen:
        started = perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = perf_counter() - started
    operators = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        for event in seen.key_averages()
        # Kernels have events of their own beside the operators that start them.
        if event.device_type.name == "CPU"
    }
    return by_kind(operators, seconds)


def by_kind(operators_s: Mapping[str, float], total_s: float) -> Profile:
    """A profile from the seconds of each operator and those of the whole run."""
    kinds = dict.fromkeys([*KINDS, REST], 0.0)
    for operator, seconds in operators_s.items():
        kinds[kind_of(operator)] += seconds
    kinds[NO_OPERATOR] = max(0.0, total_s - sum(kinds.values()))
    longest = sorted(operators_s, key=operators_s.__getitem__, reverse=True)[:NUM_OPERATORS]
    return Profile(kinds_s=kinds, operators_s={operator: operators_s[operator] for operator in longest})
