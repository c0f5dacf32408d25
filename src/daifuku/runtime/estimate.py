"""What each stage of a run needs in memory and time, given how it runs."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from daifuku.config import QUANTISERS, STORED, TIME_FACTOR, DecoderConfig, DiTConfig, RuntimeConfig
from daifuku.model.attention import Lengths, local
from daifuku.model.block import AsymmBlock
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.decoder import Decoder
from daifuku.registry import load
from daifuku.request import NO_STEP_CACHE, LatentShape, ResolvedRequest
from daifuku.runtime.footprint import Footprint, footprint
from daifuku.runtime.machine import Machine, multiply_rate
from daifuku.runtime.tiling import tile_spans
from daifuku.weights.load import as_dtype

STREAMED_BLOCKS = 2
"""Blocks on the device at a time when they stream: one computes while the next arrives."""

COPY_RATE = 20e9
"""Bytes per second from pinned host memory to a GPU: what PCIe 4 reaches."""

SAMPLING_SHARE, DECODING_SHARE = 0.5, 0.4
"""Shares of the speed of a large matrix product that the networks reach (measured on CPUs, see docs/performance.md)."""


SHORT_FLOPS = {"cpu": 1e9, "cuda": 3e11, "mps": 1e10}
"""What a block may compute for one caption where both may go through it together: more keeps a device busy. Fixed: by a
rate measured while other programs run, the same clip would get other bits."""

HEAP_BLOCK = 32 * 2**20
"""What glibc's heap is made of are blocks of up to this size: larger ones come from the system and go back to it."""

HEAP_SLACK = 4 * HEAP_BLOCK
"""The most that the heap loses between its blocks; before that one and a half times what is in use (measured)."""

