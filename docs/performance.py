"""Makes the tables and plots of docs/performance.md from the lines in bench/results/, and nothing else.

python docs/performance.py        puts them between the markers of the page; the text around them is written by hand
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"

THEIRS, OURS, STREAMING = "diffusers", "daifuku", "daifuku streaming"
WAYS = (OURS, "daifuku compiled", "daifuku compiled, in a run")
PROFILED = "profile of "
ARITHMETIC = ("matrix products", "attention", "convolutions")
"""Kinds that stay when all else costs nothing."""
TABLE = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)

Record = dict[str, Any]
Records = dict[str, Record]
"""The newest record of each case; of a case that was profiled too, the profile's under `PROFILED` and its name."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A measured figure, with its interval where it has one."""

    value: float
    low: float
    high: float
    unit: str = "x"

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.2g}{self.unit}" if self.value < 0.01 else f"{self.value:.2f}{self.unit}"
        return f"{self.value:.2f}{self.unit} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure has to be."""

    what: str
    at_least: float | None = None
    at_most: float | None = None
    find: Callable[[Records], Found | None]

    def row(self, records: Records) -> tuple[str, ...]:
        """Reached only where the whole interval lies on the right side."""
        wanted = f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"
        found = self.find(records)
        if found is None:
            return self.what, wanted, "", "not measured"
        good, bad = (found.low, found.high) if self.at_least is not None else (found.high, found.low)
        answer = "yes" if self._holds(good) else "within the noise" if self._holds(bad) else "**no**"
        return self.what, wanted, str(found), answer

    def _holds(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0)


def ratio(case: str, this: Sequence[str], that: str) -> Callable[[Records], Found | None]:
    """How many times as fast the quickest of the sides `this` is as `that`."""

    def find(records: Records) -> Found | None:
        ratios = [one for one in records.get(case, {}).get("ratios", []) if one["this"] in this and one["that"] == that]
        best = max(ratios, key=lambda one: one["value"], default=None)
        return best and Found(value=best["value"], low=best["low"], high=best["high"])

    return find


def difference(case: str) -> Callable[[Records], Found | None]:
    """The largest difference between streaming and whole."""

    def find(records: Records) -> Found | None:
        for one in records.get(case, {}).get("differences", []):
            if (one["this"], one["that"]) == (STREAMING, OURS):
                return _exactly(one["max_abs"], "")
        return None

    return find


def peaks(this: tuple[str, str], that: tuple[str, str]) -> Callable[[Records], Found | None]:
    """Peak memory of one (case, side) over that of another."""

    def find(records: Records) -> Found | None:
        sides = [records.get(case, {}).get("sides", {}).get(side) for case, side in (this, that)]
        return _exactly(sides[0]["peak_mib"] / sides[1]["peak_mib"]) if all(sides) else None

    return find


def gpu_gib(*stages: tuple[str, str]) -> Callable[[Records], Found | None]:
    """The most memory on the GPU in any of the stages (case, side), which follow each other."""

    def find(records: Records) -> Found | None:
        sides = [records.get(case, {}).get("sides", {}).get(side) for case, side in stages]
        return _exactly(max(side["gpu_peak_mib"] for side in sides) / 1024, " GiB") if all(sides) else None

    return find


def growth(case: str) -> Callable[[Records], Found | None]:
    """Memory that loading took over the bytes of the weights."""

    def find(records: Records) -> Found | None:
        found = records.get(case, {}).get("sides", {}).get(OURS)
        return found and _exactly((found["peak_mib"] - found["idle_mib"]) / records[case]["shapes"]["weights_mib"])

    return find


def utilisation(case: str) -> Callable[[Records], Found | None]:
    """Operations a second over those of a large matrix product."""

    def find(records: Records) -> Found | None:
        record = records.get(case, {})
        seconds = [side["median_s"] for name, side in record.get("sides", {}).items() if name in WAYS]
        if not seconds:
            return None
        return _exactly(100 * record["flops"] / min(seconds) / record["multiply_flops_per_s"], " %")

    return find


def _exactly(value: float, unit: str = "x") -> Found:
    return Found(value=value, low=value, high=value, unit=unit)


