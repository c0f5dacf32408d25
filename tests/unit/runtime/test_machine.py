"""Amounts of memory, and what is free."""

import pytest
import torch

from daifuku.errors import InvalidRequest
from daifuku.runtime.machine import is_out_of_memory, multiply_rate, parse_size, resident_bytes, this_machine

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GiB", 12 * 2**30), ("12 GB", 12 * 2**30), ("1.5g", 3 * 2**29), ("800M", 800 * 2**20), ("4096", 4096)],
)
def test_a_size_is_read_with_units_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-3GiB", "0", "12 GiB free", "GiB"])
def test_what_is_no_size_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(InvalidRequest, match="12GiB"):
        parse_size(text)


def test_a_process_that_takes_memory_is_seen_to_hold_it() -> None:
    before = resident_bytes()
    held = torch.ones(2**26)
    assert resident_bytes() - before > 0.6 * held.nbytes


def test_a_limit_stands_for_the_memory_of_the_device() -> None:
    assert this_machine(CPU, 2**30).free_bytes == 2**30
    assert this_machine(CPU).free_bytes > resident_bytes()


def test_the_speed_of_a_matrix_product_is_plausible() -> None:
    assert 1e8 < multiply_rate(CPU, torch.float32) < 1e16


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_only_a_lack_of_memory_is_taken_for_one(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
