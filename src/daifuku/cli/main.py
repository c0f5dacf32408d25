"""The `daifuku` command: finds the commands beside this file, and turns errors into one line and an exit code."""

import pkgutil
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Annotated

import typer

import daifuku.cli
from daifuku.cli.console import say
from daifuku.errors import DaifukuError, InvalidRequest
from daifuku.version import VERSION

FAILED, WRONG_REQUEST, INTERRUPTED, TERMINATED = 1, 2, 130, 143


@dataclass(kw_only=True)
class Settings:
    """What stands before the command's name."""

    debug: bool = False


def main() -> None:
    """Run the command line. Exits with 0, 1 (failed), 2 (wrong request), 130 (interrupted) or 143 (terminated)."""
    settings = Settings()
    # The default would end the process at once, and leave half-written files behind.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        build_app(settings)(prog_name="daifuku")
    except SystemExit as end:
        if end.code in (INTERRUPTED, TERMINATED):
            say("interrupted" if end.code == INTERRUPTED else "terminated")
        raise
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 (the last stop of every error on its way to the user)
        if settings.debug:
            traceback.print_exc()
        elif isinstance(error, DaifukuError):
            say(f"error: {error}")
        else:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            say(f"error: something went wrong inside ({what}). `daifuku --debug ...` shows where.")
        sys.exit(WRONG_REQUEST if isinstance(error, InvalidRequest) else FAILED)


def _terminate(*_: object) -> None:
    sys.exit(TERMINATED)


def build_app(settings: Settings) -> typer.Typer:
    """The Typer app with every command of this folder."""
    app = typer.Typer(
        help="Text to video with Mochi 1.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def before_any_command(
        debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and stop.")
        ] = False,
    ) -> None:
        settings.debug = debug
        if not debug:
            # Libraries' advice to programmers; what a user has to know is said in our own words.
            warnings.simplefilter("ignore")

    for module in _commands():
        name = module.__name__.rpartition(".")[2]
        if isinstance(module.COMMAND, typer.Typer):
            app.add_typer(module.COMMAND, name=name)
        else:
            app.command(name)(module.COMMAND)
    return app


def _commands() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(daifuku.cli.__path__):
        module = import_module(f"daifuku.cli.{found.name}")
        if hasattr(module, "COMMAND"):
            yield module


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(VERSION)
        raise typer.Exit
    return wanted


if __name__ == "__main__":
    main()
