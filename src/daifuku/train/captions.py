"""The built-in model's tokenizer and text encoder: a vocabulary of words and a small T5, both from scratch."""

import math
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

VOCABULARY = 384
MAX_TOKENS = 256
SPECIAL = PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
LETTERS = f"▁{string.ascii_lowercase}{string.digits}{string.punctuation}"
LEAST_VOCABULARY = len(SPECIAL) + len(LETTERS)
RARE = -20.0
"""Logarithm of how likely a letter is: less than any word is."""


def new_tokenizer(captions: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A piece for each word of the captions, the most frequent first, and one for each letter.

    Case does not matter, and a word that is not among them falls apart into letters.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    words = Counter(
        word for caption in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption))
    )
    room = vocabulary - LEAST_VOCABULARY
    pieces = [(piece, 0.0) for piece in SPECIAL] + [(letter, RARE) for letter in LETTERS]
    pieces += [(word, math.log(count / words.total())) for word, count in words.most_common(room) if len(word) > 1]

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index(UNKNOWN)))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, SPECIAL.index(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=MAX_TOKENS
    )


def new_text_encoder(vocabulary: int, width: int = 128) -> T5EncoderModel:
    """A T5 v1.1 encoder with random weights, at this width of 0.4 million parameters."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


@torch.no_grad()
def take_text_encoder(encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerFast, source: Path) -> None:
    """Gives the encoder the weights of that in the model folder `source`, whose vocabulary may be another.

    A piece gets the mean of those that it is there. Raises RuntimeError for other sizes.
    """
    found = T5EncoderModel.from_pretrained(source / "text_encoder", dtype=torch.float32)
    theirs = PreTrainedTokenizerFast.from_pretrained(source / "tokenizer").backend_tokenizer
    table = torch.empty_like(encoder.shared.weight)
    for piece, place in tokenizer.get_vocab().items():
        known = theirs.token_to_id(piece)
        same = [token.id for token in theirs.model.tokenize(piece)] if known is None else [known]
        table[place] = found.shared.weight[same].mean(dim=0)
    found.set_input_embeddings(nn.Embedding.from_pretrained(table))
    encoder.load_state_dict(found.state_dict())


def longest(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> int:
    """Tokens of the longest caption, rounded up to a multiple of 8."""
    most = max(len(ids) for ids in tokenizer(list(captions))["input_ids"])
    return -(-most // 8) * 8
