"""Prepared folders as batches: which samples a step sees, and their tensors. All a function of (seed, step)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from daifuku.errors import InvalidRequest, TrainingError

FORMAT = 1

Bucket = tuple[int, int, int]
"""Latent frames, rows and columns."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Where one sample is, and what stands beside it in its shard."""

    id: str
    shard: Path
    row: int
    bucket: Bucket
    captions: tuple[slice, ...]
    """The rows of each caption in the shard's text features."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Posteriors:
    """What was prepared of some samples of one bucket: the VAE's Gaussians, not whitened, and one caption of each."""

    mean: Float[Tensor, "b c t h w"]
    logvar: Float[Tensor, "b c t h w"]
    text: tuple[Float[Tensor, "_tokens features"], ...]


@dataclass(frozen=True, kw_only=True)
class PreparedFolder:
    """A folder that `daifuku prepare` wrote."""

    path: Path
    samples: tuple[Sample, ...]
    fingerprint: str
    """Of its manifest, which has the hashes of everything in it."""
    model: Mapping[str, str]
    """Hashes of the networks that encoded it, as far as they are known."""

    @property
    def features(self) -> int:
        """Width of the text features. Reads a header."""
        with safe_open(self.samples[0].shard, "pt") as shard:
            return shard.get_slice("text").get_shape()[1]


def open_prepared(folder: Path, *, check: bool = True) -> PreparedFolder:
    """Reads the manifest, and with `check` compares every shard with its hash.

    Raises InvalidRequest for a folder that holds no prepared data, TrainingError for a shard that is damaged.
    """
    path = folder / "manifest.json"
    try:
        text = path.read_bytes()
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise InvalidRequest(
                f"{path} is of format {content['format']}, and {FORMAT} is read here: prepare it again"
            )
        samples = [sample for shard in content["shards"] for sample in _samples(folder, shard, check)]
    except OSError as error:
        raise InvalidRequest(
            f"{folder} holds no prepared data ({error.strerror}: {error.filename}). Make it with `daifuku prepare`."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({error!r}): prepare it again") from error
    if not samples:
        raise InvalidRequest(f"{folder} holds no sample: every video was skipped; its manifest says why")
    fingerprint = hashlib.sha256(text).hexdigest()[:16]
    return PreparedFolder(path=folder, samples=tuple(samples), fingerprint=fingerprint, model=content.get("model", {}))


def _samples(folder: Path, shard: Mapping[str, Any], check: bool) -> list[Sample]:
    path = folder / shard["file"]
    with open(path, "rb") as file:
        if check and hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
            raise TrainingError(f"{path} is not what was prepared: copy or prepare it again")
    frames, rows, cols = shard["bucket"]
    found, start = [], 0
    for row, sample in enumerate(shard["samples"]):
        ends = list(accumulate(sample["num_tokens"], initial=start))
        captions = tuple(slice(*pair) for pair in pairwise(ends))
        found.append(Sample(id=sample["id"], shard=path, row=row, bucket=(frames, rows, cols), captions=captions))
        start = ends[-1]
    return found


class Batches:
    """Every micro-step's samples. An epoch sees each sample as often as its folder's weight says, in a new order.

    Samples of one bucket come together; the last batch of a bucket may be smaller. A weight with a fraction lets each
    epoch choose anew which samples come once more.
    """

    def __init__(
        self, folders: Sequence[tuple[PreparedFolder, float]], *, size: int, sizes: Mapping[str, int], seed: int
    ) -> None:
        """`sizes`: of the batches of single buckets, by names such as 7x60x106."""
        self._size, self._sizes, self._seed = size, sizes, seed
        self._pools: dict[Bucket, list[tuple[list[Sample], float]]] = {}
        for folder, weight in folders:
            for bucket in dict.fromkeys(sample.bucket for sample in folder.samples):
                inside = [sample for sample in folder.samples if sample.bucket == bucket]
                self._pools.setdefault(bucket, []).append((inside, weight))
        self._epoch = lru_cache(maxsize=2)(self._plan)

    @cached_property
    def per_epoch(self) -> int:
        """Batches of an epoch: the same number in each."""
        return sum(-(-self._count(bucket) // self._size_of(bucket)) for bucket in self._pools)

    def __getitem__(self, micro: int) -> Sequence[Sample]:
        epoch, place = divmod(micro, self.per_epoch)
        return self._epoch(epoch)[place]

    def ids(self, micro: int) -> list[str]:
        """Of the samples of a micro-step."""
        return [sample.id for sample in self[micro]]

    def _count(self, bucket: Bucket) -> int:
        return sum(_often(samples, weight) for samples, weight in self._pools[bucket])

    def _size_of(self, bucket: Bucket) -> int:
        return self._sizes.get("x".join(map(str, bucket)), self._size)

    def _plan(self, epoch: int) -> list[list[Sample]]:
        rng = np.random.default_rng([self._seed, 1, epoch])
        batches = []
        for bucket, pools in self._pools.items():
            drawn: list[Sample] = []
            for samples, weight in pools:
                whole, rest = divmod(_often(samples, weight), len(samples))
                drawn += samples * whole + [samples[i] for i in rng.permutation(len(samples))[:rest]]
            order, size = rng.permutation(len(drawn)), self._size_of(bucket)
            batches += [[drawn[i] for i in order[start : start + size]] for start in range(0, len(drawn), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def _often(samples: Sequence[Sample], weight: float) -> int:
    """How many of them an epoch sees; every folder has a say."""
    return max(1, round(len(samples) * weight))


def read_samples(samples: Sequence[Sample], captions: Sequence[int]) -> Posteriors:
    """What was prepared of samples of one bucket, each with the caption of that number.

    Raises TrainingError where a shard has gone or is not what its manifest says.
    """
    means, logvars, text = [], [], []
    for sample, caption in zip(samples, captions, strict=True):
        try:
            with safe_open(sample.shard, "pt") as shard:
                means.append(shard.get_slice("mean")[sample.row])
                logvars.append(shard.get_slice("logvar")[sample.row])
                text.append(shard.get_slice("text")[sample.captions[caption]].float())
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{sample.shard}, with the sample {sample.id}, cannot be read: {error}") from error
    return Posteriors(mean=torch.stack(means).float(), logvar=torch.stack(logvars).float(), text=tuple(text))
