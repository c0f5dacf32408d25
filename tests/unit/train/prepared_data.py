"""Small prepared folders, written as the format says."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

Bucket = tuple[int, int, int]


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
        tokens = [[3 + (row + caption) % 4 for caption in range(num_captions)] for row in range(count)]
        path = folder / "shards" / f"{number:06}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "mean": torch.randn(count, 12, *bucket, generator=generator),
            "logvar": torch.randn(count, 12, *bucket, generator=generator) - 4,
            "text": torch.randn(sum(map(sum, tokens)), features, generator=generator),
        }
        if broken is not None:
            tensors["mean"][broken[0], 3, 0, 1, 1] = broken[1]
        save_file(tensors, path)
        samples = [
            {
                "id": f"{'x'.join(map(str, bucket))}-{row}",
                "source": f"{row}.mp4",
                "start_s": 0.0,
                "num_frames": 6 * (bucket[0] - 1) + 1,
                "sha256": "0" * 64,
                "captions": [f"caption {caption}" for caption in range(num_captions)],
                "num_tokens": tokens[row],
            }
            for row in range(count)
        ]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append({"file": f"shards/{path.name}", "sha256": digest, "bucket": list(bucket), "samples": samples})
    content = {"format": 1, "fps": 20, "model": model or {}, "shards": shards, "skipped": []}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder
