"""Work in a process of its own, whatever it does."""

import ctypes
import time
from pathlib import Path

import pytest

from daifuku.errors import MediaError
from daifuku.train.prepare.isolated import Bounds, isolated


def test_what_it_returns_comes_back() -> None:
    assert isolated(divmod, 7, 3, bounds=Bounds()) == (2, 1)


def test_a_crash_is_an_error_and_no_more() -> None:
    with pytest.raises(MediaError, match=r"crashed on it \(SIGSEGV\)"):
        isolated(ctypes.string_at, 0, bounds=Bounds())


def test_what_takes_too_long_is_ended() -> None:
    started = time.monotonic()
    with pytest.raises(MediaError, match=r"longer than 0\.5 s"):
        isolated(time.sleep, 60, bounds=Bounds(time_s=0.5))
    assert time.monotonic() - started < 10


def test_what_takes_too_much_memory_is_refused() -> None:
    with pytest.raises(MediaError, match=r"more than 1\.0 GiB"):
        isolated(bytearray, 2 * 2**30, bounds=Bounds(memory_bytes=2**30))


def test_an_error_of_the_work_is_told_without_its_text() -> None:
    with pytest.raises(MediaError, match=r"cannot be decoded \(FileNotFoundError\)"):
        isolated(Path.read_bytes, Path("nowhere"), bounds=Bounds())