GOALS = (
    Goal(what="DiT, float32", at_least=1.25, find=ratio("dit_fp32", WAYS, THEIRS)),
    Goal(what="DiT, bfloat16", at_least=1.5, find=ratio("dit_bf16", WAYS, THEIRS)),
    Goal(what="DiT, 192 tokens, float32", at_least=2, find=ratio("dit_192_fp32", WAYS, THEIRS)),
    Goal(what="DiT, 192 tokens, bfloat16", at_least=2, find=ratio("dit_192_bf16", WAYS, THEIRS)),
    Goal(what="VAE decode", at_least=1.5, find=ratio("vae_decode", (OURS, STREAMING), THEIRS)),
    Goal(what="streaming decode against our whole one", at_least=0.9, find=ratio("vae_decode", (STREAMING,), OURS)),
    Goal(what="streaming decode, largest difference", at_most=1e-5, find=difference("vae_stream_37")),
    Goal(
        what="its peak memory, 37 latent frames against 7",
        at_most=1.1,
        find=peaks(("vae_stream_37", STREAMING), ("vae_stream_7", STREAMING)),
    ),
    Goal(
        what="its peak memory against diffusers, 37 latent frames",
        at_most=0.25,
        find=peaks(("vae_stream_37", STREAMING), ("vae_stream_37", THEIRS)),
    ),
    Goal(what="streaming encode, largest difference", at_most=1e-5, find=difference("vae_stream_encode_19")),
    Goal(what="whole clip, from the command to the file", at_least=3, find=ratio("clip", (OURS,), THEIRS)),
    Goal(
        what="the same with a prompt that was asked for before",
        at_least=3,
        find=ratio("clip", ("daifuku, same prompt again",), THEIRS),
    ),
    Goal(what="load, memory it takes over the weights", at_most=1.15, find=growth("load_diffusers_bf16")),
    Goal(what="load against safetensors' own", at_least=1, find=ratio("load_diffusers_bf16", (OURS,), "safetensors")),
    Goal(what="GPU: DiT, 163 frames", at_least=1.25, find=ratio("gpu_dit_163", WAYS, THEIRS)),
    Goal(
        what="GPU: DiT, 163 frames, against diffusers compiled",
        at_least=1.05,
        find=ratio("gpu_dit_163", WAYS, "diffusers compiled"),
    ),
    Goal(what="GPU: DiT, 163 frames, share of the matrix rate", at_least=60, find=utilisation("gpu_dit_163")),
    Goal(what="GPU: VAE decode, 163 frames", at_least=2, find=ratio("gpu_vae_163", (OURS, STREAMING), THEIRS)),
    Goal(
        what="GPU: peak of all stages",
        at_most=30,
        find=gpu_gib(("gpu_guided_163", OURS), ("gpu_text_fp32", OURS), ("gpu_vae_163", STREAMING)),
    ),
    Goal(
        what="GPU: peak with streamed blocks",
        at_most=8,
        find=gpu_gib(("gpu_guided_163", "daifuku streamed"), ("gpu_vae_163", STREAMING)),
    ),
    Goal(
        what="GPU: streamed blocks against resident ones",
        at_least=0.95,
        find=ratio("gpu_guided_163", ("daifuku streamed",), OURS),
    ),
)
"""What was promised, in the order of the page."""


def newest(folder: Path) -> Records:
    """Of each case, and of each profile, the line with the latest date, whatever machine it is from."""
    records: Records = {}
    for path in sorted(folder.glob("*.jsonl")):
        for record in map(json.loads, path.read_text().splitlines()):
            key = PROFILED + record["case"] if "profiles" in record else record["case"]
            known = records.get(key)
            if known is None or record["date"] >= known["date"]:
                records[key] = record
    return records


def goals_table(records: Records) -> str:
    """What was promised, and what is reached."""
    return _table(("what", "goal", "measured", "reached"), [goal.row(records) for goal in GOALS])


def machines_table(records: Records) -> str:
    """Which machine and which versions each figure is from."""
    groups: dict[str, dict[str, Record]] = {}
    for name, record in records.items():
        key = json.dumps([record["machine"], record["versions"]], sort_keys=True)
        groups.setdefault(key, {})[name] = record
    rows = []
    for names in groups.values():
        group = list(names.values())
        machine, versions = group[0]["machine"], group[0]["versions"]
        place = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gib']} GiB"
        rows.append(
            (
                ", ".join(names),
                f"{place}, {machine['gpu']}" if machine["gpu"] else place,
                ", ".join(f"{name} {version}" for name, version in versions.items()),
                max(record["date"] for record in group)[:10],
            )
        )
    return _table(("cases", "machine", "versions", "day"), rows)


def cases_table(prefixes: Sequence[str]) -> Callable[[Records], str]:
    """Every side of the cases whose names begin so."""

    def make(records: Records) -> str:
        rows = []
        for name, record in records.items():
            if name.startswith(tuple(prefixes)):
                rows += _side_rows(record)
        return _table(("case", "side", "seconds", "times as fast as the first", "peak MiB", "error"), rows)

    return make


def profiles_table(records: Records) -> str:
    """Where the time of our sides goes, and how fast they could be if only arithmetic cost time."""
    rows, kinds = [], []
    for name, record in records.items():
        if not name.startswith(PROFILED):
            continue
        what = record["case"]
        for side, found in record["profiles"].items():
            kinds = list(found["kinds_s"])
            shares = {kind: seconds / found["total_s"] for kind, seconds in found["kinds_s"].items()}
            fast = _as_fast_as_the_first(record, side, records)
            most = fast / arithmetic if fast and (arithmetic := sum(shares[kind] for kind in ARITHMETIC)) else None
            rows.append(
                (
                    what,
                    side,
                    *(f"{100 * share:.1f} %" for share in shares.values()),
                    f"{fast:.2f}" if fast else "",
                    f"{most:.2f}" if most else "",
                )
            )
            what = ""
    return _table(("case", "side", *kinds, "times as fast as the first", "at most"), rows)


