"""The T5 encoder: what it reads, what it leaves out, and what it says about an empty prompt."""

import warnings
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from daifuku.config import MAX_TOKENS
from daifuku.errors import CheckpointError, ModelNotFound
from daifuku.text.quiet import quiet
from daifuku.text.t5 import read_tokenizer


class PromptCut(UserWarning):
    """A prompt was longer than the model reads, and its tail was left out."""


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a tokenizer of `transformers`."""

    model_max_length: int

    def encode(self, text: str, *, verbose: bool) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class TextCond:
    """What the transformer learns about prompts: features of their tokens, and which of them count."""

    features: Float[Tensor, "b l width"]
    mask: Bool[Tensor, "b l"]


class TextEncoder:
    """Reads prompts with a T5 encoder.

    The transformer never looks at padding, so no padding is computed: every prompt runs alone, at its own length. The
    result for a prompt is therefore the same whatever other prompts it comes with.
    """

    def __init__(self, t5: nn.Module, tokenizer: Tokenizer, *, width: int, zero_empty: bool) -> None:
        """`width`: of the features. `zero_empty`: see `encode`."""
        self.t5 = t5
        self.width = width
        self.tokenizer = tokenizer
        self.zero_empty = zero_empty
        self.max_tokens = min(MAX_TOKENS, tokenizer.model_max_length)

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, the end mark included. Above `max_tokens` its tail will be cut."""
        return len(self._ids(prompt))

    def cut_text(self, prompt: str) -> str:
        """What is left of a prompt after the longest beginning that the model reads whole; mostly empty."""
        lengths = range(1, len(prompt) + 1)
        return prompt[bisect_right(lengths, self.max_tokens, key=lambda length: self.count_tokens(prompt[:length])) :]

    def _ids(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt, verbose=False)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextCond:
        """Features [b, l, width] float32 and mask [b, l] of prompts, where l is the length of the longest.

        Warns with PromptCut about a prompt of more than `max_tokens` tokens. With `zero_empty` the prompt "" is one
        vector of zeros that does not count, as in the original, and T5 is not asked; otherwise it is a prompt like any
        other.
        """
        rows = [None if prompt == "" and self.zero_empty else self._features(prompt) for prompt in prompts]
        device = next(self.t5.parameters()).device
        features = [torch.zeros(1, self.width, device=device) if row is None else row for row in rows]
        mask = torch.zeros(len(rows), max(map(len, features)), dtype=torch.bool, device=device)
        for index, row in enumerate(rows):
            mask[index, : 0 if row is None else len(row)] = True
        return TextCond(features=nn.utils.rnn.pad_sequence(features, batch_first=True), mask=mask)

    def _features(self, prompt: str) -> Float[Tensor, "l width"]:
        """Of one prompt, alone and without padding."""
        tokens = torch.tensor([self._tokens(prompt)], device=next(self.t5.parameters()).device)
        return self.t5(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0].float()

    def _tokens(self, prompt: str) -> list[int]:
        """Token ids of a prompt, as many as the model reads."""
        ids = self._ids(prompt)
        if len(ids) > self.max_tokens:
            room = self.max_tokens - 1  # the end mark keeps its place
            lost = self.tokenizer.decode(ids[room:-1])
            warnings.warn(
                f"the prompt has {len(ids)} tokens and the model reads {self.max_tokens}; this was cut: {lost!r}",
                PromptCut,
                stacklevel=2,
            )
            ids = ids[:room] + ids[-1:]
        return ids


def load_text_encoder(
    folder: Path,
    tokenizer_path: Path,
    *,
    zero_empty: bool,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    variant: str | None = None,
) -> TextEncoder:
    """T5 encoder from a folder as `transformers` writes it, tokenizer from such a folder or from its one file.

    `zero_empty`: see `TextEncoder.encode`. float16 overflows inside T5; bfloat16 and float32 are safe. Raises
    ModelNotFound when files are missing and CheckpointError when they are damaged or hold another model.
    """
    from safetensors import SafetensorError

    if not folder.is_dir():
        raise ModelNotFound(f"there is no text encoder: the folder {folder} does not exist")
    tokenizer = read_tokenizer(tokenizer_path)
    try:
        with quiet():
            from transformers import T5EncoderModel

            loaded: Any = T5EncoderModel.from_pretrained(
                folder,
                dtype=dtype,
                variant=variant,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
            )
    except OSError as error:
        raise ModelNotFound(f"the text encoder in {folder} is not complete: {error}") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the text encoder in {folder} does not load: {error}") from error
    t5, report = loaded
    misshapen = [name for name, *_ in report["mismatched_keys"]]
    for what, names in (("missing", sorted(report["missing_keys"])), ("of the wrong shape", sorted(misshapen))):
        if names:
            shown = ", ".join(names[:3])
            raise CheckpointError(f"{folder} does not hold a T5 encoder. {len(names)} tensors {what}: {shown}")
    return TextEncoder(t5.to(device).eval(), tokenizer, width=t5.config.d_model, zero_empty=zero_empty)


def import_libraries() -> None:
    """Imports what reading a text encoder imports, so that the memory it takes can be counted beforehand."""
    with quiet():
        from transformers import AutoTokenizer, T5EncoderModel  # noqa: F401
