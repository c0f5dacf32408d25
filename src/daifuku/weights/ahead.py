"""Reads files ahead of their use: the system fetches them into its cache while the program does something else."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PIECE_BYTES = 4 * 2**20


@contextmanager
def reading_ahead(paths: Sequence[Path], free_bytes: int) -> Iterator[None]:
    """Fetches the files while the block lasts, and stops when it ends.

    Nothing happens where they would not fit into `free_bytes` of memory, since they would push each other out.
    """
    there = [path for path in paths if path.is_file()]
    if sum(path.stat().st_size for path in there) > free_bytes:
        yield
        return
    stop = threading.Event()
    reader = threading.Thread(target=_read, args=(there, stop), name="read-ahead", daemon=True)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()


def _read(paths: Sequence[Path], stop: threading.Event) -> None:
    """Into a buffer that nobody looks at: merely asking for a file, Linux fetches little of it."""
    buffer = bytearray(PIECE_BYTES)
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:
                while not stop.is_set() and file.readinto(buffer):
                    pass
        except OSError:
            # Whoever needs the file will say what is wrong with it.
            return
