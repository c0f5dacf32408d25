"""Prompts to features: padding, the empty prompt both ways, long prompts, and broken folders."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from daifuku.errors import CheckpointError, ModelNotFound
from daifuku.text import PromptCut, TextEncoder, load_text_encoder

WORDS = ["a", "small", "red", "ball", "bouncing", "on", "gray"]
PROMPT = "a small red ball"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small T5 encoder with a tokenizer that knows seven words, as transformers writes them."""
    root = tmp_path_factory.mktemp("text")
    vocabulary: Any = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *((f"▁{word}", -1.0) for word in WORDS)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512).save_pretrained(root / "tokenizer")
    torch.manual_seed(0)
    config = T5Config(vocab_size=10, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(root / "text_encoder")
    return root


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[[bool], TextEncoder]:
    return lambda zero_empty: load_text_encoder(folder / "text_encoder", folder / "tokenizer", zero_empty=zero_empty)


def padded(encoder: TextEncoder, ids: list[int], num_valid: int) -> torch.Tensor:
    """What T5 makes of ids padded to 256, as the published pipelines run it."""
    tokens = torch.zeros(1, 256, dtype=torch.long)
    tokens[0, : len(ids)] = torch.tensor(ids)
    mask = torch.arange(256)[None] < num_valid
    with torch.no_grad():
        return encoder.t5(input_ids=tokens, attention_mask=mask).last_hidden_state[0]


def test_features_without_padding_equal_those_computed_with_256_tokens(load: Callable[[bool], TextEncoder]):
    encoder = load(False)
    cond = encoder.encode([PROMPT])
    assert cond.features.shape == (1, 5, 16) and cond.features.dtype == torch.float32 and cond.mask.all()
    expected = padded(encoder, [3, 4, 5, 6, 1], num_valid=5)[:5]
    torch.testing.assert_close(cond.features[0], expected, atol=1e-5, rtol=0)


def test_a_prompt_has_the_same_features_bit_for_bit_in_any_company(load: Callable[[bool], TextEncoder]):
    encoder = load(True)
    alone = encoder.encode([PROMPT])
    together = encoder.encode(["", "red", PROMPT + " bouncing on gray", PROMPT])
    assert torch.equal(together.features[3, :5], alone.features[0])
    assert together.mask.sum(dim=1).tolist() == [0, 2, 8, 5]
    assert together.mask[3].tolist() == [True] * 5 + [False] * 3
    assert not together.features[~together.mask].any()


def test_an_empty_prompt_can_take_no_part(load: Callable[[bool], TextEncoder]):
    cond = load(True).encode([""])
    assert not cond.mask.any()
    assert cond.features.isfinite().all()


def test_an_empty_prompt_can_be_tokenised_like_any_other(load: Callable[[bool], TextEncoder]):
    encoder = load(False)
    cond = encoder.encode([""])
    assert cond.mask.tolist() == [[True]]
    torch.testing.assert_close(cond.features[0], padded(encoder, [1], num_valid=1)[:1], atol=1e-5, rtol=0)


def test_only_the_empty_prompt_itself_is_special(load: Callable[[bool], TextEncoder]):
    assert load(True).encode([" "]).mask.any()


def test_the_number_of_tokens_includes_the_end_mark(load: Callable[[bool], TextEncoder]):
    assert load(False).count_tokens(PROMPT) == 5
    assert load(False).count_tokens("red " * 400) == 401


def test_a_prompt_of_256_tokens_is_read_whole(load: Callable[[bool], TextEncoder]):
    encoder = load(False)
    assert encoder.max_tokens == 256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encoder.encode(["red " * 255]).mask.sum() == 256


def test_a_longer_prompt_loses_its_tail_with_a_warning(load: Callable[[bool], TextEncoder]):
    encoder = load(False)
    with pytest.warns(PromptCut, match="has 258 tokens and the model reads 256; this was cut: 'gray ball'"):
        cut = encoder.encode(["red " * 255 + "gray ball"])
    assert torch.equal(cut.features, encoder.encode(["red " * 255]).features)


def test_a_tokenizer_may_set_a_shorter_limit(load: Callable[[bool], TextEncoder]):
    encoder = load(False)
    encoder.tokenizer.model_max_length = 4
    short = TextEncoder(encoder.t5, encoder.tokenizer, width=encoder.width, zero_empty=False)
    with pytest.warns(PromptCut, match="has 5 tokens and the model reads 4; this was cut: 'ball'"):
        assert short.encode([PROMPT]).mask.sum() == 4


def test_features_are_float32_whatever_the_encoder_computes_in(folder: Path):
    half = load_text_encoder(
        folder / "text_encoder", folder / "tokenizer", zero_empty=True, dtype=torch.bfloat16, device="cpu"
    )
    assert next(half.t5.parameters()).dtype == torch.bfloat16
    assert half.encode([PROMPT]).features.dtype == torch.float32


def test_features_of_a_trainable_encoder_carry_no_graph(load: Callable[[bool], TextEncoder]):
    assert not load(True).encode([PROMPT]).features.requires_grad


def test_a_folder_without_a_tokenizer_is_refused_rather_than_read_as_an_empty_one(folder: Path):
    with pytest.raises(ModelNotFound, match=r"no tokenizer in .*: it needs tokenizer\.json or spiece\.model"):
        load_text_encoder(folder / "text_encoder", folder / "text_encoder", zero_empty=True)


def test_missing_folders_and_weights_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(ModelNotFound, match="nowhere does not exist"):
        load_text_encoder(tmp_path / "nowhere", folder / "tokenizer", zero_empty=True)
    with pytest.raises(ModelNotFound, match=r"model\.safetensors"):
        load_text_encoder(folder / "tokenizer", folder / "tokenizer", zero_empty=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.final_layer_norm.weight": None}, r"1 tensors missing: encoder\.final_layer_norm\.weight"),
        ({"shared.weight": torch.zeros(10, 8)}, r"1 tensors of the wrong shape: .*"),
    ],
)
def test_tensors_that_make_no_t5_are_named(folder: Path, tmp_path: Path, change: dict, message: str):
    broken = shutil.copytree(folder / "text_encoder", tmp_path / "text_encoder")
    tensors = load_file(broken / "model.safetensors") | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_text_encoder(broken, folder / "tokenizer", zero_empty=True)


def test_a_damaged_weight_file_is_named(folder: Path, tmp_path: Path):
    broken = shutil.copytree(folder / "text_encoder", tmp_path / "text_encoder")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="text_encoder"):
        load_text_encoder(broken, folder / "tokenizer", zero_empty=True)
