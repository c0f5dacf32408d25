"""The whole story on one page: a prompt is encoded, noise is denoised, latents are decoded."""

import platform
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from daifuku import registry
from daifuku.errors import InvalidRequest, NonFiniteLatent
from daifuku.events import Done, Event, Frames, Step, TextReady
from daifuku.media.write import VideoWriter
from daifuku.model.vae.decoder import Decoder
from daifuku.request import SOLVERS, GenerateRequest, Number, ResolvedRequest
from daifuku.runtime.build import ModelInfo, Parts, load_parts
from daifuku.sample.guidance import Caption, guided, scale_at
from daifuku.sample.noise import seeded_noise
from daifuku.sample.schedule import linear_quadratic
from daifuku.sample.solver import Solver, Velocity
from daifuku.text import TextEncoder
from daifuku.version import VERSION

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """A finished clip, and all that it takes to make it again."""

    frames: UInt8[np.ndarray, "frames height width 3"]
    latents: Float[Tensor, "c t h w"]
    """Whitened, on the CPU."""
    request: ResolvedRequest
    model: ModelInfo
    timings: Mapping[str, float]
    """Seconds of each stage, reading weights not included."""
    noise_from_seed: bool
    """False when the noise was given: the request alone then does not make the same clip."""

    @property
    def fps(self) -> int:
        return self.request.fps

    def save(self, path: str | Path) -> Path:
        """Writes .mp4, .webm, .gif, or a folder of PNG frames, with a .json of the provenance beside it.

        Returns where it lies: a name that is taken gets a number. Raises UnwritableOutput for a name that no format
        answers to, and MediaError where the file cannot be written.
        """
        size = self.frames.shape[1], self.frames.shape[2]
        with VideoWriter(path, fps=self.fps, size=size, metadata=provenance(self)) as writer:
            writer.write(self.frames)
        return writer.path


def provenance(video: Video) -> dict[str, Any]:
    """How a video came to be, as JSON: `request` and `model` make it again."""
    return {
        "request": video.request.to_dict(),
        "noise_from_seed": video.noise_from_seed,
        "model": asdict(video.model),
        "versions": {"daifuku": VERSION, "torch": torch.__version__, "python": platform.python_version()},
        "timings": dict(video.timings),
    }


