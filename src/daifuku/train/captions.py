"""The built-in model's tokenizer and text encoder: a small Unigram vocabulary and a small T5, both from scratch."""

import string
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

VOCABULARY = 384
MAX_TOKENS = 256
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def new_tokenizer(captions: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Learns a vocabulary from captions. Case does not matter, and a word it never saw falls apart into letters."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, UNKNOWN],
        unk_token=UNKNOWN,
        initial_alphabet=list(string.ascii_lowercase + string.digits + string.punctuation),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
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


def longest(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> int:
    """Tokens of the longest caption, rounded up to a multiple of 8."""
    most = max(len(ids) for ids in tokenizer(list(captions))["input_ids"])
    return -(-most // 8) * 8
