"""A short fingerprint of a model's weights, for the metadata of the videos it makes."""

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from daifuku.weights.locate import ModelFiles

_BLOCK_BYTES = 4096
_HEAD_BYTES = 2**20
_NUM_SAMPLES = 1024


def model_identity(files: ModelFiles) -> str:
    """16 hex digits that tell models apart, the same wherever the files lie.

    A file of at most 5 MiB counts whole; of a larger one its size, its first MiB (which holds the header) and 1024
    evenly spread blocks of 4 KiB, the last at its end: training or merging moves every tensor, so any of them tells.
    A single flipped bit in a large file may go unnoticed. Full-size weights take well under a second.
    """
    digest = hashlib.sha256(repr((files.layout, files.stats, files.zero_empty)).encode())
    # A file may hold several parts.
    paths = dict.fromkeys((*files.transformer, *files.vae, *files.text_weights))
    for part in chain.from_iterable(map(_sampled, paths)):
        digest.update(part)
    return digest.hexdigest()[:16]


def part_identities(files: ModelFiles) -> dict[str, str]:
    """SHA-256 of the VAE's and of the text encoder's files, of the same bytes: what latents and features depend on."""
    found: dict[str, str] = {}
    for name, paths in (("vae_sha256", files.vae), ("text_encoder_sha256", files.text_weights)):
        digest = hashlib.sha256()
        for part in chain.from_iterable(map(_sampled, paths)):
            digest.update(part)
        found[name] = digest.hexdigest()
    return found


def _sampled(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield size.to_bytes(8, "little")
    with open(path, "rb") as file:
        if size <= _HEAD_BYTES + _NUM_SAMPLES * _BLOCK_BYTES:
            yield file.read()
            return
        yield file.read(_HEAD_BYTES)
        last = size - _BLOCK_BYTES
        for i in range(1, _NUM_SAMPLES + 1):
            file.seek(_HEAD_BYTES + (last - _HEAD_BYTES) * i // _NUM_SAMPLES)
            yield file.read(_BLOCK_BYTES)