class Pipeline:
    """A model ready to make videos. Weights are read when they are first needed."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: Number | Sequence[Number] | None = None,
        seed: int | None = None,
        fps: int | None = None,
        solver: str | None = None,
        threshold_noise: float | None = None,
        linear_steps: int | None = None,
        latents: Tensor | None = None,
    ) -> Video:
        """A prompt to a video. Left None, a parameter has the model's own default; `GenerateRequest` explains each.

        `latents` [12, t, h, w] is noise to start from instead of the seed's. Raises what `run` raises.
        """
        request = GenerateRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            fps=fps,
            solver=solver,
            threshold_noise=threshold_noise,
            linear_steps=linear_steps,
        )
        last = deque(self.run(request, latents=latents), maxlen=1).pop()
        assert isinstance(last, Done), "Done is the last event of every run"
        return last.video

    def resolve(self, request: GenerateRequest) -> ResolvedRequest:
        """The request as it will run on this model. Reads no weights. Raises InvalidRequest."""
        return request.resolved(self.parts.defaults)

    def run(self, request: GenerateRequest, *, latents: Tensor | None = None) -> Generator[Event, None, None]:
        """TextReady, a Step for each step, Frames as they are decoded, Done. Closing the generator cancels.

        Raises InvalidRequest at once, before any weight is read. While it runs: PromptCut warns that the prompt is too
        long for the model, NonFiniteLatent stops a run that went wrong, CheckpointError tells of damaged weights.
        """
        resolved = self.resolve(request)
        shape = resolved.latent_shape.as_tuple
        if latents is not None and tuple(latents.shape) != shape:
            raise InvalidRequest(f"latents are {list(latents.shape)}, but this request starts from {list(shape)}.")
        solver = registry.load(SOLVERS, resolved.solver, Solver)
        if (reason := solver.available()) is not None:
            raise InvalidRequest(f"solver={solver.name!r} does not run here: {reason}. Try 'euler'.")
        return self._run(resolved, solver, latents)

    def decode(self, latents: Float[Tensor, "c t h w"]) -> Iterator[Frames]:
        """Whitened latents to frames: the first alone, then six at a time. Raises NonFiniteLatent."""
        vae = self.parts.vae()
        assert vae.decoder is not None, "a whole model has a decoder"
        like = next(vae.decoder.parameters())
        latent = vae.unwhiten(latents.unsqueeze(0).to(like.device, torch.float32)).to(like.dtype)
        start = 0
        for frames, seconds in _timed(_pixels(vae.decoder, latent)):
            yield Frames(start=start, frames=frames, seconds=seconds)
            start += len(frames)

    @torch.inference_mode()
    def encode(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> Float[Tensor, "c t h w"]:
        """Frames to whitened latents, the mean of what the VAE sees in them: what `decode` turns back into frames.

        The number of frames is 6k+1 and the sides are multiples of 8.
        """
        vae = self.parts.vae()
        like = next(vae.parameters())
        video = rearrange(torch.from_numpy(frames), "t h w c -> 1 c t h w").to(like.device, torch.float32)
        return vae.whiten(vae.encode(video / 127.5 - 1).mean.float())[0]

    def _run(self, request: ResolvedRequest, solver: Solver, noise: Tensor | None) -> Generator[Event, None, None]:
        ready, prompt, negative = self._encode(request)
        yield ready

        sampling_s, decoding_s = 0.0, 0.0
        latent = seeded_noise([request.seed], request.latent_shape.as_tuple)[0] if noise is None else noise
        sigmas = linear_quadratic(request.num_inference_steps, request.threshold_noise, request.linear_steps)
        velocity = guided(self.parts.dit(), prompt, negative, scale_at(request.guidance_scales, sigmas))
        for step in self._denoise(solver, velocity, latent, sigmas):
            latent, sampling_s = step.latent, sampling_s + step.seconds
            yield step

        frames = np.empty((request.num_frames, request.height, request.width, 3), dtype=np.uint8)
        for chunk in self.decode(latent):
            frames[chunk.start : chunk.start + len(chunk.frames)] = chunk.frames
            decoding_s += chunk.seconds
            yield chunk

        video = Video(
            frames=frames,
            latents=latent.cpu(),
            request=request,
            model=self.parts.info,
            timings={"text_s": ready.seconds, "sampling_s": sampling_s, "decoding_s": decoding_s},
            noise_from_seed=noise is None,
        )
        yield Done(video=video)

    def _encode(self, request: ResolvedRequest) -> tuple[TextReady, Caption, Caption | None]:
        """The prompt, and the negative prompt where any step listens to it."""
        text = self.parts.text()
        started = perf_counter()
        prompts = [request.prompt]
        if any(scale != 1 for scale in request.guidance_scales):
            prompts.append(request.negative_prompt)
        with torch.inference_mode():
            prompt, *negative = (Caption(one.features, one.mask) for one in (text.encode([p]) for p in prompts))
        num_tokens = text.count_tokens(request.prompt)
        ready = TextReady(
            num_tokens=num_tokens,
            max_tokens=text.max_tokens,
            cut_text=_cut_text(text, request.prompt) if num_tokens > text.max_tokens else "",
            seconds=perf_counter() - started,
        )
        return ready, prompt, negative[0] if negative else None

    def _denoise(self, solver: Solver, velocity: Velocity, noise: Tensor, sigmas: list[float]) -> Iterator[Step]:
        latents = solver.run(velocity, noise.unsqueeze(0).to(self.parts.device, torch.float32), sigmas)
        for index, (latent, seconds) in enumerate(_timed(_finite(latents)), start=1):
            # A clone made here is an ordinary tensor, which the caller may use with autograd.
            latent = latent[0].clone()
            yield Step(index=index, total=len(sigmas) - 1, sigma=sigmas[index], seconds=seconds, latent=latent)


def load(
    model: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Pipeline:
    """A pipeline for a model folder or hub id; the small built-in model when None.

    Finds the files at once and reads weights when they are first needed. The device is the first of cuda, mps and cpu
    that is there, unless given. On a CPU the precision is float32; elsewhere float32 for weights stored so, and else
    bfloat16. Raises ModelNotFound and InvalidRequest.
    """
    return Pipeline(load_parts(model, device=device, dtype=dtype, revision=revision, variant=variant))


def _timed(items: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Each item and the seconds it took. It is made in inference mode, but handed over outside of it."""
    while True:
        started = perf_counter()
        with torch.inference_mode():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item, perf_counter() - started


def _finite(latents: Iterator[Tensor]) -> Iterator[Tensor]:
    for index, latent in enumerate(latents, start=1):
        if not latent.isfinite().all():
            raise NonFiniteLatent(
                f"the latent is NaN or infinite after step {index}, so the run stops. "
                "Try a lower guidance_scale or dtype float32."
            )
        yield latent


def _pixels(decoder: Decoder, latent: Float[Tensor, "1 c t h w"]) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
    for index, rgb in enumerate(decoder.chunks(latent)):
        if not rgb.isfinite().all():
            raise NonFiniteLatent(
                f"latent frame {index} decodes to NaN or infinity, so the run stops. Try dtype float32."
            )
        shades = ((rgb[0].float() + 1) / 2).clamp(0, 1).mul(255).round().to(torch.uint8)
        yield rearrange(shades, "colour n height width -> n height width colour").cpu().contiguous().numpy()


def _cut_text(text: TextEncoder, prompt: str) -> str:
    """What is left of a prompt after the longest beginning that the model reads whole."""
    lengths = range(1, len(prompt) + 1)
    return prompt[bisect_right(lengths, text.max_tokens, key=lambda length: text.count_tokens(prompt[:length])) :]
