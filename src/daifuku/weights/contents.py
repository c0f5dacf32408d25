"""What weight files hold, told by their tensors alone: never by their names."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from daifuku.weights.names import PART_NAMES, Naming, Part, find_parts, of_part, under
from daifuku.weights.tensors import TensorFiles

SHARE_SHOWN = 0.02
"""Encodings of fewer of the numbers than this are not worth a word."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """One part of a model in some files."""

    part: Part
    naming: Naming
    prefix: str
    """What the names of its tensors begin with."""
    names: Mapping[str, str]
    """The names of its tensors without that, and as they are."""
    num_tensors: int
    counts: Mapping[str, int]
    """How many of its numbers are encoded as what, most first."""

    @property
    def encodings(self) -> list[str]:
        """What nearly all of its numbers are encoded as."""
        return [words for words, count in self.counts.items() if count >= SHARE_SHOWN * sum(self.counts.values())]

    def of(self, files: TensorFiles) -> TensorFiles:
        """Its tensors alone, by their names without the prefix."""
        where = f"{files.where} (under {self.prefix})" if self.prefix else files.where
        return files.renamed(self.names, where)

    def __str__(self) -> str:
        place = f" under {self.prefix}" if self.prefix else ""
        return f"{PART_NAMES[self.part]}, {self.naming} names{place}, {' and '.join(self.encodings)}"


def contents(files: TensorFiles) -> tuple[Content, ...]:
    """The parts of a model that files hold; empty when they hold none."""
    found = find_parts(files.shapes)
    parts: list[Content] = []
    for one in found:
        names = under(files.shapes, one, found)
        counts: Counter[str] = Counter()
        its_own = of_part(names, one.part, one.naming)
        for name in its_own:
            tensor = files.tensors[names[name]]
            counts[tensor.words] += prod(tensor.shape)
        content = Content(
            part=one.part,
            naming=one.naming,
            prefix=one.prefix,
            names=names,
            num_tensors=len(its_own),
            counts=dict(counts.most_common()),
        )
        parts.append(content)
    return tuple(parts)


def of_vae(paths: Sequence[Path]) -> list[TensorFiles]:
    """A VAE's files as they go together: its halves share names in the original layout, where each has a file."""
    each = [TensorFiles([path]) for path in paths]
    if any(content.naming == "original" for files in each for content in contents(files)):
        return each
    return [TensorFiles(paths)]


def named(found: Iterable[Content]) -> str:
    """ "transformer, original names, bfloat16 and VAE decoder, original names, bfloat16" """
    return " and the ".join(map(str, found))