def _as_fast_as_the_first(profile: Record, side: str, records: Records) -> float | None:
    """From the comparison of that case on the same machine: shares of one machine say nothing about another."""
    compared = records.get(profile["case"], {})
    sides = compared.get("sides", {})
    if compared.get("machine") != profile["machine"] or side not in sides:
        return None
    return next(iter(sides.values()))["median_s"] / sides[side]["median_s"]


def _side_rows(record: Record) -> Iterable[tuple[str, ...]]:
    """One row for each side; a side that was left out says why."""
    first = next(iter(record["sides"]), None)
    ratios = {one["this"]: one for one in record["ratios"] if one["that"] == first}
    what = f"{record['case']}: {record['about']}, {record['dtype']}"
    for name, side in record["sides"].items():
        one, error, gpu = ratios.get(name), side["error"], side["gpu_peak_mib"]
        peak = f"{side['peak_mib']:,.0f}" + (f" and {gpu:,.0f} on the GPU" if gpu else "")
        yield (
            what,
            name,
            f"{side['median_s']:.3g}",
            f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" if one else "",
            peak,
            f"{error['relative']:.1e}" if error else "",
        )
        what = ""
    for name, reason in record["skipped"].items():
        yield what, name, reason.replace("|", "/"), "", "", ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Nothing is measured yet.\n"
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def speed_plot(records: Records) -> str:
    """How many times as fast as diffusers, by case: a bar and its interval."""
    bars = []
    for case, record in records.items():
        best = ratio(case, (*WAYS, STREAMING), THEIRS)({case: record})
        if best is not None:
            bars.append((case, best))
    reach = max([2.0, *(bar.high for _, bar in bars)])
    step, left, width = 24, 190, 420
    scale = width / reach
    parts = [_line(left + scale, 0, left + scale, step * len(bars), "#999", dash="4 3")]
    for index, (case, bar) in enumerate(bars):
        middle = step * index + step / 2
        parts += [
            _text(left - 8, middle + 4, case, "end"),
            f'<rect x="{left}" y="{middle - 7}" width="{bar.value * scale:.1f}" height="14" fill="#4c78a8"/>',
            _line(left + bar.low * scale, middle, left + bar.high * scale, middle, "#222"),
            _text(left + bar.high * scale + 6, middle + 4, f"{bar.value:.2f}x", "start"),
        ]
    parts.append(_text(left + scale, step * len(bars) + 14, "as fast as diffusers", "middle"))
    return _svg(left + width + 70, step * len(bars) + 24, parts)


def memory_plot(records: Records) -> str:
    """Peak memory of decoding against the length of the clip, each point a process of its own."""
    points: dict[str, list[tuple[int, float]]] = {}
    for case in ("vae_stream_7", "vae_stream_19", "vae_stream_37"):
        for name, side in records.get(case, {}).get("sides", {}).items():
            points.setdefault(name, []).append((records[case]["shapes"]["latent"][2], side["peak_mib"]))
    top = max((peak for line in points.values() for _, peak in line), default=1.0)
    left, width, height = 70, 380, 220
    parts = [_line(left, height, left + width, height, "#999"), _text(left, height + 34, "latent frames", "start")]
    parts += [_text(left - 8, 14, f"{top:,.0f} MiB", "end"), _text(left - 8, height, "0", "end")]
    for colour, (name, line) in zip(("#e45756", "#4c78a8", "#54a24b"), points.items(), strict=False):
        places = [(left + width * frames / 40, height - (height - 10) * peak / top) for frames, peak in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            _text(x, height + 16, str(frames), "middle") for (x, _), (frames, _) in zip(places, line, strict=True)
        ]
        parts.append(_text(places[-1][0] + 8, places[-1][1] + 4, name, "start"))
    return _svg(left + width + 110, height + 44, parts)


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "none") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-dasharray="{dash}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


TABLES: dict[str, Callable[[Records], str]] = {
    "goals": goals_table,
    "dit": cases_table(["dit_"]),
    "vae": cases_table(["vae_"]),
    "clip": cases_table(["clip"]),
    "load": cases_table(["load_", "startup"]),
    "gpu": cases_table(["gpu_"]),
    "profiles": profiles_table,
    "machines": machines_table,
}
PLOTS: dict[str, Callable[[Records], str]] = {
    "performance_speed.svg": speed_plot,
    "performance_memory.svg": memory_plot,
}


def refreshed(page: str, records: Records) -> str:
    """The page with every table made again."""
    return TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]](records)}{found[3]}", page)


def main() -> None:
    """Writes the page and the plots."""
    records = newest(RESULTS)
    PAGE.write_text(refreshed(PAGE.read_text(), records))
    for name, plot in PLOTS.items():
        (IMAGES / name).write_text(plot(records))


if __name__ == "__main__":
    main()
