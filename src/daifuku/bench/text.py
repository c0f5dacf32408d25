"""Prompts to features."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daifuku.bench.case import Action
from daifuku.bench.models import their_pipeline
from daifuku.text import load_text_encoder
from daifuku.weights.load import as_dtype

PROMPT = "a small red ball bouncing on a gray background " * 4


def ours(folder: Path, *, dtype: str, device: str = "cpu") -> Action:
    """Only the tokens of the prompt."""
    place, precision = torch.device(device), as_dtype(dtype)
    encoder = load_text_encoder(
        folder / "text_encoder", folder / "tokenizer", zero_empty=True, dtype=precision, device=place
    )

    def run() -> Tensor:
        return encoder.encode([PROMPT]).features

    return Action(run=run, output=run)


def diffusers(folder: Path, *, dtype: str, device: str = "cpu") -> Action:
    """The prompt padded to 256 tokens, as MochiPipeline does it; its output is cut to the prompt."""
    from transformers import AutoTokenizer, T5EncoderModel

    t5: Any = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=as_dtype(dtype))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer")
    pipe = their_pipeline(text_encoder=t5.to(device), tokenizer=tokenizer)

    @torch.no_grad()
    def run() -> Tensor:
        features, mask, *_ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False, device=torch.device(device))
        return features[:, : int(mask.sum())]

    return Action(run=run, output=run)
