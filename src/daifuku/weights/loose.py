"""Finds the parts of a model among the files of a folder by what is in them, whatever they are called."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from daifuku.errors import ModelNotFound
from daifuku.weights.files import places
from daifuku.weights.names import PART_NAMES, Found, Naming, Part, find_parts

FOLDERS = ("", "diffusion_models", "unet", "checkpoints", "vae", "text_encoders", "clip", "text_encoder", "tokenizer")
"""Where files of a model lie below its folder, in the order in which they are looked through."""

SUFFIXES = frozenset({".safetensors", ".gguf"})

TOKENIZERS = ("tokenizer.json", "spiece.model")
"""What the file of a tokenizer is called; unlike weights it does not say what it is."""


@dataclass(frozen=True, kw_only=True)
class LooseFiles:
    """Weight files by the parts of a model that are in them."""

    root: Path
    by_part: Mapping[Part, tuple[tuple[Path, Naming], ...]]

    def files(self, *parts: Part) -> tuple[Path, ...]:
        """The files that hold some of these parts, none of them twice. Raises ModelNotFound where there is a choice."""
        found: dict[Path, None] = {}
        for part in parts:
            choices = [path for path, _ in self.by_part.get(part, ())]
            if len(choices) > 1:
                shown = ", ".join(str(path.relative_to(self.root)) for path in choices)
                raise ModelNotFound(
                    f"{self.root} holds {len(choices)} {PART_NAMES[part]}s: {shown}. Leave one of each part in the "
                    "folder, or put links to those that you mean into a folder of their own"
                )
            found |= dict.fromkeys(choices)
        return tuple(found)

    def each(self) -> Iterator[tuple[Part, Path]]:
        """Every part that was found, and its file."""
        for part, choices in self.by_part.items():
            for path, _ in choices:
                yield part, path

    def naming(self, part: Part) -> Naming | None:
        """How the file of a part names its tensors; None where there is no such file."""
        return next((naming for _, naming in self.by_part.get(part, ())), None)


def loose_files(root: Path, known: Collection[str] = ()) -> LooseFiles:
    """The parts of a model in a folder and the usual folders below it, but for files of `known` names.

    Only headers are read. Raises CheckpointError for a damaged file.
    """
    by_part: dict[Part, tuple[tuple[Path, Naming], ...]] = {}
    for path in (path for path in _weights(root) if path.name not in known):
        for found in parts_of(path):
            by_part[found.part] = (*by_part.get(found.part, ()), (path, found.naming))
    return LooseFiles(root=root, by_part=by_part)


def parts_of(*paths: Path) -> tuple[Found, ...]:
    """The parts of a model that files hold together."""
    return find_parts([name for path in paths for name in places(path)])


def loose_tokenizer(root: Path) -> Path | None:
    """The file of a tokenizer in a folder or below it."""
    candidates = (root / folder / name for folder in FOLDERS for name in TOKENIZERS)
    return next((path for path in candidates if path.is_file()), None)


def _weights(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        if (root / folder).is_dir():
            yield from sorted(path for path in (root / folder).iterdir() if path.suffix in SUFFIXES and path.is_file())
