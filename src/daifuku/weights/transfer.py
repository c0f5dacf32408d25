"""One file over HTTP, continued where it was left."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from daifuku.errors import ModelNotFound, UnwritableOutput

CHUNK_BYTES = 2**20
TIMEOUT_S = 30.0
MAX_RETRIES = 5
"""In a row, without a byte between them."""

RETRY_S = 1.0

Report = Callable[[int], object]
"""Told how many more bytes are here, or fewer. It ends the transfer by raising."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a file comes from right now: addresses of large files are often good for an hour only."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What a server says about a file."""

    name: str | None
    """The name that the server gives it, if it does."""
    num_bytes: int | None
    etag: str
    url: str
    """Where the redirections ended."""


def look(source: Source) -> Remote:
    """Asks for the first byte only: not every server answers a HEAD. Raises ModelNotFound."""
    try:
        with _open(source, "bytes=0-0") as response:
            headers: Message = response.headers
            total = re.fullmatch(r"bytes 0-0/(\d+)", headers.get("Content-Range", ""))
            length = total[1] if response.status == 206 and total else headers.get("Content-Length")
            if response.status == 206 and not total:
                length = None
            return Remote(
                name=headers.get_filename(),
                num_bytes=None if length is None else int(length),
                etag=headers.get("ETag", ""),
                url=response.geturl(),
            )
    except (OSError, HTTPException, ValueError) as error:
        raise unreachable(source.url, error) from error


def fetch(locate: Callable[[], Source], draft: Path, num_bytes: int | None, report: Report) -> None:
    """Makes the draft whole. What there is of it stays, and a later call continues it.

    `locate` is asked again before each attempt. Raises ModelNotFound when the server will not give the rest, and
    UnwritableOutput when the disk will not take it.
    """
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        here = draft.stat().st_size if draft.exists() else 0
    except OSError as error:
        raise _unwritable(draft, error) from error
    report(here)
    retries = MAX_RETRIES
    while num_bytes is None or here != num_bytes:
        before = here
        source = locate()
        problem: Exception = OSError("the connection closed too early")
        try:
            _append(source, draft, here, report)
            if num_bytes is None:
                return
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise unreachable(source.url, error) from error
            problem = error
        except (OSError, HTTPException) as error:
            problem = error
        here = draft.stat().st_size if draft.exists() else 0
        if num_bytes is not None and here > num_bytes:
            raise ModelNotFound(f"{source.url} gives more than its {num_bytes} bytes; delete {draft} and try again")
        retries = MAX_RETRIES if here > before else retries - 1
        if here != num_bytes and not retries:
            raise unreachable(source.url, problem) from problem
        if here == before:
            time.sleep(RETRY_S)


def unreachable(url: str, error: Exception) -> ModelNotFound:
    """What to raise about a file that a server does not give."""
    reason = getattr(error, "reason", None) or error
    code = f"{error.code} " if isinstance(error, HTTPError) else ""
    return ModelNotFound(
        f"{url} cannot be downloaded ({code}{reason}). What has come is kept: the same command continues"
    )


def _append(source: Source, draft: Path, here: int, report: Report) -> None:
    with _open(source, f"bytes={here}-" if here else None) as response:
        if here and response.status != 206:
            # It cannot start in the middle, so it gave everything.
            report(-here)
            here = 0
        elif here and not response.headers.get("Content-Range", "").startswith(f"bytes {here}-"):
            raise HTTPException(f"it gave {response.headers.get('Content-Range')!r} instead of the bytes from {here}")
        try:
            file = open(draft, "ab" if here else "wb", buffering=0)  # noqa: SIM115 (the disk's errors are not the network's)
        except OSError as error:
            raise _unwritable(draft, error) from error
        with file:
            while chunk := response.read1(CHUNK_BYTES):
                rest = memoryview(chunk)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError as error:
                    raise _unwritable(draft, error) from error
                report(len(chunk))


def _open(source: Source, byte_range: str | None) -> HTTPResponse:
    # Compressed, its bytes could not be counted.
    headers = {"User-Agent": "daifuku", "Accept-Encoding": "identity", **source.headers}
    if byte_range is not None:
        headers["Range"] = byte_range
    return urlopen(Request(source.url, headers=headers), timeout=TIMEOUT_S)


def _unwritable(path: Path, error: OSError) -> UnwritableOutput:
    return UnwritableOutput(f"{path} cannot be written: {error.strerror or error}")
