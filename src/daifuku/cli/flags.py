"""Command-line flags: those of every field of `GenerateRequest`, and those that several commands share."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import wraps
from typing import Annotated, Any

import typer

from daifuku.config import RuntimeConfig, setting_choices
from daifuku.errors import InvalidRequest
from daifuku.request import GenerateRequest, choices

REQUEST_PANEL, MODEL_PANEL, RUNTIME_PANEL = (
    "What to make",
    "Which model",
    "How it runs: the plan decides what is left out",
)
"""Headings of the help page."""


def _about_model(flag: str, placeholder: str, help: str) -> Any:
    return typer.Option(flag, metavar=placeholder, help=help, rich_help_panel=MODEL_PANEL)


Model = Annotated[
    str | None,
    _about_model("--model", "FOLDER|ID", "Model folder or hub id; the small built-in model if not given."),
]
Revision = Annotated[str | None, _about_model("--revision", "NAME", "Branch, tag or commit of a hub id.")]
Variant = Annotated[str | None, _about_model("--variant", "NAME", "Weights published under that name, such as bf16.")]
Device = Annotated[
    str | None, _about_model("--device", "NAME", "cpu, cuda, cuda:1 or mps; the fastest there is if not given.")
]
Dtype = Annotated[
    str | None,
    _about_model(
        "--dtype", "NAME", "float32, bfloat16 or float16; if not given float32 on a CPU, else what suits the weights."
    ),
]
Memory = Annotated[
    str | None,
    _about_model("--vram", "SIZE", "Memory of the device that may be used, such as 12GiB; what is free if not given."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Ends in .mp4, .webm or .gif, or in / for a folder of PNG frames. Never overwrites: a name that is taken "
        "gets a number.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def with_request_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for every request field in place of its parameter `values`, and for every runtime setting
    in place of its parameter `runtime`, if it has one.

    `values` is then a dictionary of the fields that were given, and `runtime` a RuntimeConfig.
    """
    signature = inspect.signature(command).parameters
    request = [_parameter(each) for each in fields(GenerateRequest)]
    runtime = [_setting(each) for each in fields(RuntimeConfig)] if "runtime" in signature else []
    own = [each for name, each in signature.items() if name not in ("values", "runtime")]

    @wraps(command)
    def _run(**given: Any) -> None:
        texts = {each.name: given.pop(each.name) for each in request}
        settings = {each.name: given.pop(each.name) for each in runtime}
        values = {name: value for name, value in texts.items() if value not in (None, [])}
        if "guidance_scale" in values:
            values["guidance_scale"] = _numbers(values["guidance_scale"])
        if runtime:
            given["runtime"] = RuntimeConfig(**settings)
        command(values, **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*request, *own, *runtime)]
    _run.__dict__["__signature__"] = inspect.Signature(parameters)
    _run.__annotations__ = {each.name: each.annotation for each in parameters}
    return _run


def _parameter(each: Field[Any]) -> inspect.Parameter:
    kind = str if each.metadata.get("per_step") else each.metadata["type"]
    kind = list[str] if kind is tuple else kind
    if each.default is MISSING:
        about = typer.Argument(help=each.metadata["help"], show_default=False)
    else:
        about = typer.Option(
            each.metadata.get("flag") or "--" + each.name.replace("_", "-"),
            metavar=each.metadata["placeholder"],
            help=_help(each),
            show_default=False,
            rich_help_panel=REQUEST_PANEL,
        )
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, about]
    )


def _setting(each: Field[Any]) -> inspect.Parameter:
    about, flag = each.metadata, "--" + each.name.replace("_", "-")
    allowed = setting_choices(about)
    facts = " or ".join(allowed) if allowed else f"{about['min']} or more" if about["type"] is int else ""
    placeholder: dict[type, str | None] = {bool: None, int: "NUMBER", str: "NAME"}
    option = typer.Option(
        f"{flag}/--no-{flag.removeprefix('--')}" if about["type"] is bool else flag,
        metavar=placeholder[about["type"]],
        help=f"{about['help']} ({facts})" if facts else about["help"],
        show_default=False,
        rich_help_panel=RUNTIME_PANEL,
    )
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[about["type"] | None, option]
    )


def _help(each: Field[Any]) -> str:
    """What the field means, its range and its default."""
    about = each.metadata
    facts: list[str] = []
    allowed = choices(each)
    if allowed is not None:
        facts.append(" or ".join(allowed))
    elif about["type"] is tuple:
        facts.append("may be repeated")
    elif about["type"] is not str:
        step = f" in steps of {about['step']}" if about["step"] else ""
        facts.append(f"{about['min']} to {about['max']}{step}")
        if about["per_step"]:
            facts.append("or a list with commas, one for each step")
    if about["default"] not in (None, ()):
        facts.append(f"default {about['default']!s}" if about["default"] != "" else "default empty")
    return f"{about['help']} ({'; '.join(facts)})"


def _numbers(text: str) -> float | list[float]:
    """ "4.5" or "6,6,1": one number, or one for each step."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise InvalidRequest(
            f"guidance_scale={text!r} is neither a number nor numbers with commas between. Try 6.0, or 6,6,1."
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]
