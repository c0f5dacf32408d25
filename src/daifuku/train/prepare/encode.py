"""Clips to latents and captions to features, a shard at a time: two workers, each with one network.

Text comes first and waits in a file of its own, so that only one network is in memory at a time. A clip is encoded
alone and while it is decoded, latent frame by latent frame: whole clips, or several at once, were measured to be no
quicker, and memory would then decide the last bits.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from daifuku.config import RuntimeConfig
from daifuku.errors import CheckpointError, MediaError, ModelNotFound, NonFiniteLatent, NotEnoughMemory, TrainingError
from daifuku.media.decode import Limits, Picture
from daifuku.model.vae.encoder import Posterior
from daifuku.runtime.build import Parts, load_parts
from daifuku.runtime.machine import free_caches, is_out_of_memory
from daifuku.text import PromptCut
from daifuku.train.prepare.plan import PlannedClip, PlannedShard
from daifuku.train.prepare.scan import content_sha256, source_pictures
from daifuku.train.prepared import Sample, Shard, check_shard, shard_from, write_shard
from daifuku.train.vae import to_video
from daifuku.weights.files import Entry, metadata, write_json, write_safetensors

SHARDS, WORK = "shards", "work"
"""Folders of a preparation: what it gives, and what it needs to go on after a stop."""

_KEY = "daifuku"

_TIE_S = 1e-6
"""Two frames whose distances differ by less are as near: rounding decides nothing."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What the workers of a preparation have in common."""

    videos: Path
    out: Path
    fps: int
    limits: Limits
    model: str
    revision: str | None
    variant: str | None
    device: str
    dtype: str
    text_dtype: str
    text_on: str
    about: Mapping[str, Any]
    """The entry `model` of the manifest."""
    num_threads: int
    """Threads of torch, which decide last bits."""

    def file(self, shard: PlannedShard) -> str:
        """Path of a shard below `out`."""
        return f"{SHARDS}/{shard.number:06d}.safetensors"

    def text_file(self, shard: PlannedShard) -> Path:
        """Where the features of a shard's captions wait for its latents."""
        return self.out / WORK / f"{shard.number:06d}.text.safetensors"

    def label(self, shard: PlannedShard) -> Path:
        """Where the entry of a shard waits for the manifest."""
        return self.out / WORK / f"{shard.number:06d}.json"

    def digest(self, shard: PlannedShard) -> str:
        """Of all that decides what is in a shard."""
        content = {"model": dict(self.about), "fps": self.fps, "clips": [asdict(clip) for clip in shard.clips]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def parts(self) -> Parts:
        """The model that encodes, in the memory that the worker before left."""
        free_caches()
        torch.set_num_threads(self.num_threads)
        return load_parts(self.model, device=self.device, revision=self.revision, variant=self.variant)


def finished(encoding: Encoding, shard: PlannedShard) -> Shard | None:
    """A shard as an earlier run left it: whole, of these very clips, and with the bits that were written."""
    try:
        label = json.loads(encoding.label(shard).read_text("utf-8"))
        if label["digest"] != encoding.digest(shard):
            return None
        found = shard_from(label["shard"])
        check_shard(encoding.out, found)
    except (OSError, ValueError, KeyError, TypeError, TrainingError):
        return None
    return found


def has_text(encoding: Encoding, shard: PlannedShard) -> bool:
    """Whether the features of a shard's captions wait for its latents."""
    try:
        return metadata(encoding.text_file(shard)).get(_KEY) == encoding.digest(shard)
    except (CheckpointError, ModelNotFound):
        return False


class TextWorker:
    """Encodes the captions of shards."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        parts = encoding.parts()
        run = RuntimeConfig(text_dtype=encoding.text_dtype, text_on=encoding.text_on)
        device = torch.device("cpu") if encoding.text_on == "host" else parts.device
        with _memory_errors("--text-dtype bfloat16, or --text-on host"):
            self._text = parts.text(run, device)

    def __call__(self, shard: PlannedShard) -> None:
        """Writes the features of a shard's captions."""
        captions = [caption for clip in shard.clips for caption in clip.source.captions]
        with _memory_errors("--text-on host"):
            known = {caption: self._features(caption) for caption in dict.fromkeys(captions)}
        rows = [known[caption] for caption in captions]
        lengths = json.dumps([len(row) for row in rows])
        text = torch.cat(rows)
        entry = Entry(name="text", shape=tuple(text.shape), dtype=torch.float32, read=lambda: text)
        about = {_KEY: self._encoding.digest(shard), "num_tokens": lengths}
        write_safetensors(self._encoding.text_file(shard), [entry], about)

    def _features(self, caption: str) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptCut)
            found = self._text.encode([caption])
        return found.features[found.mask].cpu()


