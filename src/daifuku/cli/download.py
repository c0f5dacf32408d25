"""daifuku download: weights from the hub or an address, with room and checksums looked after."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daifuku.cli.console import byte_bars, say
from daifuku.cli.flags import Json, Revision

if TYPE_CHECKING:
    from rich.progress import TaskID

    from daifuku.weights.download import Download, Item, Progress


def download(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="mochi, a hub id such as genmo/mochi-1-preview, one file as OWNER/NAME/FILE, or an http address.",
            show_default=False,
        ),
    ],
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            metavar="NAME",
            help="bf16, fp8, nf4 or fast of mochi (bf16 if not given); what else an id has.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PART", help="dit, vae or text; may be given again. Everything if not given."),
    ] = None,
    revision: Revision = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", metavar="DIR", help="Where to put the files; the hub's cache if not given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Download weights. Interrupted, the same command continues."""
    from daifuku.weights.download import PARTS, plan_download, run

    planned = plan_download(model, variant=variant, parts=only or PARTS, revision=revision, folder=folder)
    say(f"{len(planned.items)} files, {planned.missing_bytes / 1e9:.2f} GB to download, into {planned.target}")
    if folder is None and planned.num_repos > 1:
        say("these come from several repositories: with --folder DIR they become one model, for --model DIR")
    paths: dict[str, Path] = {}
    with closing(run(planned)) as news:
        for each in _drawn(planned, news):
            if each.path is not None:
                paths[each.item.name] = each.path
    found = {item.name: paths[item.name] for item in planned.items}
    if as_json:
        files = [{"file": item.name, "path": str(found[item.name]), "bytes": item.num_bytes} for item in planned.items]
        print(json.dumps({"files": files, "downloaded_bytes": planned.missing_bytes}, indent=2))
    else:
        for path in [folder] if folder is not None and len(found) > 1 else _models(list(found.values())):
            print(path)


def _models(paths: list[Path]) -> list[Path]:
    """What `--model` takes: the folder of a whole model, and each weight file that lies outside of one."""
    roots = [path.parent for path in paths if path.name == "model_index.json"]
    rest = [path for path in paths if not any(path.is_relative_to(root) for root in roots)]
    return [*roots, *(path for path in rest if path.suffix in (".safetensors", ".gguf"))] or paths


def _drawn(planned: "Download", news: "Iterator[Progress]") -> "Iterator[Progress]":
    """A bar for each file that is on its way, on stderr."""
    with byte_bars() as bars:
        tasks: dict[Item, TaskID] = {}
        here: Counter[Item] = Counter()
        for each in news:
            item, name = each.item, each.item.name.rpartition("/")[2]
            if item not in tasks:
                tasks[item] = bars.add_task(name, total=item.num_bytes or None)
            here[item] += each.num_bytes
            whole = 0 < item.num_bytes <= here[item]
            bars.update(
                tasks[item],
                advance=each.num_bytes,
                description=f"checking {name}" if whole else name,
                visible=each.path is None,
            )
            yield each


COMMAND = download
