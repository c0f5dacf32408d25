"""Reading files ahead of their use."""

import re
import sys
import threading
import time
from pathlib import Path

import pytest

from daifuku.weights.ahead import PIECE_BYTES, reading_ahead


def read_so_far() -> int:
    """Bytes that this process has asked its files for."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found is not None
    return int(found[1])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(PIECE_BYTES + 5))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process reads")
@pytest.mark.parametrize(("free_bytes", "reads"), [(2**40, True), (PIECE_BYTES, False)])
def test_files_that_fit_into_memory_are_read_and_others_are_not(weights: Path, free_bytes: int, reads: bool) -> None:
    before = read_so_far()
    with reading_ahead([weights], free_bytes):
        for _ in range(200):
            if read_so_far() - before > PIECE_BYTES:
                break
            time.sleep(0.005 if reads else 0.0001)
    assert (read_so_far() - before > PIECE_BYTES) is reads


def test_it_ends_with_the_block_and_leaves_what_is_missing_to_others(weights: Path) -> None:
    with reading_ahead([weights.with_name("missing"), weights], 2**40):
        assert [each.name for each in threading.enumerate()].count("read-ahead") <= 1
    assert "read-ahead" not in [each.name for each in threading.enumerate()]