class VideoWorker:
    """Encodes the clips of shards, and completes them."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        parts = encoding.parts()
        with _memory_errors("--dtype bfloat16"):
            self._vae = parts.vae(RuntimeConfig(dtype=encoding.dtype), parts.device, "encoder")
        self._device = parts.device

    def __call__(self, shard: PlannedShard) -> Shard:
        """Writes a shard and its entry for the manifest. Raises TrainingError where a source is another than before."""
        encoding, text_file = self._encoding, self._encoding.text_file(shard)
        posteriors: list[Posterior] = []
        for source, same in groupby(shard.clips, key=lambda clip: clip.source):
            try:
                posteriors += self._posteriors(list(same))
            except MediaError as error:
                raise TrainingError(f"{source.name} could be read before, and now {error}. Try again.") from error
        text, lengths = _read(text_file)
        samples = _samples(shard, lengths)
        about = {_KEY: encoding.digest(shard)}
        written = write_shard(encoding.out, encoding.file(shard), samples, posteriors, text, about)
        write_json(encoding.label(shard), {"digest": encoding.digest(shard), "shard": asdict(written)})
        text_file.unlink(missing_ok=True)
        return written

    def _posteriors(self, clips: Sequence[PlannedClip]) -> Iterator[Posterior]:
        """Of clips of one source, which is read once."""
        source, encoding = clips[0].source, self._encoding
        if content_sha256(encoding.videos, source) != clips[0].sha256:
            raise TrainingError(f"{source.name} has changed since it was looked at. Run the same command again.")
        times = [clip.start_s + index / encoding.fps for clip in clips for index in range(clip.num_frames)]
        shown = nearest(source_pictures(encoding.videos, source, encoding.fps, encoding.limits), times)
        for clip in clips:
            with torch.inference_mode(), _memory_errors("fewer --frames, a smaller --size, or --dtype bfloat16"):
                pieces = (
                    to_video(next(shown).covering(clip.size)[None, None], self._device) for _ in range(clip.num_frames)
                )
                parts = [_checked(part, clip, encoding.dtype) for part in self._vae.encode_chunks(pieces)]
            yield Posterior(
                mean=torch.cat([part.mean for part in parts], dim=2),
                logvar=torch.cat([part.logvar for part in parts], dim=2),
            )


def nearest(pictures: Iterator[Picture], times: Sequence[float]) -> Iterator[Picture]:
    """For each of some rising times the picture that is nearest; the earlier one of two that are as near."""
    now = next(pictures)
    after = next(pictures, None)
    for time_s in times:
        while after is not None and abs(after.time_s - time_s) + _TIE_S < abs(now.time_s - time_s):
            now, after = after, next(pictures, None)
        yield now


def _checked(part: Posterior, clip: PlannedClip, dtype: str) -> Posterior:
    part = Posterior(mean=part.mean.float().cpu(), logvar=part.logvar.float().cpu())
    if not (part.mean.isfinite().all() and part.logvar.isfinite().all()):
        raise NonFiniteLatent(f"{clip.id} encodes to NaN or infinity in {dtype}. Try --dtype float32.")
    return part


def _samples(shard: PlannedShard, lengths: Sequence[int]) -> list[Sample]:
    waiting = iter(lengths)
    return [
        Sample(
            id=clip.id,
            source=clip.source.name,
            start_s=clip.start_s,
            num_frames=clip.num_frames,
            sha256=clip.sha256,
            captions=clip.source.captions,
            num_tokens=tuple(next(waiting) for _ in clip.source.captions),
        )
        for clip in shard.clips
    ]


def _read(path: Path) -> tuple[Tensor, list[int]]:
    return load_file(path)["text"], json.loads(metadata(path)["num_tokens"])


@contextmanager
def _memory_errors(advice: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemory(f"the memory does not suffice. Try {advice}.") from error
