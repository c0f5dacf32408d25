"""T5 encoders in single files, and models put together from files of any name."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel

from daifuku.config import RuntimeConfig
from daifuku.errors import CheckpointError, ModelNotFound
from daifuku.pipeline import load
from daifuku.runtime.build import BUILT_IN_FOLDER, load_parts
from daifuku.text import TextEncoder
from daifuku.text.t5 import is_tied, t5_encoder, tie
from daifuku.weights import hub
from daifuku.weights.load import load_dit, load_vae, open_text, text_shapes
from daifuku.weights.locate import locate
from daifuku.weights.sizes import t5_sizes
from tests.unit.weights.weight_files import (
    DIT,
    ENCODINGS,
    Tensors,
    dit_tensors,
    prefixed,
    small_dit,
    small_vae,
    vae_tensors,
    write,
    write_gguf,
)

LLAMA = {
    "encoder.final_layer_norm": "enc.output_norm",
    "encoder.block": "enc.blk",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.SelfAttention": "attn",
    "layer.0.layer_norm": "attn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
    "layer.1.layer_norm": "ffn_norm",
    "shared": "token_embd",
}
"""What the converter of llama.cpp does to names."""

PROMPT = "a small red ball is bouncing"


@pytest.fixture(scope="module")
def t5() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "d_model": 32, "d_kv": 32, "d_ff": 64, "num_layers": 2, "num_heads": 3}
    model: Any = T5EncoderModel(T5Config.from_dict({**sizes, "feed_forward_proj": "gated-gelu"}))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def tensors(t5: Any, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    folder = tmp_path_factory.mktemp("t5")
    t5.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A lone file."""
    return Path(shutil.copy(BUILT_IN_FOLDER / "tokenizer" / "tokenizer.json", tmp_path))


def llama_names(tensors: Tensors) -> Tensors:
    found: Tensors = {}
    for name, tensor in tensors.items():
        for theirs, llama in LLAMA.items():
            name = name.replace(theirs, llama)
        found[name.replace("attn.", "attn_")] = tensor
    return found


def read(path: Path, *, encoded: bool = False) -> Any:
    unread = open_text([path], lambda shapes: t5_encoder(t5_sizes(shapes)), dtype="float32", device="cpu")
    model = unread.load(without=is_tied, encoded=encoded)
    tie(model)
    return model


