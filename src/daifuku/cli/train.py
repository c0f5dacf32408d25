"""daifuku train: a LoRA, a fine-tune or a model from scratch, as a configuration says."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from daifuku.cli.console import say
from daifuku.errors import DaifukuError

if TYPE_CHECKING:
    from daifuku.runtime.build import Parts
    from daifuku.train.config import TrainConfig
    from daifuku.train.loop import Report
    from daifuku.train.ranks import Ranks


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="What to train, on what and how: docs/training.md.")
    ],
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact", help="Go on even where settings, data, threads or versions are not what they were."
        ),
    ] = False,
) -> None:
    """Train on what `daifuku prepare` wrote. The same command again goes on where a run stopped, bit for bit.

    SIGTERM and Ctrl-C finish the step at hand, save it, and end with 0.
    """
    from daifuku.train.config import read_config
    from daifuku.train.curves import open_curves
    from daifuku.train.parallel import joined

    settings = read_config(config)
    step = None
    with joined(settings) as ranks, _stopping() as stop, _Bar(settings.schedule.steps, shown=ranks.is_first) as bar:
        beside = {"stop": lambda: stop.wanted, "say": bar.note, "allow_inexact": allow_inexact}
        reports = _vae(settings, **beside) if settings.method == "vae" else _transformer(settings, ranks, **beside)
        curves = open_curves(settings, bar.note) if ranks.is_first else ()
        for report in reports:
            step = report.step
            bar.show(report)
            for write in curves:
                write(report)
    if not ranks.is_first:
        return
    if step is not None and step < settings.schedule.steps:
        say(f"stopped and saved after step {step} of {settings.schedule.steps}; the same command goes on from there")
        return
    print(settings.output)


def _transformer(settings: "TrainConfig", ranks: "Ranks", **beside: Any) -> "Iterator[Report]":
    """Opens everything at once, and trains as the reports are asked for."""
    from daifuku.train.run import open_task, run_task

    task = open_task(settings, ranks)
    return run_task(task, show=_Clips(settings, task.parts, beside["say"]), **beside)


def _vae(settings: "TrainConfig", **beside: Any) -> "Iterator[Report]":
    from daifuku.train.vae_run import run_vae

    return run_vae(settings, **beside)


@dataclass(kw_only=True)
class _Stop:
    wanted: bool = False


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """A first signal asks for the end, and a second one does what it always does."""
    stop, before = _Stop(), {}

    def ask(number: int, _: object) -> None:
        stop.wanted = True
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar:
    """Steps, loss and pace on stderr."""

    def __init__(self, num_steps: int, *, shown: bool) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True, quiet=not shown),
            redirect_stdout=False,
        )
        self._task = self._bar.add_task("", total=num_steps)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, report: "Report") -> None:
        """Draws a step; what was validated stays as a line."""
        values = report.values
        pace = f"loss {values['loss']:.4f}  {report.seconds:.2f} s  {values['memory_gib']:.1f} GiB"
        self._bar.update(self._task, completed=report.step, description=pace)
        for name in ("val", "psnr"):
            if name in values:
                self.note(f"step {report.step}: loss {values['loss']:.4f}, {name} {values[name]:.4f}")

    def note(self, line: str) -> None:
        """A line above the bar."""
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Clips:
    """Clips of the chosen prompts, made by the pipeline as users make them, in the folder `clips` of the run."""

    def __init__(self, settings: "TrainConfig", parts: "Parts", note: Callable[[str], object]) -> None:
        """Raises InvalidRequest for clips that this model cannot make."""
        from daifuku.pipeline import Pipeline
        from daifuku.request import GenerateRequest

        clips, self._folder, self._note = settings.watch.clips, settings.output / "clips", note
        given = clips.model_dump(exclude={"prompts", "every"})
        self._requests = [GenerateRequest(prompt=prompt, **given) for prompt in clips.prompts]
        for request in self._requests:
            Pipeline(parts).resolve(request)

    def __call__(self, step: int, parts: "Parts") -> None:
        """Whatever goes wrong here is told, and the run goes on."""
        from daifuku.config import RuntimeConfig
        from daifuku.events import Done
        from daifuku.pipeline import Pipeline

        # The transformer is there already, and nothing else stays beside it.
        pipe = Pipeline(parts, RuntimeConfig(residency="offload", tabulate=False, compile=False, lora_mode="live"))
        try:
            self._folder.mkdir(exist_ok=True)
            for number, request in enumerate(self._requests):
                path = self._folder / f"{step:06}-{number}.mp4"
                path.unlink(missing_ok=True)
                for event in pipe.run(request):
                    if isinstance(event, Done):
                        event.video.save(path)
        except (DaifukuError, OSError) as error:
            self._note(f"step {step}: no clips, since {error}")


COMMAND = train
