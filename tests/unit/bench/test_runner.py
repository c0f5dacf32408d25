"""Sides in processes of their own. Starting one imports torch, so there is one test for all that it does."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from daifuku.bench import dit
from daifuku.bench.case import Side
from daifuku.bench.models import write_model
from daifuku.bench.runner import open_runner
from daifuku.errors import DaifukuError

HERE = {"shape": (1, 4, 4), "dtype": "float32"}


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True], ids=["one process", "a process for each sample"])
def test_a_side_runs_in_a_process_of_its_own(tmp_path: Path, fresh: bool):
    write_model(tmp_path, size="tiny")
    runner = open_runner(Side(name="daifuku", build=partial(dit.ours, **HERE), fresh=fresh), tmp_path)
    try:
        assert 0 < runner.sample() < 30
        memory, output = runner.memory(), runner.output()
    finally:
        runner.close()
    assert memory.idle_bytes is not None and 2**26 < memory.idle_bytes <= memory.peak_bytes
    if not fresh:
        assert output is not None and output.dtype == np.float64 and output.shape == (1, 12, 1, 4, 4)


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_said_with_its_place(tmp_path: Path):
    with pytest.raises(DaifukuError, match=r"ModelNotFound: .*\(\w+\.py, line \d+\)"):
        open_runner(Side(name="daifuku", build=partial(dit.ours, **HERE)), tmp_path)
