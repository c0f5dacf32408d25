"""What processes make ahead of time is what would have been made at the time."""

import os

import numpy as np
import pytest
import torch

from daifuku.errors import InvalidRequest
from daifuku.train.ahead import made_ahead


def squares(number: int) -> tuple[np.ndarray, int]:
    """And by which process."""
    if number == 9:
        raise InvalidRequest("there is no batch 9")
    return np.full((2, 3), number**2, np.uint8), os.getpid()


def test_without_workers_a_batch_is_made_when_it_is_asked_for() -> None:
    assert made_ahead(squares, 0) is squares


def test_with_workers_every_batch_is_the_same_wherever_one_begins_and_the_random_state_stays_alone() -> None:
    state = torch.get_rng_state()
    made = made_ahead(squares, 2)
    for number in (5, 6, 7, 8, 2, 3, 3):
        batch, process = made(number)
        assert batch.dtype == np.uint8 and np.array_equal(batch, squares(number)[0])
        assert process != os.getpid()
    assert torch.equal(state, torch.get_rng_state())


def test_what_goes_wrong_in_a_worker_goes_wrong_where_its_batch_is_asked_for() -> None:
    made = made_ahead(squares, 1)
    made(8)
    with pytest.raises(InvalidRequest, match="there is no batch 9"):
        made(9)
