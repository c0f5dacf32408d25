"""Chooses how a model runs: the fastest way that fits the memory, and an exact one before any that is approximate."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from daifuku.config import RuntimeConfig
from daifuku.errors import NotEnoughMemory
from daifuku.runtime.estimate import Estimator, StageEstimate, total_seconds
from daifuku.runtime.machine import Machine

USABLE_SHARE = 0.93
"""Share of the free memory that a plan fills: allocators lose some to fragments."""

COMPILE_AFTER_S = 300.0
"""A run whose steps take longer than this on a GPU is worth compiling for."""

COMFORT = RuntimeConfig(
    residency="resident",
    quantise="none",
    text_dtype="float32",
    quantise_text="none",
    text_on="device",
    remember_text=True,
    kernel="auto",
    compile=False,
    tabulate=True,
    chunk_tokens=0,
    lora_mode="auto",
    decoding="streaming",
    tile=32,
)
"""How a model runs where memory is no matter; its precision is the model's own."""

Rung = tuple[str, RuntimeConfig]
"""What a step down means, and the settings that it changes."""

TEXT_RUNGS: tuple[Rung, ...] = (
    ("text in float32", RuntimeConfig()),
    ("text in bfloat16", RuntimeConfig(text_dtype="bfloat16")),
    ("text on the host", RuntimeConfig(text_on="host")),
    ("text on the host in bfloat16", RuntimeConfig(text_on="host", text_dtype="bfloat16")),
    ("text in 8 bits", RuntimeConfig(text_dtype="bfloat16", quantise_text="int8")),
)

SAMPLING_RUNGS: tuple[Rung, ...] = (
    ("the transformer alone on the device", RuntimeConfig()),
    ("its MLPs in chunks", RuntimeConfig(chunk_tokens=4096)),
    ("its blocks streamed", RuntimeConfig(residency="stream")),
    ("its blocks streamed, MLPs in chunks", RuntimeConfig(residency="stream", chunk_tokens=4096)),
    ("in bfloat16, blocks streamed", RuntimeConfig(residency="stream", chunk_tokens=4096, dtype="bfloat16")),
    (
        "in 8 bits, blocks streamed",
        RuntimeConfig(quantise="int8", residency="stream", chunk_tokens=4096, dtype="bfloat16"),
    ),
)

