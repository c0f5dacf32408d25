"""daifuku tiny at the terminal: which settings a sitting runs with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.train import tiny
from daifuku.train.loop import Report
from daifuku.train.tiny_settings import TinySettings


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[TinySettings]:
    """The settings with which the stage `vae` was asked to run."""
    found: list[TinySettings] = []

    def stage(settings: TinySettings) -> Iterator[Report]:
        found.append(settings)
        yield Report(step=1, num_steps=1, values={"loss": 1.0}, seconds=0.1)

    monkeypatch.setitem(tiny.STAGES, "vae", stage)
    return found


def test_without_a_file_the_shipped_recipe_runs(daifuku: Any, tmp_path: Path, seen: list[TinySettings]) -> None:
    done = daifuku("tiny", "vae", "--folder", str(tmp_path))
    assert done.code == 0 and "vae 1/1" in done.err
    assert seen == [TinySettings(folder=tmp_path)]


def test_a_file_in_the_runs_folder_counts_unless_another_is_named(
    daifuku: Any, tmp_path: Path, seen: list[TinySettings]
) -> None:
    (tmp_path / "settings.toml").write_text("num_clips = 400")
    (tmp_path / "other.toml").write_text("num_clips = 500\nvae.num_steps = 7")
    assert daifuku("tiny", "vae", "--folder", str(tmp_path)).code == 0
    other = ("--settings", str(tmp_path / "other.toml"))
    assert daifuku("tiny", "vae", "--folder", str(tmp_path), *other).code == 0
    assert daifuku("tiny", "vae", "--folder", str(tmp_path), *other, "--steps", "9").code == 0
    assert [each.num_clips for each in seen] == [400, 500, 500]
    assert [each.vae.num_steps for each in seen] == [3600, 7, 9], "--steps has the last word"


def test_a_file_that_says_what_cannot_be_runs_nothing(daifuku: Any, tmp_path: Path, seen: list[TinySettings]) -> None:
    (tmp_path / "settings.toml").write_text("[world]\nsise = 96")
    done = daifuku("tiny", "vae", "--folder", str(tmp_path))
    assert done.code != 0 and "there is no world.sise: try world.size" in done.err and "Traceback" not in done.err
    assert seen == []


def test_a_stage_that_the_settings_leave_out_is_refused(daifuku: Any, tmp_path: Path, seen: list[TinySettings]) -> None:
    done = daifuku("tiny", "vae", "fast", "export", "--folder", str(tmp_path))
    assert done.code != 0 and "set few_steps = true" in done.err and "Traceback" not in done.err
    assert seen == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (f'dit_from = "{BUILT_IN_FOLDER}"\nnetworks.dit.num_blocks = 2', "try num_blocks = 6"),
        ('dit_from = "nowhere"', "nowhere"),
        (f'fast_from = "{BUILT_IN_FOLDER}"\nnetworks.dit.num_blocks = 2', "try num_blocks = 6"),
        (f'fast_from = "{BUILT_IN_FOLDER}"', "leave fast_from out"),
    ],
)
def test_models_to_begin_from_are_looked_at_before_anything_runs(
    daifuku: Any, tmp_path: Path, seen: list[TinySettings], settings: str, said: str
) -> None:
    (tmp_path / "settings.toml").write_text(f"few_steps = true\n{settings}")
    done = daifuku("tiny", "--folder", str(tmp_path))
    assert done.code != 0 and said in done.err and "Traceback" not in done.err
    assert seen == []
