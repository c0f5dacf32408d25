"""Every part of a model that is somewhere, with what lies beside it, ready to be written anew."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daifuku.config import MOCHI_STATS, LatentStats
from daifuku.errors import InvalidRequest, ModelNotFound
from daifuku.weights.contents import contents, of_vae
from daifuku.weights.files import refuse_pickle
from daifuku.weights.locate import INSIDE, ModelFiles, locate
from daifuku.weights.loose import loose_files
from daifuku.weights.names import Part
from daifuku.weights.rearrange import Source
from daifuku.weights.tensors import TensorFiles

PARTS = {"dit": "transformer", "vae": "vae", "text": "text"}
"""The parts of a model as commands call them, and as they are located."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A model in its files."""

    root: Path
    sources: Mapping[Part, Source]
    located: Mapping[str, ModelFiles]
    """By "transformer", "vae" and "text", as far as they are there."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why a part is not there."""

    @property
    def stats(self) -> LatentStats:
        return self.located["vae"].stats if "vae" in self.located else MOCHI_STATS

    @property
    def zero_empty(self) -> bool:
        return all(files.zero_empty for files in self.located.values())

    @property
    def defaults(self) -> dict[str, Any]:
        """The model's own request defaults."""
        return next((files.defaults for files in self.located.values()), {})

    @property
    def text_config(self) -> Path | None:
        """The configuration that lies beside the text encoder's weights."""
        folder = self.located["text"].text_encoder if "text" in self.located else None
        return folder / "config.json" if folder is not None and (folder / "config.json").is_file() else None

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer, or its one file."""
        return self.located["text"].tokenizer if "text" in self.located else None


def opened(
    model: str | Path, *, only: Collection[str] = (), revision: str | None = None, variant: str | None = None
) -> Opened:
    """Finds the parts of a model, or of it `only` some of "dit", "vae" and "text". Reads headers only.

    Raises ModelNotFound when a part that was asked for is not there, or nothing at all, and CheckpointError for files
    that are damaged or pickles.
    """
    if unknown := set(only).difference(PARTS):
        raise InvalidRequest(f"a model has no part {min(unknown)!r}: its parts are {', '.join(PARTS)}")
    root = locate(model, revision=revision, parts=()).root
    located: dict[str, ModelFiles] = {}
    sources: dict[Part, Source] = {}
    missing: dict[str, str] = {}
    for part in (name for short, name in PARTS.items() if not only or short in only):
        try:
            files = _located(model, root, part, revision, variant)
            sources |= {source.part: source for source in _sources(part, files)}
            located[part] = files
        except ModelNotFound as error:
            if only:
                raise
            missing[part] = str(error)
    if not sources:
        raise ModelNotFound("; ".join(missing.values()))
    return Opened(root=root, sources=sources, located=located, missing=missing)


def _located(model: str | Path, root: Path, part: str, revision: str | None, variant: str | None) -> ModelFiles:
    """Where a part is. A text encoder counts if it is the model's own, with or without its tokenizer."""
    if part != "text":
        return locate(model, revision=revision, variant=variant, parts=[part])
    try:
        found = locate(model, revision=revision, variant=variant, parts=[part])
        if all(path.is_relative_to(root) for path in found.text_weights):
            return found
    except ModelNotFound:
        weights = (root,) if root.is_file() else loose_files(root).files("text")
        if any(content.part == "text" for content in contents(TensorFiles(weights))):
            return ModelFiles(layout="original", root=root, text_weights=weights)
    raise ModelNotFound(f"{root} holds no T5 encoder")


def _sources(part: str, files: ModelFiles) -> Iterator[Source]:
    """Raises ModelNotFound when the files hold other parts only."""
    paths = {"transformer": files.transformer, "vae": files.vae, "text": files.text_weights}[part]
    for path in paths:
        refuse_pickle(path)
    groups = of_vae(paths) if part == "vae" else [TensorFiles(paths)]
    found = [source for group in groups for source in _inside(part, group)]
    if not found:
        raise ModelNotFound(f"{', '.join(map(str, paths))} holds no {part}")
    yield from found


def _inside(part: str, files: TensorFiles) -> Iterator[Source]:
    for content in contents(files):
        if content.part in INSIDE[part]:
            yield Source(part=content.part, naming=content.naming, files=content.of(files))
