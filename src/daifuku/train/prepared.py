"""Prepared training data on disk: shards of latents and text features, and the manifest that lists them.

`manifest.json` is written last: where it is, everything it lists is complete. A shard holds samples of one bucket:

  mean, logvar  [n, 12, t, h, w]     what the VAE's encoder says, not whitened
  text          [tokens, features]   T5's features of every caption, sample by sample, caption by caption, no padding

All float32. Rounded to bfloat16, a latent would be off by up to 0.4 %, as much as the posterior's own spread, for half
of a size that is small beside the videos; and text in bfloat16 would not be what the model is given when it samples.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from daifuku.errors import CheckpointError, InvalidRequest, TrainingError
from daifuku.model.vae.encoder import Posterior
from daifuku.weights.files import Entry, metadata, places, write_json, write_safetensors

Bucket = tuple[int, int, int]
"""Latent frames, rows and columns."""

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**31


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A clip and its captions."""

    id: str
    source: str
    """Path of its file below the folder that was prepared."""
    start_s: float
    num_frames: int
    sha256: str
    """Of the source file."""
    captions: tuple[str, ...]
    num_tokens: tuple[int, ...]
    """Of each caption, as the model reads it."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file, and what is in it."""

    file: str
    """Path below the folder of the preparation."""
    sha256: str
    bucket: Bucket
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that was prepared, and what was left out."""

    fps: int
    model: Mapping[str, Any]
    """What encoded it: at least vae_sha256 and text_encoder_sha256, as `weights/identity.py` computes them."""
    shards: tuple[Shard, ...]
    skipped: tuple[Mapping[str, str], ...] = ()
    """Sources that were not used, each with its reason."""

    @property
    def num_samples(self) -> int:
        return sum(len(shard.samples) for shard in self.shards)


class ShardReader:
    """One shard, of which single samples are read. Raises TrainingError where the file is not what its shard says."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._path, self._shard = folder / shard.file, shard
        lengths = [count for sample in shard.samples for count in sample.num_tokens]
        starts = [0, *accumulate(lengths)]
        # Where the features of each caption of each sample lie.
        first = [0, *accumulate(len(sample.captions) for sample in shard.samples)]
        self._spans = [
            [(starts[i], starts[i + 1]) for i in range(first[index], first[index + 1])]
            for index in range(len(shard.samples))
        ]
        try:
            shapes = {name: place.shape for name, place in places(self._path).items()}
            self._file = safe_open(self._path, "pt")
        except (CheckpointError, SafetensorError, OSError) as error:
            raise _damaged(self._path, error) from error
        latent = (len(shard.samples), shapes.get("mean", (0, 0))[1], *shard.bucket)
        text = shapes.get("text", ())
        if shapes.get("mean") != latent or shapes.get("logvar") != latent or text[:1] != (starts[-1],):
            raise _damaged(self._path, f"its tensors are {shapes}")

    def posterior(self, index: int) -> Posterior:
        """What the VAE sees in a sample, [1, 12, t, h, w], not whitened."""
        mean, logvar = (self._file.get_slice(name)[index : index + 1] for name in ("mean", "logvar"))
        return Posterior(mean=mean, logvar=logvar)

    def text(self, index: int, caption: int) -> Float[Tensor, "tokens features"]:
        """Features of one caption of a sample. A caption that is empty has no tokens."""
        start, stop = self._spans[index][caption]
        return self._file.get_slice("text")[start:stop]


def read_manifest(folder: Path) -> Manifest:
    """What was prepared there. Raises InvalidRequest where there is none, TrainingError where it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InvalidRequest(f"there is no {path}. `daifuku prepare VIDEOS {folder}` writes one when all is done.")
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, and {FORMAT} is what is read here")
        return Manifest(
            fps=content["fps"],
            model=content["model"],
            shards=tuple(shard_from(each) for each in content["shards"]),
            skipped=tuple(content["skipped"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise TrainingError(f"{path} is damaged: {what}. Prepare the data again: what is finished is kept.") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Whole or not at all. Raises UnwritableOutput."""
    write_json(folder / MANIFEST, {"format": FORMAT, **asdict(manifest)})


def write_shard(
    folder: Path,
    file: str,
    samples: Sequence[Sample],
    posteriors: Sequence[Posterior],
    text: Float[Tensor, "tokens features"],
    about: Mapping[str, str],
) -> Shard:
    """Writes the samples of one bucket, whole or not at all. `about` is what the file says about itself."""
    tensors = {
        "mean": torch.cat([each.mean for each in posteriors]).float().cpu(),
        "logvar": torch.cat([each.logvar for each in posteriors]).float().cpu(),
        "text": text.float().cpu(),
    }
    entries = [
        Entry(name=name, shape=tuple(tensor.shape), dtype=torch.float32, read=lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    ]
    write_safetensors(folder / file, entries, about)
    time, height, width = tensors["mean"].shape[2:]
    return Shard(file=file, sha256=file_sha256(folder / file), bucket=(time, height, width), samples=tuple(samples))


def check_shard(folder: Path, shard: Shard) -> None:
    """Reads all of a file. Raises TrainingError where a single bit is not as it was written."""
    path = folder / shard.file
    if not path.is_file():
        raise TrainingError(f"{path} is missing. Prepare the data again: what is finished is kept.")
    if (found := file_sha256(path)) != shard.sha256:
        raise _damaged(path, f"its SHA-256 is {found}, not {shard.sha256}")


def shard_about(path: Path) -> Mapping[str, str]:
    """What a shard says about itself. Raises CheckpointError and ModelNotFound."""
    return metadata(path)


def shard_from(content: Mapping[str, Any]) -> Shard:
    """A shard as its JSON says. Raises KeyError, TypeError or ValueError where that makes no sense."""
    samples = tuple(
        Sample(
            id=each["id"],
            source=each["source"],
            start_s=each["start_s"],
            num_frames=each["num_frames"],
            sha256=each["sha256"],
            captions=tuple(each["captions"]),
            num_tokens=tuple(each["num_tokens"]),
        )
        for each in content["samples"]
    )
    if any(len(sample.captions) != len(sample.num_tokens) for sample in samples):
        raise ValueError("a sample has more captions than numbers of tokens, or fewer")
    time, height, width = content["bucket"]
    file = content["file"]
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise ValueError(f"{file!r} leads out of the folder")
    return Shard(file=file, sha256=content["sha256"], bucket=(time, height, width), samples=samples)


def file_sha256(path: Path) -> str:
    """Of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, why: object) -> TrainingError:
    return TrainingError(f"{path} is damaged: {why}. Prepare the data again: what is finished is kept.")