GENEROUS = 16
"""More tensors of the largest size than any network holds at once."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What a model's files tell without being read."""

    dit: DiTConfig
    decoder: DecoderConfig
    text_parameters: int
    text_tokens: int
    """The most tokens that a prompt may have."""
    dit_bits: float | None = None
    """Bits of a weight of the transformer in its file, where they can stay as they are stored."""
    text_bits: float | None = None
    """The same of the text encoder."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a request asks of the networks."""

    shape: LatentShape
    num_captions: int
    """1 without a negative prompt, else 2."""
    num_sigmas: int
    """Noise levels at which the transformer is asked."""
    knows_text: bool = False
    """Whether all captions are remembered, so that no text encoder is read."""
    caches_steps: bool = False
    """Whether a step cache remembers video tokens, twice for each caption."""

    @classmethod
    def of(cls, request: ResolvedRequest, solver_order: int, *, knows_text: bool = False) -> "Workload":
        """A solver asks once per step and order."""
        return cls(
            shape=request.latent_shape,
            num_captions=len(request.captions),
            knows_text=knows_text,
            num_sigmas=request.num_inference_steps * solver_order,
            caches_steps=request.step_cache != NO_STEP_CACHE,
        )


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One stage's cost."""

    name: str
    weight_bytes: int
    """On the device, if the stage is alone there."""
    activation_bytes: int
    host_bytes: int
    """Weights that wait in the host's memory meanwhile."""
    seconds: float

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Estimates for one workload of one model on one machine."""

    sizes: ModelSizes
    work: Workload
    machine: Machine

    @property
    def upper_bound_bytes(self) -> int:
        """More than any way of streaming needs, without looking closely: small requests are not worth more."""
        sizes, shape = self.sizes, self.work.shape
        weights = sum(astuple(dit_parameters(sizes.dit))) + decoder_parameters(sizes.decoder) + sizes.text_parameters
        token = 2 * max(sizes.dit.video_mlp_width, 2 * sizes.dit.video_width)
        pixel = TIME_FACTOR * max(sizes.decoder.channels[0], 3 * shape.num_frames)
        values = 2 * shape.num_tokens * token + pixel * shape.pixel_height * shape.pixel_width
        return 4 * (weights + GENEROUS * values)

    def text(self, run: RuntimeConfig) -> StageEstimate:
        """Every caption alone, at its own length; so short that its activations hardly count."""
        if self.work.knows_text:
            return StageEstimate(name="text", weight_bytes=0, activation_bytes=0, host_bytes=0, seconds=0.0)
        dtype = as_dtype(_given(run.text_dtype))
        stored = int(self.sizes.text_parameters * _bytes_per_weight(run.quantise_text, dtype, self.sizes.text_bits))
        on_host = run.text_on == "host" and not self.machine.is_host
        width = self.sizes.dit.text_features
        activations = 8 * self.sizes.text_tokens * width * dtype.itemsize
        flops = 2 * self.sizes.text_parameters * self.sizes.text_tokens * self.work.num_captions
        device = torch.device("cpu") if on_host else self.machine.device
        return StageEstimate(
            name="text",
            weight_bytes=0 if on_host else stored,
            activation_bytes=0 if on_host else self._on_heap(activations),
            host_bytes=stored if on_host else self._waiting(run, stored),
            seconds=flops / (SAMPLING_SHARE * multiply_rate(device, dtype)),
        )

    def sampling(self, run: RuntimeConfig) -> StageEstimate:
        """One step of the transformer after the other."""
        dtype, work = as_dtype(_given(run.dtype)), self.work
        parameters = dit_parameters(self.sizes.dit)
        per_weight = _bytes_per_weight(run.quantise, dtype, self.sizes.dit_bits)
        blocks = parameters.blocks
        if run.tabulate:
            rows = parameters.modulation // self.sizes.dit.video_width
            table = rows * work.num_sigmas * work.num_captions * dtype.itemsize
        else:
            table, blocks = 0, blocks + parameters.modulation
        stored = int(blocks * per_weight) + parameters.around * dtype.itemsize
        placed = stored
        if run.residency == "stream":
            share = STREAMED_BLOCKS / self.sizes.dit.num_blocks
            placed = int(min(share, 1) * blocks * per_weight) + parameters.around * dtype.itemsize
        both = work.num_captions == 2 and run.batch_guidance is not False
        if both and run.batch_guidance is None:
            both = may_batch(self.sizes.dit, work.shape, self.machine.device)
        batch = 2 if both else 1
        forward = block_footprint(
            self.sizes.dit, work.shape, self.sizes.text_tokens, batch, dtype, run.chunk_tokens or 0
        )
        passes = work.num_sigmas * work.num_captions / batch
        compute = passes * self.sizes.dit.num_blocks * forward.flops
        seconds = compute / (SAMPLING_SHARE * multiply_rate(self.machine.device, dtype))
        if run.residency == "stream" and not self.machine.is_host:
            seconds = max(seconds, passes * stored / COPY_RATE)
        # A layer that is quantised turns its weight back while it computes; the largest lead into the MLP of video.
        turned_back = 2 * self.sizes.dit.video_width * self.sizes.dit.video_mlp_width * dtype.itemsize
        activations = forward.peak_bytes + (0 if run.quantise in (None, "none") else turned_back)
        remembered = 2 * work.num_captions * work.shape.num_tokens * self.sizes.dit.video_width * dtype.itemsize
        return StageEstimate(
            name="sampling",
            weight_bytes=placed + table,
            activation_bytes=self._on_heap(activations + (remembered if work.caches_steps else 0)),
            host_bytes=self._waiting(run, stored),
            seconds=seconds,
        )

    def decoding(self, run: RuntimeConfig) -> StageEstimate:
        """Latents to frames, and the frames of the finished clip."""
        dtype = as_dtype(_given(run.dtype))
        stored = decoder_parameters(self.sizes.decoder) * dtype.itemsize
        shape = self.work.shape
        tile = (run.tile or 0) if run.decoding == "tiled" else 0
        decode = decode_footprint(self.sizes.decoder, shape, dtype, run.decoding == "whole", tile)
        clip = 3 * shape.num_frames * shape.pixel_height * shape.pixel_width
        if 0 < tile < max(shape.height, shape.width):
            clip += torch.float32.itemsize * clip  # where the tiles are blended
        on_host = self.machine.is_host
        return StageEstimate(
            name="decoding",
            weight_bytes=stored,
            activation_bytes=self._on_heap(decode.peak_bytes) + (clip if on_host else 0),
            host_bytes=self._waiting(run, stored) + (0 if on_host else clip),
            seconds=decode.flops / (DECODING_SHARE * multiply_rate(self.machine.device, dtype)),
        )

    def _on_heap(self, num_bytes: int) -> int:
        """What it takes to hold so many bytes of tensors that come and go."""
        return num_bytes + (min(3 * num_bytes // 2, HEAP_SLACK) if self.machine.is_host else 0)

    def _waiting(self, run: RuntimeConfig, stored: int) -> int:
        """What a stage keeps in the host's memory: nothing where its weights stay on the device or in their file."""
        return 0 if run.residency == "resident" or self.machine.is_host else stored


