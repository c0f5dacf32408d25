"""Turns, records, and what is said when a side cannot run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from daifuku.bench import run
from daifuku.bench.case import Action, Case, Side, has
from daifuku.bench.run import choose, run_case, run_cases
from daifuku.bench.runner import Memory
from daifuku.errors import DaifukuError, InvalidRequest


class Scripted:
    """A side in this process, which takes the seconds that it is told and fails at its turn `fails`."""

    log: ClassVar[list[str]] = []

    def __init__(self, name: str, seconds: float, value: float | None, fails: int) -> None:
        self.name, self.seconds, self.value, self.left = name, seconds, value, fails

    def sample(self) -> float:
        self.left -= 1
        if self.left == 0:
            raise DaifukuError("out of memory")
        Scripted.log.append(self.name)
        return self.seconds

    def memory(self) -> Memory:
        return Memory(idle_bytes=2**20, peak_bytes=3 * 2**20)

    def output(self) -> np.ndarray | None:
        return None if self.value is None else np.full(4, self.value)

    def close(self) -> None:
        Scripted.log.append(f"{self.name} closed")


def unused(folder: Path) -> Action:
    raise AssertionError("scripted sides build nothing")


def one(folder: Path) -> Action:
    return Action(run=lambda: None, output=lambda: torch.ones(4))


SCRIPT = {"slow": (4.0, 1.5, -1), "fast": (1.0, 1.25, -1), "breaks": (1.0, None, 3), "never": (1.0, None, 1)}


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides and exact results without processes."""
    Scripted.log.clear()
    monkeypatch.setattr(run, "open_runner", lambda side, folder: Scripted(side.name, *SCRIPT[side.name]))
    monkeypatch.setattr(run, "_result", lambda build, folder: build(folder).output().numpy())


CASE = Case(
    name="two_sides",
    about="a comparison",
    sides=(
        Side(name="slow", build=unused, exact="one"),
        Side(name="fast", build=unused, exact="one"),
        Side(name="absent", build=unused, available=has("no_such_package")),
    ),
    exact={"one": one},
    shapes={"latent": [1]},
)


def test_a_record_has_every_field_and_is_json(tmp_path: Path):
    record = json.loads(json.dumps(run_case(CASE, tmp_path, rounds=3, tell=str)))
    assert record.keys() == {
        "case", "about", "date", "machine", "versions", "shapes", "dtype", "device", "flops", "multiply_flops_per_s",
        "sides", "ratios", "differences", "skipped", "seconds",
    }  # fmt: skip
    assert record["machine"].keys() == {"cpu", "cores", "memory_gib", "gpu", "threads"}
    assert {"python", "daifuku", "torch", "diffusers"} <= record["versions"].keys()
    assert record["sides"]["fast"] == {
        "median_s": 1.0,
        "samples_s": [1.0, 1.0, 1.0],
        "first_s": 1.0,
        "idle_mib": 1.0,
        "peak_mib": 3.0,
        "gpu_peak_mib": None,
        "error": {"max_abs": 0.25, "relative": 0.25},
    }
    assert record["ratios"] == [{"this": "fast", "that": "slow", "value": 4.0, "low": 4.0, "high": 4.0}]
    assert record["differences"] == [
        {"this": "fast", "that": "slow", "max_abs": 0.25, "relative": pytest.approx(1 / 6)}
    ]


def test_a_side_that_is_not_installed_is_said(tmp_path: Path):
    told: list[str] = []
    record = run_case(CASE, tmp_path, rounds=1, tell=told.append)
    assert record["skipped"] == {"absent": "no_such_package is not installed"}
    assert "two_sides: absent is left out: no_such_package is not installed" in told


def test_sides_take_turns_in_an_order_that_alternates(tmp_path: Path):
    run_case(CASE, tmp_path, rounds=2, tell=str)
    assert Scripted.log == ["slow", "fast", "slow", "fast", "fast", "slow", "fast closed", "slow closed"]


def test_no_round_begins_when_the_time_is_up(tmp_path: Path):
    told: list[str] = []
    record = run_case(replace(CASE, limit_s=0), tmp_path, rounds=9, tell=told.append)
    assert len(record["sides"]["fast"]["samples_s"]) == 1
    assert "two_sides: stops after 1 of 9 rounds: 0 s are over" in told


@pytest.mark.parametrize("name", ["breaks", "never"])
def test_a_side_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path, name: str):
    case = replace(CASE, sides=(*CASE.sides[:2], Side(name=name, build=unused)))
    record = run_case(case, tmp_path, rounds=3, tell=str)
    assert record["skipped"] == {name: "failed: out of memory"}
    assert record["sides"].keys() == {"slow", "fast"} and len(record["sides"]["fast"]["samples_s"]) == 3


def test_a_case_for_a_gpu_is_skipped_where_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told: list[str] = []
    assert list(run_cases([replace(CASE, device="cuda")], tell=told.append)) == []
    assert told == ["two_sides is skipped: there is no CUDA device here"]


def test_weights_that_cases_share_are_written_once(monkeypatch: pytest.MonkeyPatch):
    folders: list[Path] = []
    monkeypatch.setattr(run, "_prepare", lambda prepare, folder: folders.append(folder))
    cases = [replace(CASE, name=name, prepare=unused) for name in ("first", "second")]
    assert len(list(run_cases(cases, rounds=1, tell=str))) == 2
    assert len(folders) == 1 and not folders[0].exists()


def test_cases_are_chosen_by_pattern_in_their_own_order():
    cases = [replace(CASE, name=name) for name in ("dit_a", "vae", "dit_b")]
    assert [case.name for case in choose(cases, ["vae", "dit_*"])] == ["dit_a", "vae", "dit_b"]
    assert [case.name for case in choose(cases, ["dit_b"])] == ["dit_b"]
    assert choose(cases, []) == cases
    with pytest.raises(InvalidRequest, match="--list"):
        choose(cases, ["vae", "tid_*"])
