"""daifuku studio: the server with a page for the browser."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from daifuku.cli.flags import Model
from daifuku.cli.serve import serve_with


def studio(
    host: Annotated[str | None, typer.Option(help="Address; any but loopback needs --keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 8000 if not given, 0 for any that is free.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of jobs and files; daifuku-data if not given.")] = None,
    model: Model = None,
    keys: Annotated[Path | None, typer.Option(help="TOML file of API keys.")] = None,
    loras: Annotated[Path | None, typer.Option(help="Folder of LoRAs that the page offers.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Make videos in the browser.

    The same server as `daifuku serve`, with a page at /studio, for this machine alone unless --host says otherwise.
    """
    given = {"host": host, "port": port, "data": data, "model": model, "keys": keys, "loras": loras, "studio": True}

    def _listening(address: str) -> None:
        print(f"Daifuku listens on {address}/studio", flush=True)
        if browser:
            webbrowser.open(f"{address}/studio")

    serve_with(config, given, _listening)


COMMAND = studio
