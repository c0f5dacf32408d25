"""daifuku evaluate: measures a model."""

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from daifuku.cli.flags import Device, Dtype, Json, Model
from daifuku.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np

    from daifuku.config import RuntimeConfig
    from daifuku.evaluate.presets import PresetReport
    from daifuku.evaluate.world import WorldReport
    from daifuku.model.dit import AsymmDiT
    from daifuku.pipeline import Pipeline
    from daifuku.weights.lora import Deltas


def world(
    prompts: Annotated[int, typer.Option("--prompts", min=1, metavar="N", help="How many prompts of each kind.")] = 200,
    seeds: Annotated[
        str,
        typer.Option(
            "--seeds",
            "--seed",
            metavar="N,N",
            help="Noise of each prompt's clips, one clip a seed; the first also draws the prompts.",
        ),
    ] = "0",
    kinds: Annotated[
        str, typer.Option("--kinds", metavar="NAMES", help="Of single, pair and fluid one or more, with commas.")
    ] = "single",
    pace: Annotated[bool, typer.Option("--pace", help="Prompts also say how fast, where that is free.")] = False,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls", help="Add rows that must score badly: captions shuffled, fresh weights, a frame that stands."
        ),
    ] = False,
    paraphrases: Annotated[
        bool, typer.Option("--paraphrases", help="Add prompts in phrases that training holds out.")
    ] = False,
    exact_steps: Annotated[
        int | None,
        typer.Option(
            "--exact-steps", min=1, metavar="N", help="Of the exact row; as many as the model takes if not given."
        ),
    ] = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Measure how well clips show what their prompts say, in the world that the built-in model has learnt.

    The prompts name combinations of shape, colour and motion that were never trained on. Classical vision reads what is
    to be seen off the clips, and laws of motion with it; true renders show how far to trust it, and reconstructions by
    the VAE how well the model could do at best.
    """
    from daifuku.pipeline import load

    report = measure_world(
        load(model, device=device, dtype=dtype),
        kinds=tuple(name.strip() for name in kinds.split(",")),
        num_prompts=prompts,
        seeds=_whole_numbers("seeds", seeds),
        pace=pace,
        controls=controls,
        paraphrases=paraphrases,
        exact_steps=exact_steps,
    )
    print(report.to_json() if as_json else report.as_markdown())


def measure_world(
    pipe: "Pipeline",
    *,
    num_prompts: int,
    kinds: tuple[str, ...] = ("single",),
    seeds: tuple[int, ...] = (0,),
    pace: bool = False,
    controls: bool = False,
    paraphrases: bool = False,
    exact_steps: int | None = None,
) -> "WorldReport":
    """The report on a pipeline at its defaults, and exact as well where those approximate, with a bar on stderr.

    The clips of the untrained model are among the controls. Raises InvalidRequest for `exact_steps` of a model whose
    defaults are exact.
    """
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    from daifuku.evaluate.world import check_asked, evaluate_world
    from daifuku.request import GenerateRequest

    check_asked(kinds, seeds)
    defaults = pipe.resolve(GenerateRequest(prompt=""))
    approximate = defaults.preset != "exact"
    if exact_steps is not None and not approximate:
        raise InvalidRequest("--exact-steps is for models whose default is not the preset exact. Try without it.")
    num_clips = len(kinds) * num_prompts * (len(seeds) * (1 + approximate + paraphrases) + controls)
    with Progress(console=Console(stderr=True), redirect_stdout=False) as progress:
        bar = progress.add_task("generating", total=num_clips)

        def generate(
            prompt: str, seed: int, preset: str | None = None, steps: int | None = None, made_by: "Pipeline" = pipe
        ) -> "np.ndarray":
            frames = made_by(prompt, seed=seed, preset=preset, num_inference_steps=steps).frames
            progress.advance(bar)
            return frames

        def reconstruct(frames: "np.ndarray") -> "np.ndarray":
            return np.concatenate([chunk.frames for chunk in pipe.decode(pipe.encode(frames))])

        return evaluate_world(
            generate,
            kinds=kinds,
            num_prompts=num_prompts,
            seeds=seeds,
            size=defaults.height,
            num_frames=defaults.num_frames,
            fps=defaults.fps,
            pace=pace,
            controls=controls,
            paraphrases=paraphrases,
            reconstruct=reconstruct,
            exact=partial(generate, preset="exact", steps=exact_steps) if approximate else None,
            untrained=partial(generate, made_by=untrained(pipe)) if controls else None,
        )


def untrained(pipe: "Pipeline") -> "Pipeline":
    """The same model, but with fresh weights in its transformer, as a training begins with."""
    from dataclasses import replace

    import torch

    from daifuku.pipeline import Pipeline
    from daifuku.train.initialise import initialise_dit

    def fresh_dit(run: "RuntimeConfig", device: torch.device, deltas: "Deltas" = MappingProxyType({})) -> "AsymmDiT":
        dit = pipe.parts.dit(run, device, deltas).to("cpu")
        initialise_dit(dit, torch.Generator().manual_seed(0))
        return dit.to(device)

    # Tables of modulations and blocks that pass through would come from the trained weights in the files.
    runtime = replace(pipe.runtime, quantise="none", tabulate=False, residency="offload")
    return Pipeline(replace(pipe.parts, dit=fresh_dit), runtime)


def _whole_numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0:
        raise InvalidRequest(f"{name}={text!r} are not whole numbers from 0 with commas between. Try 0, or 0,1.")
    return numbers


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
