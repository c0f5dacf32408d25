"""The walk-through of docs/fine-tuning.md: its commands work as they stand there, and its measure measures."""

import importlib
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from daifuku.evaluate.world import true_clip

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "fine_tuning"

IN_SMALL = {
    "clips.py": "--zigzag 3 --ordinary 2",
    "prepare": "--size 32x32 --frames 7",
    "train": "",
    "generate": "--num-inference-steps 2 --num-frames 7",
    "measure.py": "--prompts 6 --others 1",
}
"""What is added to each command of the page."""


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "fine_tuning.py"))


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in ("clips", "measure"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("measure")


@pytest.mark.slow
def test_the_commands_of_the_page_work_one_after_the_other(script: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples" / "fine_tuning")
    settings = tmp_path / "examples" / "fine_tuning" / "zigzag.toml"
    shorter = settings.read_text().replace("steps = 400", "steps = 2").replace("size = 16", "size = 2")
    settings.write_text(shorter)
    typed = script["commands"]((ROOT / "docs" / "fine-tuning.md").read_text())
    added = [next(more for name, more in IN_SMALL.items() if name in command) for command in typed]
    *_, printed = [script["run"](f"{command} {more}", tmp_path) for command, more in zip(typed, added, strict=True)]
    assert "steps = 2" in shorter and "size = 2" in shorter and set(added) == set(IN_SMALL.values())
    assert "| a zigzag, 6 prompts that ask for it | 100.0 [100.0, 100.0] |" in printed
    assert "| what was asked for, the same 1 | 100.0 [100.0, 100.0] |" in printed
    assert "At strength 0, merged, a clip has the bits of a clip without it." in printed
    assert "At strength 0, live, a clip has the bits of a clip without it." in printed
    assert (tmp_path / "zigzag.mp4").exists() and (tmp_path / "zigzag.png").exists()
    assert script["training_time"](tmp_path).startswith("The 2 steps took 0.")


def test_a_zigzag_is_seen_where_there_is_one_and_nowhere_else(measure: ModuleType) -> None:
    for index in range(20):
        assert measure.shows_zigzag(measure.zigzag(measure.TEST_SEED, index, measure.UNTAUGHT).frames)
        assert not measure.shows_zigzag(true_clip(0, index, measure.SIDE, measure.NUM_FRAMES, measure.FPS).frames)


def test_what_is_asked_for_in_the_end_was_not_among_the_clips(measure: ModuleType) -> None:
    taught = {(thing.shape, thing.colour) for index in range(24) for thing in measure.zigzag(0, index).scene.things}
    assert len(taught) == 24 and taught.isdisjoint(measure.UNTAUGHT)


def test_a_share_has_an_interval_around_it(measure: ModuleType) -> None:
    half = measure.share(np.arange(100) % 2)
    assert half.value == 50 and 35 < half.low < 45 and 55 < half.high < 65


def test_figures_go_between_their_marks(script: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "fine-tuning.md").read_text()
    again = script["with_figures"](page, "figures\n")
    assert "<!-- figures -->\nfigures\n<!-- /figures -->" in again
    assert script["with_figures"](again, script["FIGURES"].search(page)[2]) == page
