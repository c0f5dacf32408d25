"""The file that keeps the last step of a run."""

from pathlib import Path

import pytest
import torch

from daifuku.errors import InvalidRequest, UnwritableOutput
from daifuku.events import Step
from daifuku.runtime.checkpoint import Checkpoints, read_checkpoint


def step(index: int) -> Step:
    """With bits that a detour over other precisions would lose."""
    latent = torch.randn(12, 2, 2, 2, generator=torch.Generator().manual_seed(index))
    latent[0, 0, 0, 0] = 1e-42
    states = {"guidance": {"calls": 3, "difference": latent + 1}, "prompt": {"drift": 0.1}}
    return Step(index=index, total=9, sigma=0.5, seconds=0.1, latent=latent, states=states)


def test_a_step_comes_back_bit_for_bit(tmp_path: Path) -> None:
    Checkpoints(tmp_path / "a", {"seed": 7}, every_s=0.0).take(step(4))
    about, start = read_checkpoint(tmp_path / "a")
    assert about == {"seed": 7} and start.index == 4
    assert torch.equal(start.latent.view(torch.int32), step(4).latent.view(torch.int32))
    assert start.states["prompt"] == {"drift": 0.1} and start.states["guidance"]["calls"] == 3
    assert torch.equal(torch.as_tensor(start.states["guidance"]["difference"]), step(4).latent + 1)


def test_the_last_step_replaces_the_one_before(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "a", {}, every_s=0.0)
    kept.take(step(1)), kept.take(step(2))
    assert read_checkpoint(tmp_path / "a")[1].index == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_quick_run_writes_nothing_until_it_is_asked_to(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "a", {}, every_s=60.0)
    kept.take(step(1)), kept.take(step(2))
    assert not (tmp_path / "a").exists()
    kept.flush()
    assert read_checkpoint(tmp_path / "a")[1].index == 2


def test_a_run_that_is_done_leaves_nothing(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "a", {}, every_s=0.0)
    kept.take(step(1))
    kept.discard()
    kept.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableOutput, match="file"):
        Checkpoints(tmp_path / "file" / "a", {}, every_s=0.0).take(step(1))


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    Checkpoints(path, {}, every_s=0.0).take(step(1))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InvalidRequest, match="no checkpoint"):
        read_checkpoint(path)
