import numpy as np
import pytest

from daifuku.server.pictures import MAX_SIDE, chosen, grid, strip


def clip(number: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.arange(number, dtype=np.uint8)[:, None, None, None] * np.ones((1, height, width, 3), dtype=np.uint8)


def test_first_and_last_frame_are_among_those_chosen() -> None:
    assert chosen(clip(31), 4)[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert len(chosen(clip(2), 16)) == 2


@pytest.mark.parametrize("number, size", [(1, (4, 6, 3)), (4, (8, 12, 3)), (5, (8, 18, 3)), (16, (16, 24, 3))])
def test_frames_stand_in_rows_from_left_to_right(number: int, size: tuple[int, int, int]) -> None:
    sheet = grid(clip(number) + 1)
    assert sheet.shape == size
    seen = sheet[::4, ::6, 0].ravel()
    assert seen[:number].tolist() == list(range(1, number + 1)) and not seen[number:].any()


def test_a_large_frame_is_made_smaller() -> None:
    assert grid(clip(1, 480, 848)).shape == (120, 212, 3)
    assert max(grid(clip(1, 2048, 2048)).shape) <= MAX_SIDE


def test_a_pixel_of_a_strip_is_a_square() -> None:
    assert strip(clip(3), 4).shape == (16, 72, 3)
