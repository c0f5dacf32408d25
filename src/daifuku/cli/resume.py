"""Going on with a run that was killed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from daifuku.cli.console import say
from daifuku.cli.replay import Record, differences, parse_record
from daifuku.errors import InvalidRequest, NonFiniteLatent, UnwritableOutput
from daifuku.events import Event, Planned, Step

if TYPE_CHECKING:
    from daifuku.runtime.checkpoint import Checkpoints, Start


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run that stopped on its way."""

    path: Path
    record: Record
    output: str
    """The name that its clip was to get."""
    start: "Start"


def read_unfinished(path: str) -> Unfinished:
    """The run that a checkpoint belongs to. Raises InvalidRequest for a file that is none."""
    from daifuku.runtime.checkpoint import read_checkpoint

    about, start = read_checkpoint(path)
    return Unfinished(path=Path(path), record=parse_record(about["record"], path), output=about["output"], start=start)


class KeptSteps:
    """Keeps the last step of a run beside its clip until the clip is done.

    When the `with` block ends by an error, the file is brought up to date, and it is said how to go on.
    """

    def __init__(self, output: str, unfinished: Unfinished | None) -> None:
        self._output = output
        self._unfinished = unfinished
        self._path = _free_name(output) if unfinished is None else unfinished.path
        self._checkpoints: Checkpoints | None = None

    def __enter__(self) -> "KeptSteps":
        return self

    def take(self, event: Event) -> None:
        """Hears every event of the run. Raises InvalidRequest where it could not go on as it began."""
        from daifuku.runtime import checkpoint

        if isinstance(event, Planned):
            if self._unfinished is not None and not event.out_of_memory:
                _check_same_run(self._unfinished, event.record)
            about = {"record": event.record, "output": self._output}
            self._checkpoints = checkpoint.Checkpoints(self._path, about, every_s=checkpoint.EVERY_S)
        elif isinstance(event, Step) and self._checkpoints is not None:
            with self._warning():
                self._checkpoints.take(event)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self._checkpoints is None:
            return
        if isinstance(error, NonFiniteLatent):
            # It would end there again.
            self._checkpoints.discard()
            return
        with self._warning():
            self._checkpoints.flush()
            if self._checkpoints.path.exists():
                say(f"nothing is lost: `daifuku generate --resume {self._checkpoints.path}` goes on from the last step")

    def discard(self) -> None:
        """The clip is there: nothing needs to go on."""
        if self._checkpoints is not None:
            self._checkpoints.discard()

    @contextmanager
    def _warning(self) -> Iterator[None]:
        """A disk that is full does not stop a run, but nobody should rely on a checkpoint that is not there."""
        try:
            yield
        except UnwritableOutput as error:
            say(f"warning: {error}, so this run could not go on if it were stopped")
            self._checkpoints = None


def _free_name(output: str) -> Path:
    """A file beside the clip under a name that no other run's has."""
    from daifuku.runtime.checkpoint import ENDING

    clip = Path(output)
    stem, number = clip.stem if clip.suffix else clip.name, 0
    path = clip.with_name(stem + ENDING)
    while path.exists():
        number += 1
        path = clip.with_name(f"{stem}-{number}{ENDING}")
    return path


def _check_same_run(unfinished: Unfinished, record: Mapping[str, Any]) -> None:
    """Raises InvalidRequest where the rest of the run would not be what it would have been."""
    if changes := differences(unfinished.record.found, record):
        raise InvalidRequest(
            f"{unfinished.path} cannot go on bit for bit, since {'; '.join(changes)}. Put that back, or start the clip "
            "again from the beginning."
        )
