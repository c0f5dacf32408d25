"""The whole story on one page: a prompt is encoded, noise is denoised, latents are decoded."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from daifuku import registry
from daifuku.config import TIME_FACTOR, RuntimeConfig
from daifuku.errors import InvalidRequest, NotEnoughMemory
from daifuku.events import Done, Event, Frames, Notice, Planned, Preview, Step, TextReady
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.request import SOLVERS, GenerateRequest, LatentShape, Number, ResolvedRequest
from daifuku.runtime.adapters import Adapters, live, merging, read_adapters
from daifuku.runtime.build import ModelInfo, Parts, as_stored, load_parts, settled
from daifuku.runtime.captions import encode_prompts
from daifuku.runtime.checkpoint import Start, copied
from daifuku.runtime.decoding import pixel_chunks
from daifuku.runtime.estimate import Estimator, Workload
from daifuku.runtime.machine import base_bytes, free_caches, is_out_of_memory, parse_size, this_machine
from daifuku.runtime.modulation import only_at, tabulated, visited_sigmas
from daifuku.runtime.planner import COMFORT, Plan, Planner, filled
from daifuku.runtime.preview import clean_estimate, fit
from daifuku.runtime.residency import Lender
from daifuku.runtime.velocity import velocity_of
from daifuku.sample.guidance import Caption
from daifuku.sample.noise import seeded_noise
from daifuku.sample.schedule import linear_quadratic
from daifuku.sample.solver import Solver, State, finite
from daifuku.text.encoder import import_libraries
from daifuku.values import Loras, as_loras
from daifuku.video import Video, run_record
from daifuku.weights.load import as_dtype
from daifuku.weights.names import Part

T = TypeVar("T")

STAGES = ("text_s", "sampling_s", "decoding_s")
"""Names of a run's timings."""


@dataclass(kw_only=True)
class _Made:
    """What a run has made so far: where memory runs out, the next plan goes on from here."""

    request: ResolvedRequest
    solver: Solver
    adapters: Adapters
    noise_from_seed: bool
    preview_every: int
    index: int
    latent: Tensor
    states: Mapping[str, State]
    frames: np.ndarray
    text: TextReady | None = None
    prompt: Caption | None = None
    negative: Caption | None = None
    num_frames: int = 0
    timings: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


