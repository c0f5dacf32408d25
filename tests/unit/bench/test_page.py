"""docs/performance.md says what the lines in bench/results say, and nothing else."""

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("performance_page", ROOT / "docs" / "performance.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def side(seconds: float, peak: float = 100.0, error: float | None = None) -> dict[str, Any]:
    return {
        "median_s": seconds, "samples_s": [seconds], "first_s": seconds, "idle_mib": 50.0, "peak_mib": peak,
        "gpu_peak_mib": None, "error": error and {"max_abs": error, "relative": error},
    }  # fmt: skip


RECORD = {
    "case": "dit_fp32",
    "about": "DiT",
    "date": "2026-01-02T03:04:05+00:00",
    "machine": {"cpu": "A processor", "cores": 2, "memory_gib": 24, "gpu": None, "threads": 2},
    "versions": {"python": "3.11", "torch": "2.13"},
    "shapes": {"latent": [1, 12, 7, 12, 20]},
    "dtype": "float32",
    "device": "cpu",
    "flops": None,
    "multiply_flops_per_s": None,
    "sides": {"diffusers": side(3.0, error=1e-6), "daifuku": side(2.0)},
    "ratios": [{"this": "daifuku", "that": "diffusers", "value": 1.5, "low": 1.4, "high": 1.6}],
    "differences": [],
    "skipped": {"daifuku compiled": "no compiler"},
    "seconds": 9.0,
}


def record(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(RECORD) | changes


def test_the_page_is_what_the_script_makes_of_the_lines(script: ModuleType):
    records = script.newest(ROOT / "bench" / "results")
    page = script.PAGE.read_text()
    assert script.refreshed(page, records) == page, "run `python docs/performance.py`"
    for name, plot in script.PLOTS.items():
        assert (script.IMAGES / name).read_text() == plot(records), "run `python docs/performance.py`"


def test_every_table_has_its_place_on_the_page(script: ModuleType):
    assert {found[2] for found in script.TABLE.finditer(script.PAGE.read_text())} == script.TABLES.keys()


def test_a_figure_that_was_changed_by_hand_is_put_right(script: ModuleType):
    records = {"dit_fp32": record()}
    page = script.refreshed("before\n<!-- table:dit -->\n<!-- /table -->\nafter", records)
    assert "| daifuku | 2 | 1.50 [1.40, 1.60] |" in page and "1.0e-06" in page and "no compiler" in page
    assert script.refreshed(page.replace("1.50", "9.99"), records) == page


def test_the_newest_line_of_a_case_counts(script: ModuleType, tmp_path: Path):
    lines = [record(date=f"2026-01-0{day}", about=f"day {day}") for day in (2, 3, 1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert script.newest(tmp_path)["dit_fp32"]["about"] == "day 3"


KINDS_S = {"matrix products": 4.0, "attention": 1.0, "convolutions": 1.0, "copies": 2.0}
NO_SUMS = {"matrix products": 0.0, "attention": 0.0, "convolutions": 0.0, "copies": 2.0}
PROFILE = {name: RECORD[name] for name in ("about", "date", "machine", "versions", "dtype")} | {
    "case": "dit_fp32",
    "profiles": {
        "daifuku": {"total_s": 8.0, "kinds_s": KINDS_S},
        "daifuku compiled": {"total_s": 2.0, "kinds_s": NO_SUMS},
    },
}


def test_a_profile_stands_beside_the_comparison_of_its_case(script: ModuleType, tmp_path: Path):
    lines = [record(), PROFILE | {"date": "2027-01-01T00:00:00+00:00"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = script.newest(tmp_path)
    assert records.keys() == {"dit_fp32", "profile of dit_fp32"} and "sides" in records["dit_fp32"]
    assert "| dit_fp32, profile of dit_fp32 | A processor" in script.machines_table(records)


def test_at_most_is_the_measured_ratio_over_the_share_of_arithmetic(script: ModuleType):
    both = record(sides=RECORD["sides"] | {"daifuku compiled": side(1.5)})
    table = script.profiles_table({"profile of dit_fp32": PROFILE, "dit_fp32": both})
    assert "| dit_fp32 | daifuku | 50.0 % | 12.5 % | 12.5 % | 25.0 % | 1.50 | 2.00 |" in table
    assert "|  | daifuku compiled | 0.0 % | 0.0 % | 0.0 % | 100.0 % | 2.00 |  |" in table


def test_a_profile_is_not_held_against_a_comparison_of_another_machine(script: ModuleType):
    other = record(machine=RECORD["machine"] | {"threads": 1})
    for records in ({"dit_fp32": other}, {}):
        table = script.profiles_table(records | {"profile of dit_fp32": PROFILE})
        assert "| dit_fp32 | daifuku | 50.0 % | 12.5 % | 12.5 % | 25.0 % |  |  |" in table
    assert script.profiles_table({"dit_fp32": record()}) == "Nothing is measured yet.\n"


def test_arithmetic_is_named_as_the_profiles_name_it(script: ModuleType):
    from daifuku.bench.kinds import KINDS

    assert set(script.ARITHMETIC) == KINDS.keys() - {"copies"}


@pytest.mark.parametrize("low, high, answer", [(1.3, 1.6, "yes"), (1.2, 1.6, "within the noise"), (1.0, 1.2, "**no**")])
def test_a_goal_is_reached_only_with_its_whole_interval(script: ModuleType, low: float, high: float, answer: str):
    ratios = [{"this": "daifuku", "that": "diffusers", "value": (low + high) / 2, "low": low, "high": high}]
    goal = script.GOALS[0]
    assert goal.row({"dit_fp32": record(ratios=ratios)})[-1] == answer
    assert goal.row({})[-1] == "not measured"


def test_every_goal_reads_records_of_the_cases_that_there_are(script: ModuleType):
    from daifuku.bench.cases import CASES

    seconds = side(1.0) | {"gpu_peak_mib": 1024.0}
    records = {}
    for case in CASES:
        pairs = [*((one.name, case.sides[0].name) for one in case.sides[1:]), *case.pairs]
        records[case.name] = record(
            case=case.name,
            shapes=case.shapes,
            flops=case.flops,
            multiply_flops_per_s=1e12,
            sides={one.name: seconds for one in case.sides},
            ratios=[{"this": this, "that": that, "value": 1.0, "low": 1.0, "high": 1.0} for this, that in pairs],
            differences=[{"this": this, "that": that, "max_abs": 0.0, "relative": 0.0} for this, that in pairs],
        )
    assert [goal.what for goal in script.GOALS if goal.row(records)[-1] == "not measured"] == []
    for plot in script.PLOTS.values():
        assert plot(records).count("daifuku") + plot(records).count("diffusers") > 0


def test_the_plots_are_drawn_without_any_line(script: ModuleType):
    for plot in script.PLOTS.values():
        assert plot({}).startswith("<svg")
