"""A whole preparation: find, look at, plan, encode text, encode clips, list. Each stage can be stopped at any moment.

What a stopped run leaves is used by the next: scans, the text of shards, and finished shards whose hash still holds.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from daifuku.errors import InvalidRequest, MediaError, TrainingError, UnwritableOutput
from daifuku.media.decode import Limits
from daifuku.train.prepare.contact_sheet import write_contact_sheet
from daifuku.train.prepare.encode import SHARDS, WORK, Encoding, TextWorker, VideoWorker, finished, has_text
from daifuku.train.prepare.executors import Executor
from daifuku.train.prepare.isolated import Bounds, isolated
from daifuku.train.prepare.plan import Cutting, PlannedClip, plan_clips, plan_shards
from daifuku.train.prepare.scan import Scan, scan
from daifuku.train.prepare.sources import Skipped, Source, find_sources
from daifuku.train.prepared import MANIFEST, Manifest, Shard, write_manifest

SCAN_VERSION = 1
"""Counts up when a scan of the same file would tell something else."""

_OURS = re.compile(r"\d{6}(\.text)?\.(safetensors|json)$")
_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")
"""Names of files that are ours to remove: parts of a preparation, and what they are called while they are written."""

_LOG, _LOCK = "scans.jsonl", "lock"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is prepared, and how."""

    cutting: Cutting
    encoding: Encoding
    max_bad_share: float = 0.1
    """Of the sources: with more that cannot be used nothing is encoded."""
    samples_per_shard: int = 64
    """What a kill can cost at most."""
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """So many of a stage's things are done."""

    stage: str
    """looking, text or clips."""
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What will be encoded, and what will not."""

    num_sources: int
    clips: tuple[PlannedClip, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The end of a run."""

    manifest: Manifest
    num_kept: int
    """Shards that an earlier run had finished."""
    sheet: Path | None
    """A picture to look at; None where Pillow is not installed."""


def prepare(
    settings: Settings, executor: Executor, *, dry_run: bool = False
) -> Iterator[Progress | Planned | Prepared]:
    """Tells what it does as it goes; `Planned` comes before anything is encoded, `Prepared` at the end.

    A dry run ends with `Planned` and writes nothing. Raises InvalidRequest where the folders cannot be right,
    TrainingError where nothing or too little can be used, and what encoding raises.
    """
    encoding = settings.encoding
    _check_folders(encoding.videos, encoding.out)
    if dry_run:
        yield from _look(settings, executor, None)
        return
    with _locked(encoding.out):
        _sweep(encoding.out)
        planned: Planned | None = None
        for event in _look(settings, executor, encoding.out / WORK / _LOG):
            planned = event if isinstance(event, Planned) else planned
            yield event
        assert planned is not None, "looking ends with a plan"
        check_usable(planned, settings.max_bad_share)
        yield from _encode(settings, planned, executor)


def check_usable(planned: Planned, max_bad_share: float) -> None:
    """Raises TrainingError where nothing can be used, or more sources than that share cannot."""
    num_bad = len(planned.skipped)
    if not planned.num_sources:
        raise TrainingError("there is no video and no picture in VIDEOS. Nothing was encoded.")
    if not planned.clips:
        raise TrainingError(f"none of {planned.num_sources} sources can be used. Nothing was encoded.")
    share = num_bad / max(planned.num_sources, num_bad)
    if share > max_bad_share:
        raise TrainingError(
            f"{num_bad} of {planned.num_sources} sources cannot be used, more than {max_bad_share:.0%}. Nothing was "
            f"encoded. Mend them, or go on without them: --max-bad-share {min(share + 0.005, 1):.2f}"
        )


def look(videos: Path, fps: int, limits: Limits, bounds: Bounds, source: Source) -> Scan | Skipped:
    """Scans a source in a process of its own."""
    try:
        return isolated(scan, videos, source, fps, limits, bounds=bounds)
    except MediaError as error:
        return Skipped(source=source.name, reason=str(error))


def _look(settings: Settings, executor: Executor, log: Path | None) -> Iterator[Progress | Planned]:
    encoding = settings.encoding
    sources, skipped = find_sources(encoding.videos)
    num_sources = len(sources) + len(skipped)
    keys = {source.name: _key(encoding, source) for source in sources}
    known = _read_log(log)
    results = {name: known[key] for name, key in keys.items() if key in known}
    new = [source for source in sources if source.name not in results]
    work = partial(look, encoding.videos, encoding.fps, encoding.limits, settings.bounds)
    yield Progress(stage="looking", done=len(results), total=len(sources))
    for result in executor.each(work, new):
        name = result.name if isinstance(result, Scan) else result.source
        results[name] = result
        _append(log, keys[name], result)
        yield Progress(stage="looking", done=len(results), total=len(sources))
    scans = {name: result for name, result in results.items() if isinstance(result, Scan)}
    skipped += [result for result in results.values() if isinstance(result, Skipped)]
    clips, useless = plan_clips(sources, scans, settings.cutting)
    skipped = sorted([*skipped, *useless], key=lambda each: (each.source, each.reason))
    yield Planned(num_sources=num_sources, clips=tuple(clips), skipped=tuple(skipped))


