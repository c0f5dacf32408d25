"""What `daifuku generate` is asked to make: from its flags, from a sweep file, or from an older clip's record."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from daifuku.errors import InvalidRequest
from daifuku.request import GenerateRequest, ResolvedRequest

OUTPUTS = "outputs"
"""The folder of clips that were given no name."""

_SLUG_LENGTH = 48


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, and the name its clip should get; None for one made of prompt and seed."""

    request: GenerateRequest
    output: str | None = None


def job_from_flags(values: Mapping[str, Any], output: str | None) -> Job:
    """The request that the flags spell out. Raises InvalidRequest."""
    if "prompt" not in values:
        raise InvalidRequest(
            'there is no prompt. Try daifuku generate "a small red ball bouncing on a gray background".'
        )
    return Job(request=GenerateRequest.from_dict(values), output=output)


def jobs_from_sweep(file: str, values: Mapping[str, Any], output: str | None) -> list[Job]:
    """One job for each line of a JSON Lines file: any request fields, perhaps "output"; the flags fill in the rest.

    Raises InvalidRequest naming the line that is wrong.
    """
    try:
        lines = Path(file).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidRequest(f"the sweep {file} cannot be read: {reason}.") from error
    jobs: list[Job] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                jobs.append(_job_from_line(line, values, output))
            except InvalidRequest as error:
                raise InvalidRequest(f"{file}, line {number}: {error}") from error
    if not jobs:
        raise InvalidRequest(f'the sweep {file} has no lines. A line that works: {{"prompt": "a red ball", "seed": 1}}')
    return jobs


def repeated(request: ResolvedRequest, count: int) -> Iterator[ResolvedRequest]:
    """The request with its seed, the next one, and so on."""
    return (replace(request, seed=request.seed + i) for i in range(count))


def named(request: ResolvedRequest, output: str | None, *, alone: bool, ending: str = ".mp4") -> str:
    """Where a clip goes. A name that several clips were given gets each one's seed."""
    from daifuku.media.formats import is_folder_name

    if output is None:
        slug = re.sub(r"\W+", "-", request.prompt.lower()).strip("-")
        if len(slug) > _SLUG_LENGTH:
            slug = slug[:_SLUG_LENGTH].rpartition("-")[0] or slug[:_SLUG_LENGTH]
        return f"{OUTPUTS}/{slug or 'clip'}-{request.seed}{ending}"
    if alone:
        return output
    if is_folder_name(output):
        return f"{Path(output)}-{request.seed}/"
    path = Path(output)
    return str(path.with_name(f"{path.stem}-{request.seed}{path.suffix}"))


def ending_of(clip: str) -> str:
    """What the name of another clip of the same kind ends in."""
    from daifuku.media.formats import FORMATS

    path = Path(clip)
    if path.is_dir():
        return "/"
    return path.suffix.lower() if path.suffix.lower() in FORMATS else ".mp4"


def _job_from_line(line: str, values: Mapping[str, Any], output: str | None) -> Job:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InvalidRequest(f"this is no JSON ({error}).") from error
    if not isinstance(found, dict):
        raise InvalidRequest('a line is a JSON object, such as {"prompt": "a red ball", "seed": 1}.')
    name = found.pop("output", output)
    if name is not None and not isinstance(name, str):
        raise InvalidRequest(f"output={json.dumps(name)} is not a file name. Try clip.mp4.")
    return Job(request=GenerateRequest.from_dict({**values, **found}), output=name)