class Pipeline:
    """A model ready to make videos. Weights are read when they are first needed.

    `runtime` says how it runs. What it leaves open is planned for each request, to fit `memory_bytes` of the device, or
    what is free there when not given.
    """

    def __init__(self, parts: Parts, runtime: RuntimeConfig | None = None, *, memory_bytes: int | None = None) -> None:
        self.parts = parts
        self.runtime = runtime or RuntimeConfig()
        self._memory_bytes = memory_bytes
        self._base_bytes: int | None = None
        self._lender = Lender(parts.device)

    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        preset: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: Number | Sequence[Number] | None = None,
        seed: int | None = None,
        fps: int | None = None,
        solver: str | None = None,
        threshold_noise: float | None = None,
        linear_steps: int | None = None,
        guidance_start_sigma: float | None = None,
        guidance_end_sigma: float | None = None,
        guidance_every: int | None = None,
        step_cache: str | None = None,
        cache_threshold: float | None = None,
        loras: Sequence[Any] | None = None,
        latents: Tensor | None = None,
    ) -> Video:
        """A prompt to a video. Left None, a parameter has the model's own default; `GenerateRequest` explains each.

        `latents` [12, t, h, w] is noise to start from instead of the seed's. Raises what `run` raises.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "latents")}
        request = GenerateRequest(**given)
        last = deque(self.run(request, latents=latents), maxlen=1).pop()
        assert isinstance(last, Done), "Done is the last event of every run"
        return last.video

    def resolve(self, request: GenerateRequest) -> ResolvedRequest:
        """The request as it will run on this model. Reads no weights. Raises InvalidRequest."""
        found = request.resolved(self.parts.defaults)
        # In full, so that a record names the same files from another folder.
        return replace(found, loras=[(str(Path(path).expanduser().absolute()), s) for path, s in found.loras])

    def loras(self, request: ResolvedRequest) -> Loras:
        """All that act: the model's own for the preset, then those of the request."""
        return (*self.parts.preset_loras(request.preset), *request.loras)

    def planner(self, request: ResolvedRequest) -> Planner:
        """Makes plans for a request: how it would run here, and what that costs. Reads no weights."""
        memory = self.parts.remembered(filled(self.runtime, self._comfort))
        knows_text = memory is not None and all(map(memory.get, request.captions))
        if self.parts.device.type == "cpu" and not knows_text:
            import_libraries()
        order = registry.load(SOLVERS, request.solver, Solver).order
        return self._planner(Workload.of(request, order, knows_text=knows_text))

    def run(
        self,
        request: GenerateRequest,
        *,
        latents: Tensor | None = None,
        start: Start | None = None,
        preview_every: int = 0,
    ) -> Generator[Event, None, None]:
        """Planned, TextReady, a Step for each step, Frames as they are decoded, Done. Closing the generator cancels.

        `latents` [12, t, h, w] is noise to start from instead of the seed's; `start` is where an earlier run of the
        same request stopped. Where the device runs out of memory, the run says so by another Planned and goes on from
        what it has with the next smaller plan, once. After every `preview_every` steps, if that is not 0, comes a
        Preview; a model whose map to colours is not known yet shows none, and learns it from the finished clip.

        Raises InvalidRequest at once, before any weight is read, and CheckpointError for a LoRA that does not fit.
        While it runs: NotEnoughMemory says that nothing fits, PromptCut warns that the prompt is too long for the
        model, NonFiniteLatent stops a run that went wrong, CheckpointError tells of damaged weights.
        """
        resolved = self.resolve(request)
        shape = resolved.latent_shape.as_tuple
        solver = registry.load(SOLVERS, resolved.solver, Solver)
        if (reason := solver.available()) is not None:
            raise InvalidRequest(f"solver={solver.name!r} does not run here: {reason}. Try 'euler'.")
        given = latents if start is None else start.latent
        if given is not None and tuple(given.shape) != shape:
            raise InvalidRequest(f"latents are {list(given.shape)}, but this request starts from {list(shape)}.")
        if start is None:
            start = Start(index=0, latent=seeded_noise([resolved.seed], shape)[0] if latents is None else latents)
        return self._run(
            _Made(
                request=resolved,
                solver=solver,
                adapters=read_adapters(self.loras(resolved), lambda: self.parts.sizes().dit),
                noise_from_seed=latents is None,
                preview_every=preview_every,
                index=start.index,
                latent=start.latent,
                states=start.states,
                frames=np.empty((resolved.num_frames, resolved.height, resolved.width, 3), dtype=np.uint8),
            )
        )

    def decode(self, latents: Float[Tensor, "c t h w"]) -> Iterator[Frames]:
        """Whitened latents to frames: the first alone, then six at a time. Raises NonFiniteLatent."""
        _, frames, height, width = latents.shape
        return self._decode(latents, self._plan_vae(LatentShape(frames=frames, height=height, width=width)))

    @torch.inference_mode()
    def encode(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> Float[Tensor, "c t h w"]:
        """Frames to whitened latents, the mean of what the VAE sees in them: what `decode` turns back into frames.

        The number of frames is 6k+1 and the sides are multiples of 8.
        """
        run = self._plan_vae(LatentShape.from_pixels(*frames.shape[:3]))
        with self._half("encoder", run) as vae:
            device = next(vae.parameters()).device
            video = rearrange(torch.from_numpy(frames), "t h w c -> 1 c t h w")
            pieces = (piece.to(device, torch.float32) / 127.5 - 1 for piece in video.split(TIME_FACTOR, dim=2))
            latents = torch.cat([latent.mean.float() for latent in vae.encode_chunks(pieces)], dim=2)
            return vae.whiten(latents)[0]

    def _run(self, made: _Made) -> Generator[Event, None, None]:
        planner = self.planner(made.request)
        plan: Plan | None = planner.choose()
        for out_of_memory in (False, True):
            run = settled(plan.runtime, self.parts.sizes().dit, made.request, self.parts.device)
            record = run_record(made.request, self._info(made), run, noise_from_seed=made.noise_from_seed)
            yield Planned(plan=plan, record=record, out_of_memory=out_of_memory)
            try:
                yield from self._through_stages(made, run)
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                plan = planner.below(plan)
                if out_of_memory or plan is None:
                    raise NotEnoughMemory(
                        f"memory ran out after {made.index} of {made.request.num_inference_steps} steps, whichever way "
                        "it was computed. Try fewer frames or a smaller picture; `daifuku plan` shows what each takes."
                    ) from error
            # Only out here has the exception let go of the tensors that filled the memory.
            self._lender.forget()
            free_caches()

    def _through_stages(self, made: _Made, run: RuntimeConfig) -> Generator[Event, None, None]:
        """Each stage goes on from what has been made so far."""
        if made.text is None:
            made.text, made.prompt, made.negative = self._encode(made.request, run)
            made.timings["text_s"] = made.text.seconds
            yield from self._notices()
            yield made.text
        to_rgb = self.parts.preview() if made.preview_every else None
        sigma = 1.0
        for step in self._denoise(made, run):
            before, made.latent = made.latent, step.latent
            made.index, made.states = step.index, step.states
            made.timings["sampling_s"] += step.seconds
            yield from self._notices()
            yield step
            if to_rgb is not None and step.index % made.preview_every == 0:
                heading = clean_estimate(before.to(step.latent), step.latent, sigma, step.sigma)
                yield Preview(index=step.index, frames=to_rgb(heading))
            sigma = step.sigma
        for chunk in self._decode(made.latent, run):
            made.timings["decoding_s"] += chunk.seconds
            # What an earlier attempt has decoded, it has also handed over.
            if chunk.start >= made.num_frames:
                made.num_frames = chunk.start + len(chunk.frames)
                made.frames[chunk.start : made.num_frames] = chunk.frames
                yield chunk
        if made.preview_every and to_rgb is None:
            self.parts.remember_preview(fit([(made.latent, made.frames)]))
        video = Video(
            frames=made.frames,
            latents=made.latent.cpu(),
            request=made.request,
            model=self._info(made),
            runtime=run,
            timings=made.timings,
            noise_from_seed=made.noise_from_seed,
        )
        yield Done(video=video)

    def _info(self, made: _Made) -> ModelInfo:
        return replace(self.parts.info, loras=list(made.adapters.fingerprints))

    def _notices(self) -> Iterator[Notice]:
        """What was noticed while networks were read."""
        while self.parts.notices:
            yield Notice(text=self.parts.notices.pop(0))

    def _encode(self, request: ResolvedRequest, run: RuntimeConfig) -> tuple[TextReady, Caption, Caption | None]:
        """The prompt, and the negative prompt where any step listens to it."""
        started, lend = perf_counter(), partial(self._lender.stage, "text", self.parts.text, run)
        with self.parts.reading_ahead():
            prompt, *negative = encode_prompts(request.captions, self.parts.remembered(run), lend)
        ready = TextReady(
            num_tokens=prompt.num_tokens,
            max_tokens=prompt.max_tokens,
            cut_text=prompt.cut_text,
            seconds=perf_counter() - started,
        )
        return ready, prompt.caption, negative[0].caption if negative else None

    def _denoise(self, made: _Made, run: RuntimeConfig) -> Iterator[Step]:
        request, device = made.request, self.parts.device
        sigmas = linear_quadratic(request.num_inference_steps, request.threshold_noise, request.linear_steps)
        if made.index == request.num_inference_steps:
            return
        assert made.prompt is not None, "text comes before sampling"
        prompt, negative = (
            caption and Caption(caption.features.to(device), caption.mask.to(device))
            for caption in (made.prompt, made.negative)
        )
        assert prompt is not None, "a caption stays one on its way to the device"
        captions = [prompt] if negative is None else [prompt, negative]
        # Those of the whole run, also if it begins in the middle: how many rows a table has decides last bits.
        visited = visited_sigmas(made.solver, sigmas)
        with self._dit(made.adapters, captions, visited, run) as dit:
            states = copied(made.states, device)
            velocity = velocity_of(dit, request, run, prompt, negative, sigmas, states)
            velocity = only_at(velocity, visited) if run.tabulate else velocity
            latent = made.latent.unsqueeze(0).to(device, torch.float32)
            latents = made.solver.run(velocity, latent, sigmas[made.index :])
            for index, (latent, seconds) in enumerate(_timed(finite(latents)), start=made.index + 1):
                # A clone made here is an ordinary tensor, which the caller may use with autograd.
                latent = latent[0].clone()
                yield Step(
                    index=index,
                    total=len(sigmas) - 1,
                    sigma=sigmas[index],
                    seconds=seconds,
                    latent=latent,
                    states=copied(states, device),
                )

    @contextmanager
    def _dit(
        self, adapters: Adapters, captions: list[Caption], sigmas: list[float], run: RuntimeConfig
    ) -> Iterator[AsymmDiT]:
        """The transformer with its LoRAs, and where the plan wants that, all modulations of the run from a table."""
        merged = run.lora_mode == "merged"
        deltas, weights = (adapters.deltas, adapters.key) if merged else ({}, ())

        def read(run: RuntimeConfig, device: torch.device) -> AsymmDiT:
            return self.parts.dit(run, device, deltas)

        with self._lender.stage("dit", read, run, weights) as dit, live(dit, adapters.deltas, merged_before=merged):
            read_one = merging(partial(self.parts.read, run), adapters.deltas)
            with tabulated(dit, captions, sigmas, read_one) if run.tabulate else nullcontext():
                yield dit

    def _decode(self, latents: Tensor, run: RuntimeConfig) -> Iterator[Frames]:
        with self._half("decoder", run) as vae:
            assert vae.decoder is not None, "a whole model has a decoder"
            like = next(vae.decoder.parameters())
            latent = vae.unwhiten(latents.unsqueeze(0).to(like.device, torch.float32)).to(like.dtype)
            start = 0
            for frames, seconds in _timed(pixel_chunks(vae.decoder, latent, run)):
                yield Frames(start=start, frames=frames, seconds=seconds)
                start += len(frames)

    def _half(self, half: Part, run: RuntimeConfig) -> AbstractContextManager[AsymmVAE]:
        return self._lender.stage(half, lambda run, device: self.parts.vae(run, device, half), run)

    def _planner(self, work: Workload) -> Planner:
        machine = this_machine(self.parts.device, self._memory_bytes)
        if self._base_bytes is None:
            self._base_bytes = base_bytes(self.parts.device)
        estimator = Estimator(sizes=self.parts.sizes(), work=work, machine=machine)
        return Planner(estimator=estimator, comfort=self._comfort, wanted=self.runtime, base_bytes=self._base_bytes)

    @property
    def _comfort(self) -> RuntimeConfig:
        own = RuntimeConfig(dtype=str(self.parts.dtype).removeprefix("torch."))
        return filled(own, as_stored(self.parts.sizes()), COMFORT)

    def _plan_vae(self, shape: LatentShape) -> RuntimeConfig:
        """How the VAE alone runs."""
        return self._planner(Workload(shape=shape, num_captions=1, num_sigmas=1)).choose().runtime


def load(
    model: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
    runtime: RuntimeConfig | None = None,
    memory: str | int | None = None,
    loras: Sequence[Any] = (),
) -> Pipeline:
    """A pipeline for a model folder or hub id; the small built-in model when None.

    Finds the files at once and reads weights when they are first needed. The device is the first of cuda, mps and cpu
    that is there, unless given. On a CPU the precision is float32; elsewhere float32 for weights stored so, and else
    bfloat16. `runtime` settles how it runs, `dtype` being one of its settings; the rest is planned to fit `memory`,
    such as "12GiB" or a number of bytes, or what is free. `loras`, such as [("style.safetensors", 0.8)], act wherever a
    request names none. Raises ModelNotFound and InvalidRequest.
    """
    runtime = runtime or RuntimeConfig()
    if dtype is not None:
        runtime = replace(runtime, dtype=str(as_dtype(dtype)).removeprefix("torch."))
    parts = load_parts(model, device=device, revision=revision, variant=variant)
    if loras:
        parts = replace(parts, defaults={**parts.defaults, "loras": as_loras("loras", loras)})
    return Pipeline(parts, runtime, memory_bytes=parse_size(memory) if isinstance(memory, str) else memory)


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