def features(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


@pytest.mark.parametrize("twice", [False, True])
def test_a_t5_in_one_file_computes_what_transformers_does(t5: Any, tensors: Tensors, tmp_path: Path, twice: bool):
    more = {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(3), "spiece_model": torch.zeros(9).byte()}
    more |= {"encoder.embed_tokens.weight": tensors["shared.weight"].clone()} if twice else {}
    path = write(tmp_path / "a.safetensors", prefixed("text_encoders.t5xxl.transformer.", tensors | more))
    assert torch.equal(features(read(path)), features(t5))
    assert text_shapes([path]) == {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("name", ENCODINGS)
def test_an_encoded_t5_is_near(t5: Any, tensors: Tensors, tmp_path: Path, name: str, encoded: bool):
    encode, bound = ENCODINGS[name]
    found = features(read(write(tmp_path / "a.safetensors", encode(tensors)), encoded=encoded))
    exact = features(t5)
    # Errors of seven layers in each of two blocks add up.
    assert (found - exact).norm() < 4 * bound * exact.norm()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_a_t5_of_llama_cpp_loads(t5: Any, tensors: Tensors, tmp_path: Path, kind: str):
    path = write_gguf(tmp_path / "a.gguf", llama_names(tensors), kind, arch="t5encoder")
    found, exact = features(read(path)), features(t5)
    bounds = {"F32": 0.0, "F16": 0.002, "Q8_0": 0.03, "Q4_0": 0.4}
    assert (found - exact).norm() <= bounds[kind] * exact.norm()


def test_a_t5_that_is_not_whole_is_named_by_the_files_own_names(tensors: Tensors, tmp_path: Path):
    gone = {name: tensor for name, tensor in llama_names(tensors).items() if name != "enc.blk.1.ffn_up.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing: enc\.blk\.1\.ffn_up\.weight"):
        read(write_gguf(tmp_path / "a.gguf", gone, "F32"))
    gone = {name: tensor for name, tensor in tensors.items() if name != "shared.weight"}
    with pytest.raises(CheckpointError, match=r"encoder\.embed_tokens\.weight is missing"):
        read(write(tmp_path / "a.safetensors", gone))


@pytest.fixture
def parts(tensors: Tensors, tmp_path: Path) -> Path:
    """A folder in which other software keeps its files, quantised as they mostly are."""
    root, rest = tmp_path / "models", tmp_path / "rest"
    fp8 = ENCODINGS["fp8 e4m3fn scaled"][0]
    write(root / "diffusion_models" / "one.safetensors", fp8(dit_tensors(small_dit(), rest, "original")))
    for half in ("encoder", "decoder"):
        write(root / "vae" / f"{half} of it.safetensors", vae_tensors(small_vae(), rest, half))
    write(root / "text_encoders" / "two.safetensors", fp8(tensors))
    shutil.copy(BUILT_IN_FOLDER / "tokenizer" / "tokenizer.json", root)
    return root


def test_a_folder_of_files_of_any_name_is_a_model(parts: Path, tensors: Tensors):
    (parts / "generation_config.json").write_text('{"preset": "fast8"}')
    found = locate(parts)
    assert [path.name for path in found.transformer] == ["one.safetensors"] and found.zero_empty
    assert [path.name for path in found.text_weights] == ["two.safetensors"]
    assert found.tokenizer == parts / "tokenizer.json" and found.text_encoder is None
    assert load_dit(parts).config == DIT and load_vae(parts).encoder is not None
    pipeline = load(parts, device="cpu")
    text = pipeline.parts.text(RuntimeConfig(), torch.device("cpu"))
    assert isinstance(text, TextEncoder) and text.encode([PROMPT]).features.shape[-1] == 32
    sizes = pipeline.parts.sizes()
    assert sizes.text_parameters == sum(tensor.numel() for tensor in tensors.values())


def test_the_preset_of_distilled_weights_stands_beside_them(parts: Path):
    (parts / "generation_config.json").write_text('{"preset": "fast8"}')
    from daifuku.request import GenerateRequest

    resolved = load(parts, device="cpu").resolve(GenerateRequest(prompt=PROMPT))
    assert resolved.preset == "fast8" and resolved.num_inference_steps == 8


def test_a_model_of_files_of_any_name_makes_a_video(parts: Path):
    video = load(parts, device="cpu")(PROMPT, width=32, height=32, num_frames=7, num_inference_steps=2, seed=1)
    assert video.frames.shape == (7, 32, 32, 3)


def test_one_file_is_a_model_with_a_tokenizer_beside_it(tensors: Tensors, tmp_path: Path, tokenizer: Path):
    whole = prefixed("model.diffusion_model.", dit_tensors(small_dit(), tmp_path / "x", "original"))
    whole |= prefixed("vae.", vae_tensors(small_vae(), tmp_path / "x", "vae"))
    whole |= prefixed("text_encoders.t5xxl.transformer.", tensors)
    path = write(tmp_path / "all in one.safetensors", whole)
    files = locate(path)
    assert files.transformer == files.vae == files.text_weights == (path,) and files.tokenizer == tokenizer
    parts = load_parts(path, device="cpu")
    assert parts.text(RuntimeConfig(), torch.device("cpu")).encode([PROMPT]).features.shape[-1] == 32
    assert parts.identity() is not None and parts.sizes().dit == DIT


def test_two_files_of_one_part_are_told_apart_by_the_user(parts: Path):
    shutil.copy(parts / "diffusion_models" / "one.safetensors", parts / "unet.safetensors")
    with pytest.raises(ModelNotFound, match=r"holds 2 transformers: unet.safetensors, diffusion_models.one"):
        locate(parts)


def test_a_part_that_no_file_holds_is_named_with_those_that_are_there(parts: Path):
    shutil.rmtree(parts / "vae")
    with pytest.raises(ModelNotFound, match="holds the vae of a Mochi model; there is the transformer in"):
        locate(parts)


def test_a_t5_without_tokenizer_says_what_to_put_where(parts: Path, monkeypatch: pytest.MonkeyPatch):
    def nothing(*_: Any, **__: Any) -> Path:
        raise ModelNotFound("the cache of the hub is empty")

    monkeypatch.setattr(hub, "download", nothing)
    (parts / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"spiece\.model or tokenizer\.json of genmo/mochi-1-preview into .*models"):
        locate(parts)


def test_a_diffusers_folder_may_have_its_t5_in_one_file(tensors: Tensors, tmp_path: Path):
    dit_tensors(small_dit(), tmp_path, "diffusers")
    vae_tensors(small_vae(), tmp_path, "vae")
    path = write(tmp_path / "text_encoder" / "anything.safetensors", tensors)
    shutil.copytree(BUILT_IN_FOLDER / "tokenizer", tmp_path / "tokenizer")
    files = locate(tmp_path)
    assert files.text_weights == (path,) and files.text_encoder is None and files.tokenizer == tmp_path / "tokenizer"