def _encode(settings: Settings, planned: Planned, executor: Executor) -> Iterator[Progress | Prepared]:
    encoding = settings.encoding
    shards = plan_shards(planned.clips, settings.samples_per_shard)
    done: dict[str, Shard] = {}
    for shard in shards:
        if (found := finished(encoding, shard)) is not None:
            done[found.file] = found
    num_kept, total = len(done), len(planned.clips)
    todo = [shard for shard in shards if encoding.file(shard) not in done]
    # What is listed no longer holds while shards change.
    if todo:
        (encoding.out / MANIFEST).unlink(missing_ok=True)
    silent = [shard for shard in todo if not has_text(encoding, shard)]
    for index, _ in enumerate(executor.by_workers(partial(TextWorker, encoding), silent), start=1):
        yield Progress(stage="text", done=index, total=len(silent))
    yield Progress(stage="clips", done=_num_samples(done), total=total)
    for shard in executor.by_workers(partial(VideoWorker, encoding), todo):
        done[shard.file] = shard
        yield Progress(stage="clips", done=_num_samples(done), total=total)
    manifest = Manifest(
        fps=encoding.fps,
        model=encoding.about,
        shards=tuple(done[file] for file in sorted(done)),
        skipped=tuple(asdict(each) for each in planned.skipped),
    )
    _remove_others(encoding, done)
    sheet = write_contact_sheet(encoding, planned.clips)
    write_manifest(encoding.out, manifest)
    yield Prepared(manifest=manifest, num_kept=num_kept, sheet=sheet)


def _num_samples(shards: Mapping[str, Shard]) -> int:
    return sum(len(shard.samples) for shard in shards.values())


def _check_folders(videos: Path, out: Path) -> None:
    if not videos.is_dir():
        raise InvalidRequest(f"there is no folder {videos}. VIDEOS is a folder of videos, with captions beside them.")
    if out.is_relative_to(videos) or videos.is_relative_to(out):
        raise InvalidRequest(f"{out} and {videos} must not lie inside each other. Try {videos.parent / 'prepared'}.")
    if out.exists() and not out.is_dir():
        raise InvalidRequest(f"{out} is a file, and a folder is needed. Try {out.with_name(out.name + '-prepared')}.")
    strange = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if strange and not {WORK, MANIFEST} & set(strange):
        raise InvalidRequest(f"{out} holds other things, such as {strange[0]}. Try a folder that is not there yet.")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One run at a time; the system lets go of the lock when the process ends, however it ends."""
    with ExitStack() as stack:
        try:
            (out / SHARDS).mkdir(parents=True, exist_ok=True)
            (out / WORK).mkdir(exist_ok=True)
            file = stack.enter_context(open(out / WORK / _LOCK, "a"))
        except OSError as error:
            raise UnwritableOutput(f"{out} cannot be written: {error.strerror or error}") from error
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InvalidRequest(f"another run is at work in {out}. Wait for it, or try another folder.") from None
        yield


def _sweep(out: Path) -> None:
    """Removes the drafts of files that a killed run left."""
    for folder in (out, out / SHARDS, out / WORK):
        for path in folder.iterdir():
            if _DRAFT.fullmatch(path.name):
                path.unlink()


def _remove_others(encoding: Encoding, shards: Mapping[str, Shard]) -> None:
    """Removes what an earlier run with other clips left."""
    stems = {Path(file).stem for file in shards}
    kept = {name for stem in stems for name in (f"{stem}.json", f"{stem}.safetensors")}
    ours = [path for folder in (SHARDS, WORK) for path in (encoding.out / folder).iterdir() if _OURS.match(path.name)]
    others = [path for path in ours if path.name not in kept]
    if others:
        (encoding.out / MANIFEST).unlink(missing_ok=True)
    for path in others:
        path.unlink()


def _key(encoding: Encoding, source: Source) -> str:
    """Of all that decides what a scan finds. Contents count by their sizes and times, as for make and rsync."""
    stats = [(path.name, *_stat(path)) for path in source.files(encoding.videos)]
    content = [SCAN_VERSION, source.name, source.is_folder, stats, encoding.fps, asdict(encoding.limits)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _stat(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        # A frame that is a link to nowhere: the scan will say so.
        return -1, -1
    return about.st_size, about.st_mtime_ns


def _read_log(log: Path | None) -> dict[str, Scan | Skipped]:
    """What was looked at before, by `_key`. A line that a kill tore is no line."""
    found: dict[str, Scan | Skipped] = {}
    for line in log.read_text("utf-8").splitlines() if log is not None and log.is_file() else ():
        try:
            entry = json.loads(line)
            found[entry["key"]] = _result_from(entry)
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _result_from(entry: Mapping[str, Any]) -> Scan | Skipped:
    if "skipped" in entry:
        return Skipped(**entry["skipped"])
    told = dict(entry["scan"])
    shots = tuple((start_s, end_s) for start_s, end_s in told.pop("shots"))
    height, width = told.pop("size")
    return Scan(**told, shots=shots, size=(height, width))


def _append(log: Path | None, key: str, result: Scan | Skipped) -> None:
    if log is None:
        return
    kind = "scan" if isinstance(result, Scan) else "skipped"
    try:
        with open(log, "a", encoding="utf-8") as file:
            # A line of its own even behind one that was torn.
            file.write("\n" + json.dumps({"key": key, kind: asdict(result)}) + "\n")
    except OSError as error:
        raise UnwritableOutput(f"{log} cannot be written: {error.strerror or error}") from error
