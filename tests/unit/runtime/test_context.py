"""Clips whose tokens many processes share: the same attention, velocity and gradients as in one process."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from daifuku.errors import InvalidRequest
from daifuku.model.attention import local, sdpa
from daifuku.runtime.context import check_heads
from tests.unit.processes import finish, start
from tests.unit.runtime import context_processes as work

SIZES = [2, 3]


def of_each(name: str, found: list[dict[str, Tensor]]) -> list[Tensor]:
    return [each[name] for each in found]


def results(folder: Path, num_processes: int, function: Callable[[int, Path], None]) -> list[dict[str, Tensor]]:
    assert set(finish(start(function, num_processes, folder / "meeting", folder))) == {0}
    return [load_file(folder / f"{rank}.safetensors") for rank in range(num_processes)]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", SIZES)
def test_attention_over_shared_tokens_is_the_local_one_and_so_are_its_gradients(
    num_processes: int, tmp_path: Path
) -> None:
    found = results(tmp_path, num_processes, work.attention)
    video, text = work.qkv(work.NUM_VIDEO), work.qkv(work.NUM_TEXT)
    video_out, text_out = work.attended(local(sdpa), video, text)
    work.weighed(video_out, text_out).backward()
    assert video.grad is not None and text.grad is not None
    counts = [len(part[0, 0]) for part in of_each("video", found)]
    assert sum(counts) == work.NUM_VIDEO and max(counts) - min(counts) == 1
    torch.testing.assert_close(torch.cat(of_each("video", found), dim=2), video_out)
    for each in found:
        torch.testing.assert_close(each["text"], text_out)
    for name, expected in (("video_grad", video.grad), ("text_grad", text.grad)):
        torch.testing.assert_close(sum(of_each(name, found)), num_processes * expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", SIZES)
def test_a_velocity_over_shared_tokens_is_the_local_one_and_so_are_its_gradients(
    num_processes: int, tmp_path: Path
) -> None:
    found = results(tmp_path, num_processes, work.transformer)
    dit = work.small_dit()
    velocity = work.predicted(dit)
    velocity.square().mean().backward()
    for each in found:
        torch.testing.assert_close(each["velocity"], velocity, rtol=1e-4, atol=1e-5)
    for name, parameter in dit.named_parameters():
        assert parameter.grad is not None
        total = sum(each[name] for each in found)
        torch.testing.assert_close(total, num_processes * parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "num_heads, num_processes, fit", [(24, 5, "1, 2, 3, 4, 6, 8, 12 or 24"), (6, 4, "1, 2, 3 or 6")]
)
def test_heads_that_cannot_be_shared_are_refused_with_the_numbers_that_work(
    num_heads: int, num_processes: int, fit: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"the {num_heads} attention heads .* try {fit}"):
        check_heads(num_heads, num_processes)
