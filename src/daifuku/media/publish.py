"""Giving finished files their names: whole or not at all, and never over somebody else's."""

import errno
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

_TAKEN_FOR_A_FILE = (errno.EEXIST,)
_TAKEN_FOR_A_FOLDER = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""How the system says that there is something of that name: for a folder a full folder, or a file."""


def temporary_name(path: Path) -> Path:
    """A hidden name in the same folder that no other run uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def publish(files: Sequence[tuple[Path, str]], wanted: Path) -> Path:
    """Move finished temporaries to one common free name, all of them or none; return the last one's path.

    Each file comes with the ending its name gets (".json", ".mp4", "" for a folder) after the stem of `wanted`.
    If any of the names is taken, all get "-1" after the stem, and so on. The last file is the one that matters:
    it appears after the others, so whoever sees it finds them too. Raises OSError if the folder cannot be written.
    """
    stem = wanted.name.removesuffix(files[-1][1])
    temporaries = [temporary for temporary, _ in files]
    for temporary in temporaries:
        if temporary.is_dir():
            for file in temporary.iterdir():
                _sync(file)
        _sync(temporary)
    number = 0
    while True:
        marker = f"-{number}" if number else ""
        names = [wanted.with_name(stem + marker + ending) for _, ending in files]
        if _move_all(temporaries, names):
            _sync(wanted.parent)
            return names[-1]
        number += 1


def _move_all(temporaries: Sequence[Path], names: Sequence[Path]) -> bool:
    """Move each file to its name, or, if one of the names is taken, none."""
    moved: list[tuple[Path, Path]] = []
    complete = False
    try:
        for temporary, name in zip(temporaries, names, strict=True):
            if not _move(temporary, name):
                return False
            moved.append((temporary, name))
        complete = True
    finally:
        if not complete:
            for temporary, name in moved:
                name.replace(temporary)
    return complete


def _move(temporary: Path, name: Path) -> bool:
    """Rename, unless the name is taken. A plain rename would overwrite a file; a hard link never does."""
    is_folder = temporary.is_dir()
    taken = _TAKEN_FOR_A_FOLDER if is_folder else _TAKEN_FOR_A_FILE
    try:
        if is_folder:
            temporary.rename(name)
            return True
        try:
            os.link(temporary, name)
            temporary.unlink()
        except OSError as error:
            if error.errno in taken:
                raise
            # Some file systems have no hard links: there an empty file holds the name until the rename.
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            temporary.replace(name)
    except OSError as error:
        if error.errno in taken:
            return False
        raise
    return True


def _sync(path: Path) -> None:
    """Make what was written survive a power cut. Windows cannot do this by path and flushes by itself."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
