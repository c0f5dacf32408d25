"""How many tokens a prompt has, counted without the networks: the API process reads only the file of the tokenizer."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from daifuku.config import MAX_TOKENS

NAMES = ("tokenizer.json", "spiece.model")


@cache
def counter(path: Path) -> Callable[[str], int]:
    """Counts tokens of a prompt, the end mark included, with a tokenizer's folder or its one file."""
    file = next((path / name for name in NAMES if (path / name).is_file()), path) if path.is_dir() else path
    if file.suffix == ".json":
        from tokenizers import Tokenizer

        reader = Tokenizer.from_file(str(file))
        reader.no_truncation()
        reader.no_padding()
        return lambda prompt: len(reader.encode(prompt).ids)
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(file))
    return lambda prompt: len(pieces.encode(prompt)) + 1


@cache
def max_tokens(path: Path) -> int:
    """Tokens of a prompt that the model reads; what comes after them is left out."""
    config = (path if path.is_dir() else path.parent) / "tokenizer_config.json"
    if not config.is_file():
        return MAX_TOKENS
    return min(MAX_TOKENS, json.loads(config.read_text()).get("model_max_length") or MAX_TOKENS)
