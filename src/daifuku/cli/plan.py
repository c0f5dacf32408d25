"""daifuku plan: how a request would run here, what that costs, and what every other way would."""

import json
from typing import TYPE_CHECKING, Any

from daifuku.cli.console import clock, say
from daifuku.cli.flags import Device, Json, Memory, Model, Revision, Variant, with_request_flags
from daifuku.config import RuntimeConfig
from daifuku.errors import NotEnoughMemory
from daifuku.events import Planned
from daifuku.request import GenerateRequest

if TYPE_CHECKING:
    from daifuku.runtime.planner import Plan


def plan(
    values: dict[str, Any],
    runtime: RuntimeConfig,
    model: Model = None,
    revision: Revision = None,
    variant: Variant = None,
    device: Device = None,
    vram: Memory = None,
    as_json: Json = False,
) -> None:
    """Show how a request would run: memory and time of each stage, and what each alternative would cost.

    Reads no weights. `daifuku generate` with the same flags follows this plan. Times leave out reading the weights and
    are rough; memory is meant to be within a tenth.
    """
    from daifuku.pipeline import load

    pipe = load(model, revision=revision, variant=variant, device=device, runtime=runtime, memory=vram)
    planner = pipe.planner(pipe.resolve(GenerateRequest.from_dict({"prompt": "", **values})))
    try:
        chosen = planner.choose()
    except NotEnoughMemory as error:
        say(f"warning: {error}")
        chosen = min(planner.frugal(), key=lambda plan: plan.peak_bytes)
    others = planner.alternatives(chosen)
    if as_json:
        alternatives = [{"name": name, **other.to_dict()} for name, other in others]
        print(json.dumps({"plan": chosen.to_dict(), "alternatives": alternatives}, indent=2))
    else:
        print("\n".join(_page(chosen, others)))


def headline(event: Planned) -> str | None:
    """A line about a plan for who waits for the clip; None where memory is no matter and nothing is worth saying."""
    from dataclasses import asdict

    from daifuku.runtime.planner import COMFORT, gib

    runtime, usual = asdict(event.plan.runtime), asdict(COMFORT)
    unusual = [f"{name} {_shown(value)}" for name, value in runtime.items() if name != "dtype" and value != usual[name]]
    if not unusual and not event.out_of_memory:
        return None
    room = f"at most {gib(event.plan.peak_bytes)} of {gib(event.plan.budget_bytes)}"
    first = "memory ran out; going on" if event.out_of_memory else "running"
    return f"{first} with {', '.join(unusual)}: {room}"


def _page(chosen: "Plan", others: list[tuple[str, "Plan"]]) -> list[str]:
    """The plan for a person to read."""
    from dataclasses import asdict

    from daifuku.runtime.planner import gib

    settings = {name: value for name, value in asdict(chosen.runtime).items() if value is not None}
    lines = ["how it runs", *(f"  {name:<16} {_shown(value)}" for name, value in settings.items())]
    lines += ["", f"{'stage':<40} {'memory':>10} {'time':>9}"]
    for stage in chosen.stages:
        lines.append(f"  {stage.name:<38} {gib(stage.peak_bytes):>10} {clock(stage.seconds):>9}")
    lines.append(f"  {'before any network':<38} {gib(chosen.base_bytes):>10}")
    lines.append(f"  {'at the most, and in all':<38} {gib(chosen.peak_bytes):>10} {clock(chosen.seconds):>9}")
    if chosen.host_bytes:
        lines.append(f"  {'in the memory of the host':<38} {gib(chosen.host_bytes):>10}")
    lines.append(f"  {'of what may be used':<38} {gib(chosen.budget_bytes):>10}")
    lines += ["", "what else it could be"]
    for name, other in others:
        verdict = "" if other.fits else "  does not fit"
        lines.append(f"  {name:<38} {gib(other.peak_bytes):>10} {clock(other.seconds):>9}{verdict}")
    return lines


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


COMMAND = with_request_flags(plan)
