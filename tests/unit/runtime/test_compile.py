"""Compiled blocks: first with a compiler that only counts, then really."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from daifuku.runtime.compile import available

CPU = torch.device("cpu")


@cache
def compiled(backend: str) -> dict[str, Any]:
    """What came out of several passes of a compiled transformer, beside the plain one."""
    source = str(Path(__file__).parents[3] / "src")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    program = [sys.executable, str(Path(__file__).with_name("compiled_blocks.py")), backend]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_compiled_blocks_compute_the_same() -> None:
    assert max(compiled("counting")["errors"]) < 1e-6


def test_all_blocks_but_the_last_share_a_graph_for_any_length_of_a_prompt() -> None:
    assert compiled("counting")["graphs"][:4] == [2, 2, 2, 2]


def test_a_caption_without_tokens_is_compiled_for_once() -> None:
    assert compiled("counting")["graphs"][4:] == [4, 4, 4]


def test_compiled_blocks_keep_the_names_of_their_weights() -> None:
    assert compiled("counting")["same_names"]


def test_weights_may_be_exchanged_under_a_compiled_block() -> None:
    assert compiled("counting")["exchanged"] > 1e-3


def test_where_nothing_can_be_compiled_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daifuku.runtime.compile.shutil.which", lambda name: None)
    assert "C++ compiler" in (available(CPU) or "")
    monkeypatch.setattr("daifuku.runtime.compile.shutil.which", lambda name: "/usr/bin/" + name)
    assert available(CPU) is None
    assert "mps" in (available(torch.device("mps")) or "")


@pytest.mark.slow
@pytest.mark.skipif(available(CPU) is not None, reason="there is no C++ compiler")
def test_really_compiled_blocks_compute_the_same() -> None:
    assert max(compiled("inductor")["errors"]) < 1e-4
