"""daifuku bench."""

import json
from pathlib import Path

import pytest

from daifuku.bench import run as bench_run
from daifuku.bench.cases import CASES
from daifuku.bench.profile import profile_case

RECORD = {
    "case": "startup",
    "about": "until a program can begin",
    "dtype": "float32",
    "device": "cpu",
    "sides": {name: {"median_s": 1.0, "peak_mib": 2.0, "error": {"relative": 1e-6}} for name in ("theirs", "ours")},
    "ratios": [{"this": "ours", "that": "theirs", "value": 2.0, "low": 1.9, "high": 2.1}],
    "differences": [{"this": "ours", "that": "theirs", "max_abs": 1e-7}],
    "skipped": {"genmo": "genmo is not installed"},
    "seconds": 3.0,
}


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Nothing is measured: these records come out."""
    records = [RECORD]
    monkeypatch.setattr(bench_run, "run_cases", lambda cases, *, rounds, tell, measure: iter(records))
    return records


def test_the_list_names_every_case(daifuku):
    run = daifuku("bench", "--list")
    assert run.code == 0
    assert [line.split()[0] for line in run.lines] == [case.name for case in CASES]


def test_a_person_reads_times_ratios_errors_and_what_was_left_out(daifuku):
    page = daifuku("bench", "startup").out
    for words in ("1.000 s", "2.00x [1.90, 2.10] as fast as theirs", "error 1.0e-06", "genmo is not installed"):
        assert words in page


def test_lines_are_added_to_a_file(daifuku, tmp_path: Path):
    for _ in range(2):
        assert json.loads(daifuku("bench", "startup", "--json", "--out", tmp_path / "out.jsonl").out) == RECORD
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [RECORD, RECORD]


def test_inside_a_checkout_lines_go_to_the_file_of_the_machine(daifuku, tmp_path: Path):
    (tmp_path / "bench" / "results").mkdir(parents=True)
    run = daifuku("bench", "startup")
    (path,) = (tmp_path / "bench" / "results").glob("*.jsonl")
    assert str(path) in run.err and json.loads(path.read_text()) == RECORD


def test_outside_of_one_nothing_is_kept(daifuku, tmp_path: Path):
    daifuku("bench", "startup")
    assert list(tmp_path.iterdir()) == []


def test_a_side_that_failed_makes_the_command_fail(daifuku, measured: list[dict]):
    measured[0] = RECORD | {"skipped": {"ours": "failed: out of memory"}}
    run = daifuku("bench", "startup")
    assert run.code == 1 and "some sides failed" in run.err and "out of memory" in run.out


def test_a_profile_is_read_by_kind_and_by_operator(daifuku, monkeypatch: pytest.MonkeyPatch):
    found = {"total_s": 2.0, "kinds_s": {"copies": 0.5}, "operators_s": {"aten::cat": 0.25}}
    asked: list[tuple] = []

    def run_cases(cases, *, rounds, tell, measure):
        asked.append(([case.name for case in cases], rounds, measure))
        yield {name: RECORD[name] for name in ("case", "about", "dtype", "device", "skipped", "seconds")} | {
            "profiles": {"ours": found}
        }

    monkeypatch.setattr(bench_run, "run_cases", run_cases)
    page = daifuku("bench", "--profile", "dit_192_*", "startup").out
    assert asked == [(["dit_192_fp32", "dit_192_bf16"], 3, profile_case)]
    for words in ("ours: 2.000 s", "25.0 %  copies", "12.5 %  aten::cat", "genmo is not installed"):
        assert words in page


def test_a_case_of_commands_alone_has_no_profile(daifuku):
    run = daifuku("bench", "--profile", "startup")
    assert run.code == 2 and "--profile 'dit_*'" in run.err


def test_an_unknown_case_is_a_wrong_request(daifuku):
    run = daifuku("bench", "strtup")
    assert run.code == 2 and "--list" in run.err
