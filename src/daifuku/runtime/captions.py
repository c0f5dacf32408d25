"""Captions for the transformer: encoded by T5, or remembered from an earlier run that asked for the same prompt."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from daifuku.config import RuntimeConfig
from daifuku.errors import UnwritableOutput
from daifuku.sample.guidance import Caption
from daifuku.text import TextEncoder
from daifuku.weights.files import published

MOST_FILES = 256
"""Captions that are remembered: the one that was not asked for the longest gives way. One of the published model takes
at most 4 MB."""

_KEY = "daifuku"


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A caption, and what `TextReady` tells about it."""

    caption: Caption
    num_tokens: int
    max_tokens: int
    cut_text: str


def encode_prompt(text: TextEncoder, prompt: str) -> EncodedPrompt:
    """By T5. Warns with PromptCut."""
    with torch.inference_mode():
        found = text.encode([prompt])
    return EncodedPrompt(
        caption=Caption(found.features, found.mask),
        num_tokens=text.count_tokens(prompt),
        max_tokens=text.max_tokens,
        cut_text=text.cut_text(prompt),
    )


class CaptionMemory:
    """Captions in files of a folder. Their names are hashes: prompts are not written down.

    `about` is all that features depend on beside the prompt.
    """

    def __init__(self, folder: Path, about: str) -> None:
        self._folder = folder
        self._about = about

    def get(self, prompt: str) -> EncodedPrompt | None:
        """The caption as it was put, bit for bit; None where it is not known, or its file is damaged."""
        path = self._path(prompt)
        try:
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {})[_KEY])
                caption = Caption(file.get_tensor("features"), file.get_tensor("mask"))
                found = EncodedPrompt(
                    caption=caption, num_tokens=told["num_tokens"], max_tokens=told["max_tokens"], cut_text=""
                )
            path.touch()
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        return found

    def put(self, prompt: str, encoded: EncodedPrompt) -> None:
        """Remembers a caption. One that was cut is not, so that its warning comes each time."""
        if encoded.cut_text:
            return
        told = {"num_tokens": encoded.num_tokens, "max_tokens": encoded.max_tokens}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in encoded.caption._asdict().items()}
        # A folder that cannot be written means to encode again next time, and no more.
        with suppress(UnwritableOutput, OSError):
            with published(self._path(prompt)) as file:
                file.write(save(tensors, {_KEY: json.dumps(told)}))
            for oldest in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST_FILES]:
                oldest.unlink(missing_ok=True)

    def _path(self, prompt: str) -> Path:
        digest = hashlib.sha256(f"{self._about}\n{prompt}".encode()).hexdigest()
        return self._folder / f"{digest}.safetensors"


def encode_prompts(
    prompts: Sequence[str], memory: CaptionMemory | None, lend: Callable[[], AbstractContextManager[TextEncoder]]
) -> list[EncodedPrompt]:
    """Prompts in their order. The text encoder is only borrowed for those that are not remembered."""
    found = {prompt: known for prompt in prompts if memory and (known := memory.get(prompt)) is not None}
    if new := [prompt for prompt in prompts if prompt not in found]:
        with lend() as text:
            found |= {prompt: encode_prompt(text, prompt) for prompt in new}
    for prompt in new:
        if memory is not None:
            memory.put(prompt, found[prompt])
    return [found[prompt] for prompt in prompts]


def captions_depend_on(identity: str, run: RuntimeConfig, device: torch.device) -> str:
    """All that decides the bits of a caption beside its prompt."""
    where = "cpu" if run.text_on == "host" or device.type != "cuda" else torch.cuda.get_device_name(device)
    libraries = f"torch {torch.__version__}, transformers {version('transformers')}"
    return f"{identity}, {run.text_dtype}, {run.quantise_text}, {where}, {torch.get_num_threads()} threads, {libraries}"
