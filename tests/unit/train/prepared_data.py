"""Small prepared folders."""

from collections.abc import Sequence
from pathlib import Path

import torch

from daifuku.model.vae.encoder import Posterior
from daifuku.train.prepared import Bucket, Manifest, Sample, write_manifest, write_shard


def write_prepared(
    folder: Path,
    buckets: Sequence[tuple[Bucket, int]],
    *,
    features: int = 128,
    num_captions: int = 2,
    seed: int = 0,
    broken: tuple[int, float] | None = None,
    model: dict[str, str] | None = None,
) -> Path:
    """So many samples of each latent size, with random Gaussians and features; ids tell bucket and number.

    `broken`: of the sample with this number one value is another.
    """
    generator = torch.Generator().manual_seed(seed)
    shards = []
    for number, (bucket, count) in enumerate(buckets):
        samples = [
            Sample(
                id=f"{'x'.join(map(str, bucket))}-{row}",
                source=f"{row}.mp4",
                start_s=0.0,
                num_frames=6 * (bucket[0] - 1) + 1,
                sha256="0" * 64,
                captions=tuple(f"caption {caption}" for caption in range(num_captions)),
                num_tokens=tuple(3 + (row + caption) % 4 for caption in range(num_captions)),
            )
            for row in range(count)
        ]
        mean = torch.randn(count, 12, *bucket, generator=generator)
        logvar = torch.randn(count, 12, *bucket, generator=generator) - 4
        text = torch.randn(sum(sum(sample.num_tokens) for sample in samples), features, generator=generator)
        if broken is not None:
            mean[broken[0], 3, 0, 1, 1] = broken[1]
        posteriors = [Posterior(mean=m, logvar=v) for m, v in zip(mean.split(1), logvar.split(1), strict=True)]
        shards.append(write_shard(folder, f"shards/{number:06}.safetensors", samples, posteriors, text, {}))
    write_manifest(folder, Manifest(fps=20, model=model or {}, shards=tuple(shards)))
    return folder
