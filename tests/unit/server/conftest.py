"""Servers that the tests of every shape of the API talk to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.server.fakes import House, house


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path) as home:
        yield home


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[House]:
    """Its worker has taken the first job and waits."""
    with house(tmp_path, script=["wait", "done"], settings={"max_queue": 2}) as home:
        yield home
