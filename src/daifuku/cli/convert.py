"""daifuku convert: a model or a LoRA in the layout of other software."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daifuku.cli.console import byte_bars, say
from daifuku.cli.flags import Json, Revision, Variant

if TYPE_CHECKING:
    from daifuku.weights.publish import Conversion, Report


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Model folder, weight file, LoRA or hub id.", show_default=False)
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A folder for original and diffusers; one .safetensors file or a folder of several for comfy; a .gguf "
            "file for gguf; a .safetensors file for a LoRA.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="LAYOUT", help="original, diffusers, comfy or gguf.", show_default=False)
    ],
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16, float16, or fp8 for large layers. As it is if not given."),
    ] = None,
    quantise: Annotated[
        str | None,
        typer.Option(
            "--quantise",
            metavar="TYPE",
            help="Of large layers: nf4 for diffusers; fp8_scaled for comfy; q8_0, q5_1, q5_0, q4_1 or q4_0 for gguf.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PART", help="dit, vae or text; may be given again. Everything if not given."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT when it is there already.")] = False,
    revision: Revision = None,
    variant: Variant = None,
    as_json: Json = False,
) -> None:
    """Write a model or a LoRA in the layout of other software; OUT appears whole or not at all."""
    from daifuku.weights.convert import plan_convert
    from daifuku.weights.publish import run

    planned = plan_convert(
        _model(source), target, to=to, dtype=dtype, quantise=quantise, only=only or (), force=force, revision=revision,
        variant=variant,
    )  # fmt: skip
    for note in planned.notes:
        say(f"note: {note}")
    with _bar(planned) as report:
        path = run(planned, report)
    if as_json:
        print(json.dumps({"path": str(path), "bytes": planned.num_bytes, "notes": planned.notes}, indent=2))
    else:
        print(path)


def _model(source: str) -> str | Path:
    """The model that comes with the package goes by a name."""
    from daifuku.runtime.build import BUILT_IN, BUILT_IN_FOLDER

    return BUILT_IN_FOLDER if source == BUILT_IN else source


@contextmanager
def _bar(planned: "Conversion") -> "Iterator[Report]":
    """How many bytes of weights are written, on stderr."""
    with byte_bars() as bars:
        task = bars.add_task("writing", total=planned.num_bytes)
        yield lambda num_bytes: bars.advance(task, num_bytes)


COMMAND = convert
