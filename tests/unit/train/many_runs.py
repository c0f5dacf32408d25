"""What each process of a run does, for tests."""

from functools import partial
from typing import Any

from daifuku.errors import DaifukuError
from daifuku.train.config import TrainConfig, parse_config
from daifuku.train.loop import LOG
from daifuku.train.parallel import joined
from daifuku.train.run import open_task, run_task


def train(rank: int, content: dict[str, Any], stop_at: int = 0, allow_inexact: bool = False) -> None:
    """The whole run, or until the last process is asked to stop; an error of the project's own is left in a file."""
    config = parse_config(content)
    try:
        with joined(config) as ranks:
            task = open_task(config, ranks)
            stop = partial(_is_asked, config, rank, stop_at)
            for _ in run_task(task, stop=stop, allow_inexact=allow_inexact):
                pass
    except DaifukuError as error:
        (config.output / f"error.{rank}").write_text(str(error))
        raise SystemExit(1) from error


def _is_asked(config: TrainConfig, rank: int, stop_at: int) -> bool:
    """Asks every process but the first once so many steps are in the log."""
    path = config.output / LOG
    return rank > 0 and stop_at > 0 and path.exists() and len(path.read_text().splitlines()) >= stop_at
