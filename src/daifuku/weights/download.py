"""Weights from the hub or an address: room is looked for first, and every checksum is compared at the end."""

import hashlib
import re
import shutil
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

from daifuku.errors import CheckpointError, InvalidRequest, ModelNotFound, UnwritableOutput
from daifuku.weights import hub
from daifuku.weights.files import places
from daifuku.weights.hub import HubFile
from daifuku.weights.publications import NAME, PARTS, choose, publications
from daifuku.weights.transfer import Report, Source, fetch, look

NUM_PARALLEL = 4

SUFFIXES = (".safetensors", ".gguf")

_PAGE = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/(?:resolve|blob)/([^/]+)/([^?]+)(?:\?.*)?")
"""The address of a file on the hub, which then comes with its checksum."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file to be had."""

    name: str
    num_bytes: int
    """0 where the server does not say."""
    here_bytes: int
    """Of them here already."""
    get: Callable[[Report], Path]
    """Makes the file whole, checks it, and gives its path."""


@dataclass(frozen=True, kw_only=True)
class Download:
    """What a download is going to be."""

    items: tuple[Item, ...]
    target: Path
    """The folder, or the hub's cache."""
    num_repos: int = 1
    """How many repositories the files come from: those of several make one model only in a folder."""

    @property
    def missing_bytes(self) -> int:
        return sum(max(0, item.num_bytes - item.here_bytes) for item in self.items)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """So many more bytes of a file are here, or with its `path` all of it, and checked."""

    item: Item
    num_bytes: int = 0
    path: Path | None = None


class _Stopped(Exception):
    """Nobody wants the rest."""


def plan_download(
    model: str,
    *,
    variant: str | None = None,
    parts: Collection[str] = PARTS,
    revision: str | None = None,
    folder: Path | None = None,
) -> Download:
    """What there is to download for `mochi`, a hub id, owner/name/file or an http address. Asks the hub for sizes.

    Without a folder the hub's cache is filled, where `--model ID` finds it; an address comes into the working folder.
    Raises InvalidRequest for what is not there or not clear, and UnwritableOutput when the disk has too little room.
    """
    if unknown := set(parts).difference(PARTS):
        raise InvalidRequest(f"a model has no part {min(unknown)!r}: its parts are {', '.join(PARTS)}")
    if model.startswith(("http://", "https://")) and not _PAGE.fullmatch(model):
        found = Download(items=(_of_address(model, folder or Path()),), target=folder or Path())
    else:
        files = _files(model, variant, parts, revision)
        found = Download(
            items=tuple(_of_hub(file, folder) for file in files),
            target=folder or _cache(),
            num_repos=len({file.repo for file in files}),
        )
    _check_space(found)
    return found


