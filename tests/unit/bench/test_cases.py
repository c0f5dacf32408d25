"""The list of cases."""

import pickle
from collections import Counter

import pytest

from daifuku.bench.case import compiles, has
from daifuku.bench.cases import CASES, CPU
from daifuku.bench.machine import MachineInfo


def test_every_name_is_taken_once():
    assert max(Counter(case.name for case in CASES).values()) == 1
    for case in CASES:
        assert max(Counter(side.name for side in case.sides).values()) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_holds_together(case):
    names = {side.name for side in case.sides}
    assert {name for pair in case.pairs for name in pair} <= names
    assert {side.exact for side in case.sides} - {None} == case.exact.keys()
    for side in case.sides:
        assert (side.build is None) != (side.command is None) or side.available() is not None
    pickle.dumps([case.prepare, *case.exact.values(), *(side.build for side in case.sides)])


def test_a_case_of_the_cpu_keeps_to_two_minutes():
    assert all(case.device == "cpu" and case.limit_s <= 120 for case in CPU)


def test_what_is_missing_is_named():
    assert has("json", "daifuku.model")() is None
    assert has("json", "no_such_package.part")() == "no_such_package.part is not installed"


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch):
    assert compiles("cpu", "json", "no_such_package")() == "no_such_package is not installed"
    monkeypatch.setattr("daifuku.bench.case.compile_problem", lambda device: f"nothing compiles for {device}")
    assert compiles("cpu", "json")() == "nothing compiles for cpu"


def test_a_machine_names_its_file():
    cpu = MachineInfo(cpu="Intel(R) Xeon(R) Processor", cores=2, memory_gib=24, gpu=None, threads=2)
    gpu = MachineInfo(cpu="AMD", cores=16, memory_gib=128, gpu="NVIDIA H200", threads=16)
    assert (cpu.slug, gpu.slug) == ("intel-xeon-processor-2-cores", "nvidia-h200")
