"""daifuku tiny: trains the built-in model, stage by stage, and writes it as a model folder."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daifuku.cli.console import say

if TYPE_CHECKING:
    from daifuku.train.loop import Report


class Stage(StrEnum):
    """The stages of the recipe, and the last step that writes the result."""

    vae = "vae"
    decoder = "decoder"
    latents = "latents"
    dit = "dit"
    fast = "fast"
    fast_lora = "fast_lora"
    export = "export"


def tiny(
    stages: Annotated[
        list[Stage] | None, typer.Argument(help="Which stages to run, in this order; all that it needs if left out.")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where the run is kept; it goes on from there.")] = Path(
        "runs/tiny"
    ),
    output: Annotated[Path, typer.Option("-o", "--output", help="The model folder that `export` writes.")] = Path(
        "runs/tiny/model"
    ),
    settings: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            help="A TOML file with what differs from a first run. Default: FOLDER/settings.toml, if any.",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where to train: cpu or cuda.")] = "cpu",
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Steps of the one training stage that is named, if not its own."),
    ] = None,
) -> None:
    """Train a built-in model, from nothing or from another one. A run that was stopped goes on where it was.

    The learning rate falls over the last part of a stage's steps: with more --steps, a finished stage goes on.
    """
    from dataclasses import replace

    from daifuku.train import tiny as recipe
    from daifuku.train.tiny_settings import TinySettings, read_settings

    kept = folder / "settings.toml"
    file = kept if settings is None and kept.is_file() else settings
    own = TinySettings(folder=folder, device=device) if file is None else read_settings(file, folder, device)
    wanted = [stage.value for stage in stages] if stages else [*recipe.stages(own), Stage.export.value]
    if steps is not None:
        named = {"vae", "decoder", "dit", "fast", "fast_lora"}.intersection(wanted)
        if len(named) != 1:
            raise typer.BadParameter("--steps goes with one of the stages vae, decoder, dit, fast and fast_lora")
        name = named.pop()
        own = replace(own, **{name: replace(getattr(own, name), num_steps=steps)})
    recipe.check(own, wanted)
    for name in wanted:
        if name == "export":
            recipe.export(own, output)
            print(output)
        else:
            for report in recipe.STAGES[name](own):
                _show(name, report)


def _show(stage: str, report: "Report") -> None:
    """A line every 50 steps and at every validation."""
    measured = {name: value for name, value in report.values.items() if name != "grad_norm"}
    if (
        report.step % 50 == 0
        or report.step == report.num_steps
        or any(name.startswith(("val", "psnr")) for name in measured)
    ):
        figures = "  ".join(f"{name} {value:.4g}" for name, value in measured.items())
        say(f"{stage} {report.step}/{report.num_steps}  {report.seconds:.2f} s/step  {figures}")


COMMAND = tiny
