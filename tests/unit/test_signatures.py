"""What the package's signatures state is checked while tests run: types everywhere, shapes where there are any."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

from daifuku.model.attention import matmul
from daifuku.sample.solvers.euler import euler
from daifuku.weights.place import num_elements


def test_types_are_checked() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        num_elements(3)  # pyright: ignore[reportArgumentType]


def test_shapes_are_checked_by_a_name_that_comes_from_another_module_too() -> None:
    with pytest.raises(TypeCheckError):
        next(euler(lambda latent, sigma: latent, torch.zeros(2, 3), [1.0, 0.0]))


def test_sizes_of_one_name_agree_among_arguments() -> None:
    query, key = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 6)
    with pytest.raises(TypeCheckError):
        matmul(query, key, key, torch.tensor([5]))
