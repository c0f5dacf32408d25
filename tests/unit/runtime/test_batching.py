"""Whether both captions share a pass."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from daifuku.config import DiTConfig
from daifuku.model.block import AsymmBlock
from daifuku.request import LatentShape
from daifuku.runtime import measured
from daifuku.runtime.batching import batching_wins

CONFIG = DiTConfig(
    num_blocks=1, num_heads=2, head_dim=16, text_width=16, video_mlp_width=32, text_mlp_width=16, text_features=16
)
SHAPE = LatentShape.from_pixels(7, 32, 32)


@pytest.mark.parametrize("wins", [True, False])
def test_the_quicker_way_is_chosen_and_remembered(wins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, passes = 0.0, 0

    def timed(block: AsymmBlock, video: Tensor, text: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor]:
        nonlocal now, passes
        passes += 1
        now += 1.0 if len(video) == 1 else (1.5 if wins else 2.5)
        return video, text

    monkeypatch.setattr(AsymmBlock, "forward", timed)
    monkeypatch.setattr(measured, "perf_counter", lambda: now)
    asked = [batching_wins(CONFIG, SHAPE, torch.float32, torch.device("cpu"), tmp_path) for _ in range(2)]
    assert asked == [wins, wins]
    assert passes == 3 * (1 + measured.NUM_ROUNDS)


def test_both_ways_run_on_a_real_block(tmp_path: Path) -> None:
    found = batching_wins(CONFIG, SHAPE, torch.float32, torch.device("cpu"), tmp_path)
    assert type(found) is bool and (tmp_path / measured.MEMORY_FILE).is_file()
