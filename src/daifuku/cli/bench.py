"""daifuku bench: measures speed, memory and rounding errors beside other software."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daifuku.cli.console import say
from daifuku.errors import DaifukuError, InvalidRequest

if TYPE_CHECKING:
    from daifuku.bench.run import Record

RESULTS = Path("bench/results")


def bench(
    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CASE]...", help="Which cases, or patterns such as 'dit_*'; all if left out."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, metavar="N", help="Turns of each side; a case has its own number.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.jsonl",
            help="Where a line is added for each case; inside a checkout bench/results/, in the file of this machine.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Instead of comparing, tell where the time of this package's sides goes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line on stdout.")] = False,
    as_list: Annotated[bool, typer.Option("--list", help="Name the cases, and stop.")] = False,
) -> None:
    """Measure this package against diffusers, on the same random weights, in turns.

    Prints for each case the median time, the peak memory of a process of its own and the rounding error of each side,
    and how many times as fast as the first side the others are. Let nothing else run meanwhile.
    """
    if os.name != "posix":
        raise InvalidRequest("the bench reads memory as Linux and macOS tell it; it does not run on this system.")
    from daifuku.bench.cases import CASES
    from daifuku.bench.machine import this_machine
    from daifuku.bench.profile import TURNS, profilable, profile_case
    from daifuku.bench.run import choose, run_case, run_cases

    chosen = choose(CASES, cases or [])
    if profile:
        chosen, rounds = profilable(chosen), rounds or TURNS
    if as_list:
        for case in chosen:
            print(f"{case.name:22} {case.about}: {', '.join(side.name for side in case.sides)}")
        return
    checkout = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / RESULTS).is_dir()), None)
    if out is None and checkout is not None:
        out = checkout / RESULTS / f"{this_machine().slug}.jsonl"
    failed = False
    for record in run_cases(chosen, rounds=rounds, tell=say, measure=profile_case if profile else run_case):
        line = json.dumps(record)
        print(line if as_json else _profile_page(record) if profile else _page(record), flush=True)
        if out is not None:
            with out.open("a") as file:
                file.write(line + "\n")
        failed |= any(reason.startswith("failed") for reason in record["skipped"].values())
    if out is not None:
        say(f"the lines are in {out}")
    if failed:
        raise DaifukuError("some sides failed; what is above says why")


def _page(record: "Record") -> str:
    """The record for a person to read."""
    lines = [_headline(record)]
    ratios: dict[str, Any] = {}
    for ratio in record["ratios"]:
        ratios.setdefault(ratio["this"], []).append(
            f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}] as fast as {ratio['that']}"
        )
    for name, side in record["sides"].items():
        error = f", error {side['error']['relative']:.1e}" if side["error"] else ""
        lines.append(f"  {name:24} {side['median_s']:8.3f} s  {side['peak_mib']:7.0f} MiB{error}")
        lines += [f"  {'':24} {ratio}" for ratio in ratios.get(name, [])]
    for pair in record["differences"]:
        lines.append(f"  {pair['this']} and {pair['that']} differ by at most {pair['max_abs']:.1e}")
    return "\n".join([*lines, *_last_lines(record)])


def _profile_page(record: "Record") -> str:
    """The same for a record of where the time goes."""
    lines = [_headline(record)]
    for name, found in record["profiles"].items():
        lines.append(f"  {name}: {found['total_s']:.3f} s")
        for what in ("kinds_s", "operators_s"):
            lines += [f"    {100 * seconds / found['total_s']:5.1f} %  {one}" for one, seconds in found[what].items()]
            lines.append("")
    return "\n".join([*lines, *_last_lines(record)])


def _headline(record: "Record") -> str:
    return f"{record['case']}: {record['about']}, {record['dtype']} on {record['device']}"


def _last_lines(record: "Record") -> list[str]:
    skipped = [f"  without {name}: {reason}" for name, reason in record["skipped"].items()]
    return [*skipped, f"  ({record['seconds']:.0f} s)", ""]


COMMAND = bench
