"""What a conversion is going to write, and how it appears: a file or a whole folder, at once or not at all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from daifuku.errors import InvalidRequest, UnwritableOutput

Report = Callable[[int], object]
"""Is told about so many more bytes that were written."""

MODEL_ENTRIES = frozenset(
    {
        *("dit.safetensors", "encoder.safetensors", "decoder.safetensors", "model_index.json"),
        *("generation_config.json", "transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        *("diffusion_models", "text_encoders", "loras"),
    }
)
"""What lies in a folder that a conversion wrote: a folder that holds anything else is never replaced."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One thing to be written."""

    path: str
    """Inside the target, or "." for the target itself."""
    num_bytes: int
    write: Callable[[Path, Report], object]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion is going to be."""

    target: Path
    outputs: tuple[Output, ...]
    notes: tuple[str, ...] = ()
    """What a user should know about it."""

    @property
    def num_bytes(self) -> int:
        return sum(output.num_bytes for output in self.outputs)


def run(conversion: Conversion, report: Report = lambda _: None) -> Path:
    """Writes the target, one tensor in memory at a time. Whatever fails leaves there what was there before.

    Raises UnwritableOutput when it cannot be written, and CheckpointError when its source cannot be read.
    """
    if [output.path for output in conversion.outputs] == ["."]:
        conversion.outputs[0].write(conversion.target, report)
        return conversion.target
    with _published_folder(conversion.target) as draft:
        for output in conversion.outputs:
            output.write(draft / output.path, report)
    return conversion.target


def check_target(target: Path, source: Path, *, is_file: bool, force: bool) -> None:
    """Raises UnwritableOutput where a target would destroy what it should not."""
    here, there = target.resolve(), source.resolve()
    if here == there or there.is_relative_to(here):
        raise UnwritableOutput(f"{target} is, or contains, what is to be converted; give another OUT")
    if not (target.exists() or target.is_symlink()):
        return
    if not force:
        raise UnwritableOutput(f"{target} is there already; give another OUT, or --force to replace it")
    if target.is_symlink() or target.is_dir() == is_file:
        kinds = "link" if target.is_symlink() else "folder" if is_file else "file"
        raise UnwritableOutput(f"{target} is a {kinds}, and is not replaced by a {'file' if is_file else 'folder'}")
    strangers = [] if is_file else sorted(path.name for path in target.iterdir() if path.name not in MODEL_ENTRIES)
    if strangers:
        raise UnwritableOutput(
            f"{target} holds {strangers[0]!r}, which is no part of a model, so it is not replaced; give another OUT"
        )


def check_space(conversion: Conversion) -> None:
    """Raises UnwritableOutput, with both numbers, where the disk has too little room."""
    target = conversion.target.absolute()
    existing = next(folder for folder in target.parents if folder.exists())
    free = shutil.disk_usage(existing).free
    if conversion.num_bytes > free:
        raise UnwritableOutput(
            f"{conversion.num_bytes / 1e9:.2f} GB are to be written and {existing} has {free / 1e9:.2f} GB free; make "
            "room, convert less with --only, or give an OUT on another disk"
        )


def check_file_name(target: Path, suffix: str) -> None:
    """Raises InvalidRequest for a file that no loader would take for what it is."""
    if target.suffix != suffix:
        raise InvalidRequest(f"{target} will be a {suffix} file, so call it {target.with_suffix(suffix).name}")


@contextmanager
def _published_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block ends well, and not at all otherwise."""
    mark = uuid4().hex
    draft, old = (target.absolute().with_name(f".{target.absolute().name}.{mark}{end}") for end in ("", ".old"))
    try:
        draft.mkdir(parents=True)
        try:
            yield draft
            if target.exists():
                target.rename(old)
                try:
                    draft.rename(target)
                except OSError:
                    old.rename(target)
                    raise
                shutil.rmtree(old)
            else:
                draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UnwritableOutput(f"{target} cannot be written: {error.strerror or error}") from error
