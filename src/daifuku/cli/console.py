"""What a person at the terminal sees: everything here goes to stderr, since stdout is kept for results."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from daifuku.events import Event, Frames, Step, TextReady


def say(line: str) -> None:
    """One line on stderr, never wrapped."""
    print(line, file=sys.stderr, flush=True)


def byte_bars() -> Progress:
    """Bars that count bytes, each with its rate and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        # Paths go to stdout as they are, whatever is drawn here.
        redirect_stdout=False,
    )


class CountBars:
    """A bar for each stage of a run that counts things, with the time left."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), redirect_stdout=False)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "CountBars":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """So many of a stage's things are done."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def note(self, line: str) -> None:
        """A line above the bars."""
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


class RunProgress:
    """Bars for one clip: its steps and its frames, each with count, rate and time left."""

    def __init__(self, *, sampling: bool = True) -> None:
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Pace(),
            console=Console(stderr=True),
            # Paths go to stdout as they are, whatever is drawn here.
            redirect_stdout=False,
        )
        fields = {"total": None, "seconds": 0.0}
        self._steps = self._bars.add_task("reading the model", unit="step", visible=sampling, **fields)
        self._frames = self._bars.add_task("decoding", unit="frame", visible=not sampling, **fields)

    def __enter__(self) -> "RunProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, event: Event, num_frames: int) -> None:
        """Draw what a run of so many frames reports."""
        match event:
            case TextReady():
                if event.cut_text:
                    self.note(
                        f"warning: the prompt has {event.num_tokens} tokens and the model reads {event.max_tokens}; "
                        f"left out: {event.cut_text!r}"
                    )
            case Step():
                self._bars.update(self._steps, description="sampling", total=event.total)
                self._advance(self._steps, 1, event.seconds)
            case Frames():
                self._bars.update(self._frames, visible=True, total=num_frames)
                self._advance(self._frames, len(event.frames), event.seconds)

    def note(self, line: str) -> None:
        """A line above the bars."""
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _advance(self, task_id: TaskID, count: int, seconds: float) -> None:
        task = next(task for task in self._bars.tasks if task.id == task_id)
        self._bars.update(task_id, advance=count, seconds=task.fields["seconds"] + seconds, refresh=True)


class _Pace(ProgressColumn):
    """12/64 · 1.9 steps/s · 0:27 left, by the seconds that the run itself reports."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        seconds, unit = task.fields["seconds"], task.fields["unit"]
        count = f"{task.completed:.0f}/{task.total:.0f}"
        if not task.completed or not seconds:
            return Text(count)
        pace = seconds / task.completed
        rate = f"{1 / pace:.1f} {unit}s/s" if pace < 1 else f"{pace:.1f} s/{unit}"
        time = f"{clock(seconds)}" if task.finished else f"{clock(pace * task.remaining)} left"
        return Text(f"{count} · {rate} · {time}")


def clock(seconds: float) -> str:
    """0:07, 12:30 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
