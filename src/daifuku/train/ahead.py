"""Batches that are made ahead of the step that needs them, by processes of their own."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


def made_ahead(make: Callable[[int], T], num_workers: int) -> Callable[[int], T]:
    """`make`, but that what it gives for the next numbers is made before it is asked for.

    What it gives is a function of the number alone, so it makes no difference who makes it. `make` and what it gives
    can be pickled. With no workers it is `make` itself. Asked for a number out of turn, the workers begin anew there.
    """
    if num_workers == 0:
        return make
    coming: Iterator[T] = iter(())
    expected: int | None = None

    def made(number: int) -> T:
        nonlocal coming, expected
        if number != expected:
            loader = DataLoader(
                _Numbered(make),
                sampler=count(number),  # pyright: ignore[reportArgumentType] (it never ends)
                batch_size=None,
                num_workers=num_workers,
                collate_fn=_as_it_is,
                # Or it would draw from the random state of the process.
                generator=torch.Generator(),
            )
            coming = iter(loader)
        expected = number + 1
        return next(coming)

    return made


class _Numbered(Dataset[T]):
    """A data set that makes its items."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, index: int) -> T:
        return self._make(index)


def _as_it_is(item: T) -> T:
    return item
