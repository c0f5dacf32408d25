"""The most memory that a process ever held."""

import sys
from pathlib import Path

import pytest

from daifuku.bench import memory
from daifuku.bench.memory import peak_bytes, resident_bytes, run_command
from daifuku.errors import DaifukuError

MIB = 2**20


def test_what_a_command_allocated_and_let_go_is_seen(tmp_path: Path):
    spent = run_command([sys.executable, "-c", f"bytearray(b'x') * {200 * MIB}"], tmp_path)
    assert 200 * MIB < spent.peak_bytes < 240 * MIB
    assert 0 < spent.seconds < 30


def test_a_small_command_does_not_inherit_the_memory_of_this_process(tmp_path: Path):
    assert resident_bytes() > 100 * MIB, "with torch in it, this process is a large one"
    assert run_command([sys.executable, "-c", ""], tmp_path).peak_bytes < 40 * MIB


def test_a_command_runs_in_its_folder(tmp_path: Path):
    run_command([sys.executable, "-c", "open('here', 'w')"], tmp_path)
    assert (tmp_path / "here").exists()


@pytest.mark.parametrize(
    "command, words",
    [([sys.executable, "-c", "raise KeyError('gone')"], "ends with 1: KeyError: 'gone'"), (["/no/such"], "/no/such")],
    ids=["fails", "is not there"],
)
def test_a_command_that_fails_says_why(tmp_path: Path, command: list[str], words: str):
    with pytest.raises(DaifukuError, match=words):
        run_command(command, tmp_path)


def test_this_process_never_held_less_than_it_holds_now():
    assert peak_bytes() >= resident_bytes() > 0


def test_where_the_system_has_no_status_file_its_counters_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    known = peak_bytes()
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    assert resident_bytes() == peak_bytes() == pytest.approx(known, rel=0.5)