def run(download: Download) -> Generator[Progress, None, None]:
    """Several files at a time, the largest first. Closing the iterator ends it; the same download then continues it.

    Raises ModelNotFound when a file does not come, CheckpointError when it is not what its publisher put there.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    for item in sorted(download.items, key=lambda item: -item.num_bytes):
        waiting.put(item)
    news: SimpleQueue[Progress | Exception] = SimpleQueue()
    stop = Event()
    for _ in range(NUM_PARALLEL):
        # Threads that end with the process: an interrupted command does not wait for the network.
        Thread(target=_work, args=(waiting, news, stop), name="download", daemon=True).start()
    try:
        left = len(download.items)
        while left:
            each = news.get()
            if isinstance(each, Exception):
                raise each
            left -= each.path is not None
            yield each
    finally:
        stop.set()


def _work(waiting: SimpleQueue[Item], news: SimpleQueue[Progress | Exception], stop: Event) -> None:
    def _report(item: Item, num_bytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        news.put(Progress(item=item, num_bytes=num_bytes))

    try:
        while not stop.is_set():
            item = waiting.get_nowait()
            news.put(Progress(item=item, path=item.get(partial(_report, item))))
    except (Empty, _Stopped):
        pass
    except Exception as error:  # noqa: BLE001 (whoever reads the news raises it)
        news.put(error)


def _files(model: str, variant: str | None, parts: Collection[str], revision: str | None) -> list[HubFile]:
    """The files that a name on the hub stands for. Raises InvalidRequest."""
    wanted = [part for part in PARTS if part in parts]
    if page := _PAGE.fullmatch(model):
        model, revision = f"{page[1]}/{page[3]}", revision or page[2]
    owner, _, rest = model.partition("/")
    name, _, file = rest.partition("/")
    if file:
        found = {each.name: each for each in hub.listing(f"{owner}/{name}", revision)}
        if file not in found:
            raise ModelNotFound(f"{owner}/{name} has no file {file}; it has {', '.join(sorted(found))[:500]}")
        return [found[file]]
    if model != NAME and not hub.is_id(model):
        raise ModelNotFound(f"{model!r} is neither {NAME}, nor a hub id like genmo/mochi-1-preview, nor an address")
    files: list[HubFile] = []
    for each in publications(model, variant, wanted):
        # A revision is one of the repository that was named, and not of those that we know.
        listed = {file.name: file for file in hub.listing(each.repo, None if model == NAME else revision)}
        files += [replace(listed[name], into=each.into) for name in choose(each, list(listed))]
    return list(dict.fromkeys(files))


def _of_hub(file: HubFile, folder: Path | None) -> Item:
    if folder is None:
        final = hub.cached(file) or hub.cache_blob(file)
    else:
        folder = folder / file.into
        # Below it lie the folders that other programs have, in which `--model` looks.
        final = folder / file.name.removeprefix("split_files/")
    draft = final.with_name(f"{final.name}.incomplete")
    small = file.sha256 is None
    there = final if not final.is_dir() and final.exists() else draft
    here = there.stat().st_size if there.is_file() else 0

    def _get(report: Report) -> Path:
        if small:
            path = hub.enter(file, folder)
            report(file.num_bytes)
            return path
        if final.exists():
            report(final.stat().st_size)
            _check(final, file)
        else:
            fetch(lambda: hub.source_of(file), draft, file.num_bytes, report)
            _check(draft, file)
            _publish(draft, final)
        return final if folder is not None else hub.enter(file, None)

    return Item(name=f"{file.repo}/{file.name}", num_bytes=file.num_bytes, here_bytes=here, get=_get)


def _of_address(url: str, folder: Path) -> Item:
    """A file somewhere else has no checksum: that its header and its length agree is all there is to check."""
    remote = look(Source(url=url))
    name = Path(remote.name or unquote(urlsplit(url).path)).name
    if not name.endswith(SUFFIXES):
        raise InvalidRequest(
            f"{url} gives {name or 'no file'!r}, and only {' and '.join(SUFFIXES)} files are downloaded: others may be "
            "pickles, which can run anything while they are read"
        )
    final = folder / name
    # The draft of another version of the file is never continued.
    version = hashlib.sha256(f"{url} {remote.etag} {remote.num_bytes}".encode()).hexdigest()[:12]
    draft = folder / f".{name}.{version}.incomplete"
    there = final if final.exists() else draft
    here = there.stat().st_size if there.exists() else 0
    if final.exists() and here != remote.num_bytes:
        raise UnwritableOutput(f"{final} is another file of {here} bytes; move it away, or give another --folder")

    def _get(report: Report) -> Path:
        if final.exists():
            report(here)
            places(final)
        else:
            fetch(lambda: Source(url=url), draft, remote.num_bytes, report)
            places(draft)
            _publish(draft, final)
        return final

    return Item(name=name, num_bytes=remote.num_bytes or 0, here_bytes=here, get=_get)


def _check(path: Path, file: HubFile) -> None:
    """Raises CheckpointError unless the content is what the hub says."""
    try:
        with open(path, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if found != file.sha256:
        raise CheckpointError(
            f"{path} is not the {file.name} that {file.repo} published: its sha256 is {found}, and should be "
            f"{file.sha256}. Delete {path.resolve()} and give the same command again"
        )


def _publish(draft: Path, final: Path) -> None:
    try:
        draft.replace(final)
    except OSError as error:
        raise UnwritableOutput(f"{final} cannot be written: {error.strerror or error}") from error


def _check_space(download: Download) -> None:
    target = download.target.absolute()
    existing = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if download.missing_bytes > free:
        raise UnwritableOutput(
            f"{download.missing_bytes / 1e9:.1f} GB are to be downloaded and {target} has {free / 1e9:.1f} GB free; "
            "make room, take less with --only or --variant, or give a --folder on another disk"
        )


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