@dataclass(frozen=True, kw_only=True)
class DiTParameters:
    """How many weights a transformer has, and where."""

    blocks: int
    modulation: int
    """Of all blocks and the final layer: what a table can stand for."""
    around: int


@cache
def dit_parameters(config: DiTConfig) -> DiTParameters:
    """Counted on a model without data."""
    with torch.device("meta"):
        dit = AsymmDiT(config)
    modulation = sum(p.numel() for name, p in dit.named_parameters() if "modulation" in name)
    blocks = sum(p.numel() for name, p in dit.blocks.named_parameters() if "modulation" not in name)
    return DiTParameters(blocks=blocks, modulation=modulation, around=_count(dit) - blocks - modulation)


@cache
def decoder_parameters(config: DecoderConfig) -> int:
    """Counted on a model without data."""
    with torch.device("meta"):
        return _count(Decoder(config))


@cache
def block_footprint(
    config: DiTConfig, shape: LatentShape, text_tokens: int, batch: int, dtype: torch.dtype, chunk: int
) -> Footprint:
    """Of one block of a forward pass, with what the whole pass keeps around it: latent, angles and both streams."""
    with torch.device("meta"):
        block = AsymmBlock(config, updates_text=True).to(dtype)
        block.attention.attend = local(fused)
        conditioning = torch.empty(batch, config.video_width, dtype=dtype)

    def run() -> object:
        with torch.device("meta"):
            latent = torch.empty(3, batch, *shape.as_tuple)
            turn = torch.empty(config.num_heads, shape.num_tokens, config.head_dim // 2, dtype=torch.complex64)
            video = torch.empty(batch, shape.num_tokens, config.video_width, dtype=dtype)
            text = torch.empty(batch, text_tokens, config.text_width, dtype=dtype)
            video, text = block(video, text, conditioning, turn, None)
        return latent, video, text

    found = footprint(run)
    tokens = shape.num_tokens + text_tokens
    attention = 4 * batch * tokens**2 * config.video_width
    return Footprint(peak_bytes=found.peak_bytes, flops=found.flops + attention)


def may_batch(config: DiTConfig, shape: LatentShape, device: torch.device) -> bool:
    """Whether a pass is so short that it is worth trying to send both captions through together."""
    # Roughly: a caption hardly counts.
    weights, tokens = dit_parameters(config).blocks / config.num_blocks, shape.num_tokens
    flops = 2 * weights * tokens + 4 * tokens**2 * config.video_width
    return flops < SHORT_FLOPS.get(device.type, 0)


@cache
def decode_footprint(
    config: DecoderConfig, shape: LatentShape, dtype: torch.dtype, whole: bool, tile: int
) -> Footprint:
    """Of a whole decode, or of one latent frame at a time, in tiles of `tile` cells if that is not 0.

    The frames that tiles are gathered in do not count.
    """
    with torch.device("meta"):
        decoder = Decoder(config).to(dtype)

    def latent(frames: int, height: int, width: int) -> Tensor:
        return torch.empty(1, shape.channels, frames, height, width, dtype=dtype, device="meta")

    if whole:
        return footprint(lambda: decoder(latent(shape.frames, shape.height, shape.width)))
    # The third latent frame costs what every later one costs, and one tile what every other costs.
    few = min(shape.frames, 3)
    spans = [tile_spans(length, tile or length) for length in (shape.height, shape.width)]
    height, width = (each[0].stop for each in spans)
    part = footprint(lambda: [None for _ in decoder.chunks(latent(few, height, width))])
    num_tiles = prod(len(each) for each in spans)
    flops = num_tiles * part.flops * shape.num_frames / ((few - 1) * TIME_FACTOR + 1)
    return Footprint(peak_bytes=part.peak_bytes, flops=int(flops))


def fused(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """In place of a fused attention kernel: the memory that it needs, and no matrix of scores."""
    return torch.empty_like(q)


def _bytes_per_weight(quantise: str | None, dtype: torch.dtype, stored_bits: float | None) -> float:
    if quantise == STORED and stored_bits is not None:
        return stored_bits / 8
    if quantise in (None, "none", STORED):
        return float(dtype.itemsize)
    from daifuku.runtime.quantiser import Quantiser

    return load(QUANTISERS, quantise, Quantiser).bits / 8


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _given(value: str | None) -> str:
    assert value is not None, "a plan settles every setting"
    return value


def total_seconds(stages: Sequence[StageEstimate]) -> float:
    """Of a whole run, reading weights not included."""
    return sum(stage.seconds for stage in stages)
