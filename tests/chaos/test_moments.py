"""A process killed at every moment at which it could matter; and faults of the server that this has to find."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.drill import Stage, Stuck, fuse_of
from tests.chaos.faults import FAULTS
from tests.chaos.live import Ended
from tests.chaos.moments import MOMENTS, Moment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("moments") / "data")
    with stage.live, stage.live.kept_up():
        yield stage


AT_WORK = [moment for moment in MOMENTS if moment.scene != "first start"]


@pytest.mark.parametrize("moment", AT_WORK, ids=lambda moment: f"{moment.side}: {moment.name}")
def test_whoever_dies_then_every_job_comes_to_its_end(moment: Moment, stage: Stage) -> None:
    stage.play(moment)
    assert not stage.findings().any()


def test_a_first_start_that_dies_within_a_migration_leaves_nothing_that_the_next_one_minds(tmp_path: Path) -> None:
    (moment,) = (moment for moment in MOMENTS if moment.scene == "first start")
    fuse_of(tmp_path / "data").light(moment.name)
    with pytest.raises(Ended):
        Stage(tmp_path / "data")
    stage = Stage(tmp_path / "data")
    assert stage.fuse.is_burnt
    with stage.live, stage.live.kept_up():
        stage.scene("make")
        assert not stage.findings().any()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_server_is_found(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    stage = Stage(tmp_path / "data", fault=name, patience_s=8)
    with stage.live, stage.live.kept_up():
        for play in (lambda: stage.play(fault.at, fault.passes), lambda: stage.scene("make")):
            # What is lost never comes to its end.
            with suppress(Stuck):
                play()
    assert getattr(stage.findings(), fault.shows_as) != []
