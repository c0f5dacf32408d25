"""Prepared folders as batches: which samples a step sees, and their tensors. All a function of (seed, step)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from daifuku.errors import InvalidRequest
from daifuku.train.prepared import MANIFEST, Bucket, ShardReader, check_shard, read_manifest


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One row of a shard that is open."""

    id: str
    shard: ShardReader
    row: int
    bucket: Bucket
    num_tokens: tuple[int, ...]
    """Of each caption."""


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
        """Width of the text features."""
        return self.samples[0].shard.text(0, 0).shape[1]


def open_prepared(folder: Path, *, check: bool = True) -> PreparedFolder:
    """Reads the manifest, and with `check` compares every shard with its hash.

    Raises InvalidRequest for a folder that holds no prepared data, TrainingError for data that is damaged.
    """
    manifest = read_manifest(folder)
    if not manifest.num_samples:
        raise InvalidRequest(f"{folder} holds no sample: every video was skipped; its manifest says why")
    samples: list[Sample] = []
    for shard in manifest.shards:
        if check:
            check_shard(folder, shard)
        opened = ShardReader(folder, shard)
        samples += [
            Sample(id=each.id, shard=opened, row=row, bucket=shard.bucket, num_tokens=each.num_tokens)
            for row, each in enumerate(shard.samples)
        ]
    fingerprint = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16]
    return PreparedFolder(path=folder, samples=tuple(samples), fingerprint=fingerprint, model=manifest.model)


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
    """What was prepared of samples of one bucket, each with the caption of that number."""
    posteriors = [sample.shard.posterior(sample.row) for sample in samples]
    chosen = zip(samples, captions, strict=True)
    return Posteriors(
        mean=torch.cat([each.mean for each in posteriors]),
        logvar=torch.cat([each.logvar for each in posteriors]),
        text=tuple(sample.shard.text(sample.row, caption) for sample, caption in chosen),
    )
