"""daifuku evaluate: measures a model."""

from typing import TYPE_CHECKING, Annotated

import typer

from daifuku.cli.flags import Device, Dtype, Json, Model

if TYPE_CHECKING:
    import numpy as np

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
    """The report on a pipeline at its default settings, with a bar on stderr."""
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    from daifuku.evaluate.world import evaluate_world
    from daifuku.request import GenerateRequest

    defaults = pipe.resolve(GenerateRequest(prompt=""))
    with Progress(console=Console(stderr=True), redirect_stdout=False) as progress:
        bar = progress.add_task("generating", total=num_prompts)

        def generate(prompt: str, seed: int) -> "np.ndarray":
            frames = pipe(prompt, seed=seed).frames
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
        )


COMMAND = typer.Typer(help="Measure a model.", no_args_is_help=True)
COMMAND.command("world")(world)
