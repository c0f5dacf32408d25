"""daifuku evaluate: measures a model."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from daifuku.cli.flags import Device, Dtype, Json, Model

if TYPE_CHECKING:
    import numpy as np

    from daifuku.evaluate.presets import PresetReport
    from daifuku.evaluate.world import WorldReport
    from daifuku.pipeline import Pipeline


def world(
    prompts: Annotated[int, typer.Option("--prompts", min=1, metavar="N", help="How many prompts.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the prompts, and the noise of each.")] = 0,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Measure how well clips show what their prompts say, in the world that the built-in model has learnt.

    The prompts name combinations of shape, colour and motion that were never trained on. Classical vision reads colour,
    shape, size, motion and gravity off the clips; true renders show how far to trust it, and reconstructions by the VAE
    how well the model could do at best.
    """
    from daifuku.pipeline import load

    report = measure_world(load(model, device=device, dtype=dtype), num_prompts=prompts, seed=seed)
    print(report.to_json() if as_json else report.as_markdown())


def measure_world(pipe: "Pipeline", *, num_prompts: int, seed: int) -> "WorldReport":
    """The report on a pipeline at its defaults, and exact as well where those approximate, with a bar on stderr."""
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    from daifuku.evaluate.world import evaluate_world
    from daifuku.request import GenerateRequest

    defaults = pipe.resolve(GenerateRequest(prompt=""))
    approximate = defaults.preset != "exact"
    with Progress(console=Console(stderr=True), redirect_stdout=False) as progress:
        bar = progress.add_task("generating", total=num_prompts * (1 + approximate))

        def generate(prompt: str, seed: int, preset: str | None = None) -> "np.ndarray":
            frames = pipe(prompt, seed=seed, preset=preset).frames
            progress.advance(bar)
            return frames

        def reconstruct(frames: "np.ndarray") -> "np.ndarray":
            return np.concatenate([chunk.frames for chunk in pipe.decode(pipe.encode(frames))])

        return evaluate_world(
            generate,
            num_prompts=num_prompts,
            seed=seed,
            size=defaults.height,
            num_frames=defaults.num_frames,
            fps=defaults.fps,
            reconstruct=reconstruct,
            exact=partial(generate, preset="exact") if approximate else None,
        )


def presets(
    prompts: Annotated[int, typer.Option("--prompts", min=1, metavar="N", help="How many prompts.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the prompts, and the noise of each.")] = 0,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Measure what each preset saves and what it costs, beside the exact run of the same prompt and seed."""
    from daifuku.pipeline import load

    report = measure_presets(load(model, device=device, dtype=dtype), num_prompts=prompts, seed=seed)
    print(report.to_json() if as_json else report.as_markdown())


def measure_presets(pipe: "Pipeline", *, num_prompts: int, seed: int) -> "PresetReport":
    """The report on all presets, with a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    from daifuku.evaluate.presets import Made, evaluate_presets
    from daifuku.events import Done, Step
    from daifuku.presets import PRESETS
    from daifuku.request import GenerateRequest

    defaults = pipe.resolve(GenerateRequest(prompt=""))
    with Progress(console=Console(stderr=True), redirect_stdout=False) as progress:
        bar = progress.add_task("generating", total=num_prompts * len(PRESETS))

        def generate(prompt: str, seed: int, preset: str) -> Made:
            request = pipe.resolve(GenerateRequest(prompt=prompt, seed=seed, preset=preset))
            events = list(pipe.run(request))
            progress.advance(bar)
            (done,) = (event for event in events if isinstance(event, Done))
            last = [event for event in events if isinstance(event, Step)][-1]
            spared = sum(int(state.get("reused", 0)) for state in last.states.values())
            passes = sum(2 if scale != 1 else 1 for scale in request.guidance_scales) - spared
            return Made(frames=done.video.frames, num_passes=passes, sampling_s=done.video.timings["sampling_s"])

        return evaluate_presets(
            generate,
            tuple(PRESETS),
            num_prompts=num_prompts,
            seed=seed,
            size=defaults.height,
            num_frames=defaults.num_frames,
            fps=defaults.fps,
        )


COMMAND = typer.Typer(help="Measure a model.", no_args_is_help=True)
COMMAND.command("world")(world)
COMMAND.command("presets")(presets)