DECODING_RUNGS: tuple[Rung, ...] = (
    ("decoding one latent frame at a time", RuntimeConfig()),
    ("decoding in tiles of 32 cells", RuntimeConfig(decoding="tiled", tile=32)),
    ("decoding in tiles of 16 cells", RuntimeConfig(decoding="tiled", tile=16)),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a request will run, and what that should cost."""

    runtime: RuntimeConfig
    """Every setting decided, but for `batch_guidance`: where that is None, the run measures it."""
    estimator: Estimator
    base_bytes: int
    """What the process holds on the device before any network: libraries on a host, nothing on a GPU."""
    budget_bytes: int

    @cached_property
    def stages(self) -> tuple[StageEstimate, ...]:
        """What text, sampling and decoding cost. Computed when it is first asked for."""
        return tuple(
            stage(self.runtime) for stage in (self.estimator.text, self.estimator.sampling, self.estimator.decoding)
        )

    @property
    def peak_bytes(self) -> int:
        """The most that the run has on the device at once."""
        if self.runtime.residency == "resident":
            weights = sum(stage.weight_bytes for stage in self.stages)
            return self.base_bytes + weights + max(stage.activation_bytes for stage in self.stages)
        return self.base_bytes + max(stage.peak_bytes for stage in self.stages)

    @property
    def host_bytes(self) -> int:
        """The most that waits in the host's memory."""
        return sum(stage.host_bytes for stage in self.stages)

    @property
    def seconds(self) -> float:
        return total_seconds(self.stages)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.budget_bytes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "runtime": asdict(self.runtime),
            "stages": [asdict(stage) | {"peak_bytes": stage.peak_bytes} for stage in self.stages],
            "base_bytes": self.base_bytes,
            "peak_bytes": self.peak_bytes,
            "host_bytes": self.host_bytes,
            "budget_bytes": self.budget_bytes,
            "seconds": self.seconds,
            "fits": self.fits,
        }


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes plans for one workload. What `wanted` says is kept; the plan decides the rest."""

    estimator: Estimator
    comfort: RuntimeConfig
    """How the model runs where memory is no matter."""
    wanted: RuntimeConfig
    base_bytes: int

    @property
    def machine(self) -> Machine:
        return self.estimator.machine

    def evaluate(self, settings: RuntimeConfig) -> Plan:
        """What those settings would cost. The rest is as in `comfort`, and what is wanted has the last word."""
        return Plan(
            runtime=filled(self.wanted, settings, self.comfort),
            estimator=self.estimator,
            base_bytes=self.base_bytes,
            budget_bytes=int(USABLE_SHARE * self.machine.free_bytes),
        )

    def choose(self) -> Plan:
        """Everything resident where it fits; else each stage alone, each as far down its rungs as it must go.

        Raises NotEnoughMemory, with the plan that needs the least, where even that does not fit.
        """
        comfortable = self.evaluate(RuntimeConfig())
        streams = comfortable.runtime.decoding != "whole"
        surely = streams and self.base_bytes + self.estimator.upper_bound_bytes <= comfortable.budget_bytes
        if surely or comfortable.fits:
            return self._compiled(comfortable)
        plans = list(self.frugal())
        for plan in plans:
            if plan.fits:
                return self._compiled(plan)
        least = min(plans, key=lambda plan: plan.peak_bytes)
        raise NotEnoughMemory(
            f"this needs {gib(least.peak_bytes)} and {gib(least.budget_bytes)} of the memory can be used. "
            "Try fewer frames or a smaller picture; `daifuku plan` shows what each takes."
        )

    def below(self, plan: Plan) -> Plan | None:
        """The next plan that needs less memory than this one; None where there is none."""
        return next((other for other in self.frugal() if other.peak_bytes < plan.peak_bytes), None)

    def frugal(self) -> Iterator[Plan]:
        """Plans with one network on the device at a time, each needing less: the largest stage goes a rung down."""
        rungs = [TEXT_RUNGS, SAMPLING_RUNGS, DECODING_RUNGS]
        at = [0, 0, 0]
        while True:
            settings = filled(*(rungs[i][at[i]][1] for i in (1, 2, 0)), RuntimeConfig(residency="offload"))
            plan = self.evaluate(settings)
            yield plan
            peaks = [stage.peak_bytes for stage in plan.stages]
            can_go = [i for i in range(3) if at[i] + 1 < len(rungs[i])]
            # Only the largest stage decides the peak: another one's rung would cost time and save nothing.
            largest = max(range(3), key=lambda i: peaks[i])
            if largest not in can_go:
                return
            at[largest] += 1

    def alternatives(self, plan: Plan) -> list[tuple[str, Plan]]:
        """What each single choice would cost in place of the plan's own, by name."""
        single: Sequence[Rung] = (
            ("every network on the device", RuntimeConfig(residency="resident")),
            ("one network at a time", RuntimeConfig(residency="offload")),
            *TEXT_RUNGS[1:],
            *SAMPLING_RUNGS[1:],
            *DECODING_RUNGS,
            ("decoding all at once", RuntimeConfig(decoding="whole")),
            ("modulations not tabulated", RuntimeConfig(tabulate=False)),
            ("both captions in one pass", RuntimeConfig(batch_guidance=True)),
        )
        found: list[tuple[str, Plan]] = []
        for name, change in single:
            other = self.evaluate(filled(change, plan.runtime))
            if other.runtime != plan.runtime:
                found.append((name, other))
        return found

    def _compiled(self, plan: Plan) -> Plan:
        if self.machine.device.type != "cuda" or plan.stages[1].seconds < COMPILE_AFTER_S:
            return plan
        return replace(plan, runtime=filled(self.wanted, RuntimeConfig(compile=True), plan.runtime))


def filled(*configs: RuntimeConfig) -> RuntimeConfig:
    """The first value that any of them has, setting by setting."""
    values = {}
    for each in fields(RuntimeConfig):
        given = (getattr(config, each.name) for config in configs)
        values[each.name] = next((value for value in given if value is not None), None)
    return RuntimeConfig(**values)


def gib(num_bytes: int) -> str:
    """ "1.5 GiB" """
    return f"{num_bytes / 2**30:.1f} GiB"
