"""A T5 encoder whose weights come one by one, and tokenizers from a folder or a single file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from daifuku.errors import CheckpointError, ModelNotFound
from daifuku.text.quiet import quiet

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")


def t5_encoder(sizes: Mapping[str, Any]) -> nn.Module:
    """An encoder of `transformers` of sizes that its configuration knows, with weights that nobody has set."""
    with quiet():
        from transformers import T5Config, T5EncoderModel

        return T5EncoderModel(T5Config.from_dict(dict(sizes)))


def is_tied(name: str) -> bool:
    """Whether a tensor of the encoder is the embedding under its second name."""
    return name == "encoder.embed_tokens.weight"


def tie(t5: nn.Module) -> None:
    """Makes the embedding one again, after its weights came under its first name."""
    t5.set_submodule("encoder.embed_tokens", t5.get_submodule("shared"))


def read_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder as `transformers` writes it, or of a lone tokenizer.json or spiece.model.

    Raises ModelNotFound where there is none, and CheckpointError where it is damaged.
    """
    file = path
    if path.is_dir():
        # Without these files transformers makes an empty tokenizer, which reads every word as unknown.
        found = next((path / name for name in TOKENIZER_FILES if (path / name).is_file()), None)
        if found is None:
            raise ModelNotFound(f"there is no tokenizer in {path}: it needs {' or '.join(TOKENIZER_FILES)}")
        file = found
    elif not path.is_file():
        raise ModelNotFound(f"there is no tokenizer: {path} does not exist")
    try:
        with quiet():
            from transformers import AutoTokenizer, PreTrainedTokenizerFast
            from transformers.models.t5.tokenization_t5 import T5Tokenizer

            if (file.parent / "tokenizer_config.json").is_file():
                return AutoTokenizer.from_pretrained(file.parent, local_files_only=True)
            if file.suffix == ".json":
                return PreTrainedTokenizerFast(tokenizer_file=str(file))
            return T5Tokenizer.from_pretrained(file.parent, local_files_only=True)
    except OSError as error:
        raise ModelNotFound(f"the tokenizer {path} is not complete: {error}") from error
    # The library that reads these files raises plain exceptions.
    except Exception as error:
        raise CheckpointError(f"the tokenizer {path} does not load: {error}") from error
