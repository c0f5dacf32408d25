"""Latents of many clips, encoded once and kept on disk, so that the DiT trains without rendering or encoding."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from daifuku.config import LatentStats
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.train.dit import Captioned
from daifuku.train.loop import generator_for
from daifuku.train.tiny_clips import CHUNK
from daifuku.train.vae import to_video
from daifuku.world import Clip

SHARD = 512
"""Clips per file."""


@torch.no_grad()
def encode_clips(
    vae: AsymmVAE,
    chunks: Callable[[int], list[tuple[Clip, list[str]]]],
    folder: Path,
    num_clips: int,
    *,
    bfloat16: bool,
    at_once: int,
) -> Iterator[int]:
    """Writes the posterior means of clips 0 to `num_clips`, with their captions; yields how many are there.

    `chunks(number)` gives the `CHUNK` clips of a chunk with several captions each, of which `at_once` are encoded
    together. Shards that are there already are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(vae.parameters()).device
    for start in range(0, num_clips, SHARD):
        path, stop = folder / f"{start:06d}.safetensors", min(start + SHARD, num_clips)
        if not path.exists():
            means, captions = [], []
            for offset in range(start, stop, CHUNK):
                chunk = chunks(offset // CHUNK)[: stop - offset]
                captions += [sentences for _, sentences in chunk]
                for first in range(0, len(chunk), at_once):
                    frames = np.stack([clip.frames for clip, _ in chunk[first : first + at_once]])
                    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                        means.append(vae.encode(to_video(frames, device)).mean.to("cpu", torch.float16))
            temporary = path.with_suffix(".partial")
            save_file({"mean": torch.cat(means).contiguous()}, temporary, metadata={"captions": json.dumps(captions)})
            temporary.replace(path)
        yield stop


def read_clips(folder: Path) -> tuple[Float[Tensor, "n c t h w"], list[list[str]]]:
    """All latents of a folder, float16 and not whitened, and the captions of each."""
    means, captions = [], []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            means.append(shard.get_tensor("mean"))
            captions += json.loads(shard.metadata()["captions"])
    return torch.cat(means), captions


def channel_stats(latents: Float[Tensor, "n c t h w"]) -> LatentStats:
    """Mean and standard deviation per channel, over everything."""
    flat = latents.transpose(0, 1).flatten(1).double()
    return LatentStats(mean=tuple(flat.mean(dim=1).tolist()), std=tuple(flat.std(dim=1).tolist()))


class LatentSet:
    """Cached latents on the device, whitened and shuffled anew each epoch; a step's batch depends on the step alone."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerFast, stats: LatentStats, num_tokens: int, device: str
    ) -> None:
        latents, captions = read_clips(folder)
        mean, std = torch.tensor([stats.mean, stats.std])[:, :, None, None, None]
        self.latents = ((latents.float() - mean) / std).half().to(device)
        flat = [caption for sentences in captions for caption in sentences]
        tokens = tokenizer(flat, padding="max_length", truncation=True, max_length=num_tokens, return_tensors="pt")
        self.ids = tokens["input_ids"].reshape(len(captions), -1, num_tokens).to(device)
        self.mask = tokens["attention_mask"].bool().reshape(self.ids.shape).to(device)
        self.num_tokens = num_tokens
        self.device = device

    def batch(self, step: int, size: int, seed: int) -> Captioned:
        """The samples of a step, each with one of its captions."""
        per_epoch = len(self.latents) // size
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(self.latents), generator=generator_for(seed + 1, epoch))
        chosen = order[place * size : (place + 1) * size]
        caption = torch.randint(self.ids.shape[1], (size,), generator=generator_for(seed + 2, step))
        return self._pick(chosen, caption)

    def first(self, count: int) -> Captioned:
        """The first clips with their first captions, to measure on."""
        return self._pick(torch.arange(count), torch.zeros(count, dtype=torch.long))

    def _pick(self, chosen: Tensor, caption: Tensor) -> Captioned:
        chosen, caption = chosen.to(self.device), caption.to(self.device)
        return Captioned(
            latents=self.latents[chosen].float(), ids=self.ids[chosen, caption], mask=self.mask[chosen, caption]
        )
