"""What lies in a folder of training data: videos, pictures and folders of frames, each with its captions."""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from daifuku.errors import InvalidRequest, MediaError
from daifuku.media.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from daifuku.values import shown

CAPTIONS_FILE = "captions.jsonl"

MAX_CAPTION_FILE_BYTES = 64 * 2**20
MAX_CAPTION_CHARACTERS = 10_000
MAX_CAPTIONS = 64
"""Of one source."""

_PASSED_OVER = frozenset({".txt", ".json", ".jsonl", ".csv", ".md", ".html", ".ini", ".db"})
"""Files that stand beside data without being data."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video, a picture, or a folder whose pictures are the frames of a clip."""

    name: str
    """Its path below the folder of the data, with slashes."""
    captions: tuple[str, ...]
    is_folder: bool = False

    def files(self, root: Path) -> list[Path]:
        """What it is made of, in the order of names."""
        path = root / self.name
        return images_of(path) if self.is_folder else [path]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """What was not used, and why."""

    source: str
    reason: str


def images_of(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")


def find_sources(root: Path) -> tuple[list[Source], list[Skipped]]:
    """Everything below `root`, folder by folder in the order of names, and what cannot be used.

    Captions stand in NAME.txt beside a source, one a line, and in the captions.jsonl of any folder above it. A folder
    that has captions itself is a clip; the pictures of one that has none are pictures. Links to files are followed,
    links to folders are not. Raises InvalidRequest where `root` is no folder.
    """
    if not root.is_dir():
        raise InvalidRequest(f"there is no folder {root}. VIDEOS is a folder of videos, with captions beside them.")
    captions, skipped = _listed_captions(root)
    known: set[str] = set()
    sources: list[Source] = []
    clips: set[str] = set()
    for name, is_folder in _walk(root, clips, skipped):
        known.add(name)
        try:
            if is_folder and not _has_captions(root, name, captions):
                continue
            _check_kind(root / name, is_folder)
            found = [each for each in (*_captions_beside(root / name), *captions.get(name, [])) if each]
            _check_captions(found)
            sources.append(Source(name=name, captions=tuple(found), is_folder=is_folder))
        except (MediaError, OSError) as error:
            skipped.append(Skipped(source=name, reason=_reason(error)))
        if is_folder:
            clips.add(name)
    lost = sorted(captions.keys() - known)
    skipped += [Skipped(source=name, reason=f"{CAPTIONS_FILE} names it, and it is not there") for name in lost]
    return sources, skipped


def _walk(root: Path, clips: set[str], skipped: list[Skipped]) -> Iterator[tuple[str, bool]]:
    """Names below the root that may be sources, and whether each is a folder.

    Does not enter folders in `clips`; those that cannot be entered come into `skipped`.
    """

    def closed(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        skipped.append(Skipped(source=name, reason=f"the folder cannot be read: {error.strerror}"))

    for folder, folders, files in os.walk(root, onerror=closed):
        here = Path(folder).relative_to(root).as_posix()
        here = "" if here == "." else f"{here}/"
        inner = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            suffix = Path(name).suffix.lower()
            if not name.startswith(".") and suffix not in _PASSED_OVER:
                yield here + name, False
        for name in inner:
            yield here + name, True
        folders[:] = [name for name in inner if here + name not in clips]


def _has_captions(root: Path, name: str, captions: dict[str, list[str]]) -> bool:
    if (root / name).is_symlink():
        raise MediaError("it is a link to a folder, which is not followed: name that folder itself")
    return name in captions or (root / name).with_name(f"{PurePosixPath(name).name}.txt").is_file()


def _check_kind(path: Path, is_folder: bool) -> None:
    """Raises MediaError for what is no video, no picture and no folder of pictures."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise MediaError("its name is no UTF-8: rename it") from None
    if is_folder:
        if not images_of(path):
            raise MediaError(f"the folder has captions and no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return
    if path.suffix.lower() not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        kinds = ", ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        raise MediaError(f"{path.suffix or 'a name without suffix'} is not read: convert it to one of {kinds}")
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise MediaError("it is no ordinary file")
    if not about.st_size:
        raise MediaError("it is empty")


def _captions_beside(path: Path) -> list[str]:
    """The lines of NAME.txt. A folder keeps its whole name."""
    beside = path.with_name(f"{path.name if path.is_dir() else path.stem}.txt")
    if not beside.is_file():
        return []
    return [line.strip() for line in _text(beside).splitlines() if line.strip()]


def _listed_captions(root: Path) -> tuple[dict[str, list[str]], list[Skipped]]:
    """What every captions.jsonl says, by the names of sources, and its lines that say nothing useful."""
    captions: dict[str, list[str]] = {}
    skipped: list[Skipped] = []
    for file in sorted(path for path in root.rglob(CAPTIONS_FILE) if path.is_file()):
        name = file.relative_to(root).as_posix()
        try:
            lines = _text(file).splitlines()
        except (MediaError, OSError) as error:
            skipped.append(Skipped(source=name, reason=_reason(error)))
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                source, found = _entry(json.loads(line), file.parent, root)
                captions.setdefault(source, []).extend(found)
            except (MediaError, ValueError, RecursionError) as error:
                reason = str(error) if isinstance(error, MediaError) else "it is no JSON"
                skipped.append(Skipped(source=f"{name}, line {number}", reason=reason))
    return captions, skipped


def _entry(entry: Any, folder: Path, root: Path) -> tuple[str, list[str]]:
    """Source and captions of one line. Raises MediaError."""
    hint = 'write {"file": "clip.mp4", "caption": "..."}, or "captions" and a list'
    if not isinstance(entry, dict) or not isinstance(file := entry.get("file"), str) or not file:
        raise MediaError(f"it names no file: {hint}")
    found = entry.get("captions", [entry["caption"]] if "caption" in entry else None)
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise MediaError(f"it has no caption: {hint}")
    path = Path(os.path.normpath(folder / file))
    if not path.is_relative_to(root) or path == root:
        raise MediaError(f"{shown(file)} leads out of the folder of the data")
    return path.relative_to(root).as_posix(), [" ".join(each.split()) for each in found]


def _check_captions(captions: list[str]) -> None:
    if not captions:
        raise MediaError("it has no caption: write it into NAME.txt beside it, or into captions.jsonl")
    if len(captions) > MAX_CAPTIONS:
        raise MediaError(f"it has {len(captions)} captions, more than {MAX_CAPTIONS}")
    for caption in captions:
        if len(caption) > MAX_CAPTION_CHARACTERS:
            raise MediaError(f"a caption has {len(caption)} characters, more than {MAX_CAPTION_CHARACTERS}")
        if "\0" in caption or any("\ud800" <= character <= "\udfff" for character in caption):
            raise MediaError(f"the caption {shown(caption)} has characters that are no text")


def _text(file: Path) -> str:
    if file.stat().st_size > MAX_CAPTION_FILE_BYTES:
        raise MediaError(f"its captions take more than {MAX_CAPTION_FILE_BYTES} bytes")
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise MediaError(f"{file.name} is no UTF-8: save it as UTF-8") from None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, MediaError) else str(getattr(error, "strerror", None) or error)
