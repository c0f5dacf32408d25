"""Which sides are profiled, and which of their turns counts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from daifuku.bench import profile
from daifuku.bench.case import Action, Case, Side, has
from daifuku.bench.cases import CASES
from daifuku.bench.kinds import Profile
from daifuku.bench.profile import profilable, profile_case
from daifuku.errors import DaifukuError, InvalidRequest


class Scripted:
    """A side in this process: turns take 3, 1, 2 seconds; the one called broken fails."""

    def __init__(self, side: Side, log: list[str]) -> None:
        self.name, self.log, self.seconds = side.name, log, iter((3.0, 1.0, 2.0))

    def sample(self) -> float:
        self.log.append(f"{self.name} warms up")
        return 1.0

    def profile(self) -> Profile:
        if self.name == "daifuku broken":
            raise DaifukuError("out of memory")
        return Profile(kinds_s={"copies": next(self.seconds)}, operators_s={"aten::cat": 0.5})

    def close(self) -> None:
        self.log.append(f"{self.name} closed")


def unused(folder: Path) -> Action:
    raise AssertionError("scripted sides build nothing")


CASE = Case(
    name="sides",
    about="a comparison",
    sides=(
        Side(name="diffusers", build=unused),
        Side(name="daifuku", build=unused),
        Side(name="daifuku broken", build=unused),
        Side(name="daifuku absent", build=unused, available=has("no_such_package")),
        Side(name="daifuku --help", command=lambda folder: ["true"]),
    ),
)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the sides do."""
    log: list[str] = []
    monkeypatch.setattr(profile, "open_process", lambda side, folder: Scripted(side, log))
    return log


def test_the_median_turn_of_our_sides_is_told_and_what_is_left_out(log: list[str], tmp_path: Path):
    record = json.loads(json.dumps(profile_case(CASE, tmp_path, rounds=3, tell=log.append)))
    assert record["case"] == "sides" and "sides" not in record and record["machine"]["cores"] > 0
    assert record["profiles"] == {
        "daifuku": {"total_s": 2.0, "kinds_s": {"copies": 2.0}, "operators_s": {"aten::cat": 0.5}, "turns": 3}
    }
    assert record["skipped"] == {
        "daifuku broken": "failed: out of memory",
        "daifuku absent": "no_such_package is not installed",
    }
    assert [line for line in log if not line.startswith("sides: ")] == [
        "daifuku warms up", "daifuku closed", "daifuku broken warms up", "daifuku broken closed",
    ]  # fmt: skip


def test_no_turn_begins_when_the_time_is_up(log: list[str], tmp_path: Path):
    record = profile_case(replace(CASE, limit_s=0), tmp_path, rounds=3, tell=log.append)
    assert record["profiles"]["daifuku"]["turns"] == 1


def test_transformer_autoencoder_and_loading_can_be_profiled_and_commands_cannot():
    names = {case.name for case in profilable(CASES)}
    assert {"dit_fp32", "vae_decode", "load_diffusers_bf16"} <= names and names.isdisjoint({"clip", "startup"})
    with pytest.raises(InvalidRequest, match="startup is nothing else"):
        profilable([case for case in CASES if case.name == "startup"])
