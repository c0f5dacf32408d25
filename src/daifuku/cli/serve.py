"""daifuku serve: an API for videos, whose jobs outlive a crash."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from daifuku.cli.flags import Model
from daifuku.errors import InvalidRequest


def serve(
    host: Annotated[str | None, typer.Option(help="Address; any but loopback needs --keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 8000 if not given, 0 for any that is free.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of jobs and files; daifuku-data if not given.")] = None,
    model: Model = None,
    keys: Annotated[Path | None, typer.Option(help="TOML file of API keys.")] = None,
    loras: Annotated[Path | None, typer.Option(help="Folder of LoRAs that requests may name.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
) -> None:
    """Serve videos over HTTP, to OpenAI's clients and others.

    Works without any configuration, with the built-in model, for this machine alone. Every setting is also an
    environment variable, such as DAIFUKU_PORT; docs/serving.md lists them. SIGTERM ends it without losing a step.
    """
    given = {"host": host, "port": port, "data": data, "model": model, "keys": keys, "loras": loras}
    serve_with(config, given, lambda address: print(f"Daifuku listens on {address}", flush=True))


def serve_with(config: Path | None, given: Mapping[str, Any], listening: Callable[[str], None]) -> None:
    """Serve with those flags until a signal ends it. Raises InvalidRequest, also where a library is missing."""
    extra = "serve"
    try:
        from daifuku.server.run import run
        from daifuku.server.settings import read_settings

        settings = read_settings(config, given)
        around = None
        if settings.studio:
            extra = "studio"
            from daifuku.studio.mount import studio_at as around
    except ImportError as error:
        raise InvalidRequest(
            f"this needs more libraries ({error.name}). Try pip install 'daifuku[{extra}]'."
        ) from error
    run(settings, listening, around)


COMMAND = serve
