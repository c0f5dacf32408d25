"""Converting: there and back the same tensors, in files that other software reads, whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import gguf
import pytest
import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer
from safetensors.torch import load_file
from torch import nn
from transformers import T5Config, T5EncoderModel

from daifuku.config import DiTConfig, LatentStats
from daifuku.errors import CheckpointError, InvalidRequest, ModelNotFound, UnwritableOutput
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.weights import publish
from daifuku.weights.contents import contents
from daifuku.weights.convert import plan_convert
from daifuku.weights.load import load_dit, load_vae
from daifuku.weights.names import name_table, to_theirs
from daifuku.weights.publish import Conversion
from daifuku.weights.save import save_dit, save_vae
from daifuku.weights.tensors import TensorFiles
from tests.unit.weights.weight_files import DIT, ENCODINGS, is_linear, small_dit, small_vae, write, write_gguf

T5 = T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")


def convert(source: Path, target: Path, to: str, **settings: Any) -> Conversion:
    planned = plan_convert(source, target, to=to, **settings)
    assert publish.run(planned) == target
    return planned


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original layout, in the precision that was published."""
    folder = tmp_path_factory.mktemp("original")
    save_dit(small_dit(), folder, layout="original", dtype="bfloat16")
    save_vae(small_vae(), folder, layout="original", dtype="bfloat16")
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("t5")
    T5EncoderModel(T5).save_pretrained(folder)
    return folder / "model.safetensors"


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit, with the same names and types."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


def assert_equal(one: nn.Module | None, other: nn.Module | None) -> None:
    assert one is not None and other is not None
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(("to", "there"), [("diffusers", "b"), ("comfy", "b"), ("comfy", "b.safetensors")])
def test_a_model_comes_back_bit_for_bit(bfloat16: Path, tmp_path: Path, to: str, there: str):
    convert(bfloat16, tmp_path / there, to)
    convert(tmp_path / there, tmp_path / "c", "original")
    for part in ("dit", "encoder", "decoder"):
        assert_same(bfloat16 / f"{part}.safetensors", tmp_path / "c" / f"{part}.safetensors")


def test_a_transformer_comes_back_from_gguf_bit_for_bit(bfloat16: Path, tmp_path: Path):
    convert(bfloat16, tmp_path / "a.gguf", "gguf")
    convert(tmp_path / "a.gguf", tmp_path / "c", "original")
    assert_same(bfloat16 / "dit.safetensors", tmp_path / "c" / "dit.safetensors")


@pytest.mark.parametrize(
    ("to", "there"),
    [("diffusers", "b"), ("comfy", "b"), ("comfy", "b.safetensors"), ("original", "b"), ("gguf", "b.gguf")],
)
def test_what_was_converted_loads_as_the_same_model_and_computes_the_same(
    bfloat16: Path, tmp_path: Path, to: str, there: str
):
    convert(bfloat16, tmp_path / there, to)
    one, other = load_dit(bfloat16), load_dit(tmp_path / there)
    assert_equal(other, one)
    latent, sigma = torch.randn(1, DIT.latent_channels, 2, 4, 4), torch.tensor([0.5])
    text, mask = torch.randn(1, 5, DIT.text_features), torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(one(latent, sigma, text, mask), other(latent, sigma, text, mask))
    if to != "gguf":
        assert_equal(load_vae(tmp_path / there), load_vae(bfloat16))


def test_diffusers_loads_a_converted_folder(bfloat16: Path, tmp_path: Path):
    convert(bfloat16, tmp_path / "b", "diffusers")
    dit = MochiTransformer3DModel.from_pretrained(tmp_path / "b", subfolder="transformer", torch_dtype=torch.bfloat16)
    vae = AutoencoderKLMochi.from_pretrained(tmp_path / "b", subfolder="vae", torch_dtype=torch.bfloat16)
    for folder, model in (("transformer", dit), ("vae", vae)):
        held = load_file(tmp_path / "b" / folder / "diffusion_pytorch_model.safetensors")
        found = model.state_dict()
        assert held.keys() == found.keys()
        assert all(torch.equal(tensor.to(found[name].dtype), found[name]) for name, tensor in held.items())
    index = json.loads((tmp_path / "b" / "model_index.json").read_text())
    # The original layout never lets an empty prompt take part.
    assert index["force_zeros_for_empty_prompt"] is True
    assert (tmp_path / "b" / "scheduler" / "scheduler_config.json").is_file()


def test_a_large_model_comes_in_shards(bfloat16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("daifuku.weights.convert.MAX_SHARD_BYTES", 200_000)
    convert(bfloat16, tmp_path / "b", "diffusers")
    assert len(list((tmp_path / "b" / "transformer").glob("*.safetensors"))) > 2
    assert_equal(load_dit(tmp_path / "b"), load_dit(bfloat16))
    MochiTransformer3DModel.from_pretrained(tmp_path / "b", subfolder="transformer")


@pytest.mark.parametrize("kind", ["bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_the_gguf_package_reads_what_is_written(bfloat16: Path, tmp_path: Path, kind: str):
    planned = convert(bfloat16, tmp_path / "a.gguf", "gguf", quantise=None if kind == "bf16" else kind)
    assert any("all other parts are left out" in note for note in planned.notes)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    field = reader.get_field("general.architecture")
    assert field is not None and field.contents() == "mochi"
    source = load_file(bfloat16 / "dit.safetensors")
    assert {tensor.name for tensor in reader.tensors} == source.keys()
    files = TensorFiles([tmp_path / "a.gguf"])
    for tensor in reader.tensors:
        exact = source[tensor.name]
        expected = kind.upper() if is_linear(tensor.name, exact) else "BF16" if exact.dtype == torch.bfloat16 else "F32"
        assert tensor.tensor_type.name == expected
        assert tuple(tensor.shape[::-1]) == tuple(exact.shape)
        numbers = torch.from_numpy(gguf.dequantize(tensor.data.copy(), tensor.tensor_type)).view(exact.shape)
        # Packed and unpacked by the package itself, without this writer and reader between.
        right = exact.float()
        if expected[0] == "Q":
            right = torch.from_numpy(
                gguf.dequantize(gguf.quantize(right.numpy(), tensor.tensor_type), tensor.tensor_type)
            )
        assert torch.equal(numbers, right)
        encoded = files.tensors[tensor.name]
        assert encoded.shape == exact.shape


def test_blocks_of_gguf_keep_their_bytes(bfloat16: Path, tmp_path: Path):
    tensors = load_file(bfloat16 / "dit.safetensors")
    path = write_gguf(tmp_path / "a.gguf", {name: tensor.float() for name, tensor in tensors.items()}, "Q4_0")
    convert(path, tmp_path / "b.gguf", "gguf")
    one, other = (gguf.GGUFReader(tmp_path / name) for name in ("a.gguf", "b.gguf"))
    data = {tensor.name: tensor for tensor in other.tensors}
    for tensor in one.tensors:
        assert tensor.tensor_type == data[tensor.name].tensor_type
        assert (tensor.data == data[tensor.name].data).all()


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("to", ["diffusers", "comfy", "gguf"])
def test_every_encoding_is_converted_to_what_it_decodes_to(bfloat16: Path, tmp_path: Path, name: str, to: str):
    exact = {key: tensor.float() for key, tensor in load_file(bfloat16 / "dit.safetensors").items()}
    path = write(tmp_path / "a.safetensors", ENCODINGS[name][0](exact))
    target = tmp_path / ("b.gguf" if to == "gguf" else "b")
    planned = convert(path, target, to)
    assert_equal(load_dit(target, dtype="bfloat16"), load_dit(path, dtype="bfloat16"))
    (found,) = contents(TensorFiles([target] if to == "gguf" else list(target.rglob("*.safetensors"))))
    kept = name in ("fp8 e4m3fn", "fp8 e5m2") and to != "gguf"
    kept = kept or (to == "comfy" and name in ("fp8 e4m3fn scaled", "fp8 of comfy_quant"))
    kept = kept or (to == "gguf" and name.endswith("in safetensors"))
    assert ("bfloat16" in found.encodings[0]) is not kept
    assert any("become bfloat16" in note for note in planned.notes) is not kept


def test_scaled_8_bit_floats_are_written_as_comfyui_has_them(bfloat16: Path, tmp_path: Path):
    convert(bfloat16, tmp_path / "a.safetensors", "comfy", quantise="fp8_scaled", only=["dit"])
    tensors, exact = load_file(tmp_path / "a.safetensors"), load_file(bfloat16 / "dit.safetensors")
    prefix = "model.diffusion_model."
    assert tensors.pop(f"{prefix}scaled_fp8").dtype == torch.float8_e4m3fn
    for name, right in exact.items():
        found = tensors.pop(prefix + name)
        if not is_linear(name, right):
            assert torch.equal(found, right)
            continue
        scale = tensors.pop(prefix + name.replace(".weight", ".scale_weight"))
        assert found.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32 and scale.shape == ()
        assert found.float().abs().max() == 448
        assert ((found.float() * scale - right.float()).abs() <= right.float().abs() / 15 + 2e-3 * scale).all()
    assert not tensors
    # Kept as they are, whatever else changes about the file.
    convert(tmp_path / "a.safetensors", tmp_path / "b", "comfy")
    assert_same(tmp_path / "a.safetensors", tmp_path / "b" / "diffusion_models" / "mochi.safetensors")


def test_nf4_is_written_as_bitsandbytes_saves_it(bfloat16: Path, tmp_path: Path):
    convert(bfloat16, tmp_path / "b", "diffusers", quantise="nf4")
    path = tmp_path / "b" / "transformer" / "diffusion_pytorch_model.safetensors"
    convert(bfloat16, tmp_path / "c", "diffusers")
    exact = load_file(tmp_path / "c" / "transformer" / "diffusion_pytorch_model.safetensors")
    linear = {name: tensor for name, tensor in exact.items() if is_linear(name, tensor)}
    # The test's own writer has a layer of bitsandbytes save itself.
    expected = ENCODINGS["NF4"][0](linear) | {name: exact[name] for name in exact.keys() - linear.keys()}
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if not name.endswith("bitsandbytes__nf4"):
            assert torch.equal(tensor.flatten(), expected[name].flatten()), name
    config = json.loads(path.with_name("config.json").read_text())["quantization_config"]
    with torch.device("meta"):
        model = MochiTransformer3DModel.from_config(json.loads(path.with_name("config.json").read_text()))
    others = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and f"{name}.weight" not in linear
    ]
    assert all(name.split(".")[0] in config["llm_int8_skip_modules"] for name in others)
    assert load_dit(tmp_path / "b", encoded=True).config == DIT


def test_diffusers_loads_nf4(bfloat16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # It insists on a GPU, though bitsandbytes does without.
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda self, *given, **named: None)
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "update_device_map", lambda self, device_map: {"": "cpu"})
    convert(bfloat16, tmp_path / "b", "diffusers", quantise="nf4")
    model = MochiTransformer3DModel.from_pretrained(tmp_path / "b", subfolder="transformer", torch_dtype=torch.float32)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}
    # The last block has three fewer than the other.
    assert len(layers) == 14 + 11
    ours = load_dit(tmp_path / "b").state_dict()
    table = name_table("dit", "diffusers", ours)
    # On a CPU bitsandbytes misreads rows that are no multiple of a block.
    whole = {name: layer for name, layer in layers.items() if layer.in_features % 64 == 0}
    assert len(whole) == 3
    for name, layer in whole.items():
        mine = table.ours(f"{name}.weight")
        assert mine is not None
        stored = table.stored(mine)
        right = to_theirs(stored, ours[mine])[stored.names.index(f"{name}.weight")]
        found = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        # It computes in bfloat16, and rounds more than once: far less than from one level to the next.
        assert torch.allclose(found.float(), right, atol=0, rtol=2**-6), name


def test_a_precision_is_of_all_weights_but_8_bits_only_of_large_ones(bfloat16: Path, tmp_path: Path):
    convert(bfloat16, tmp_path / "a", "original", dtype="float16")
    convert(bfloat16, tmp_path / "b", "original", dtype="fp8")
    for name, tensor in load_file(bfloat16 / "dit.safetensors").items():
        half, small = (load_file(tmp_path / folder / "dit.safetensors")[name] for folder in "ab")
        if name == "pos_frequencies":
            assert half.dtype == small.dtype == torch.float32
            continue
        assert half.dtype == torch.float16
        assert small.dtype == (torch.float8_e4m3fn if is_linear(name, tensor) else torch.bfloat16)
    assert load_file(tmp_path / "b" / "decoder.safetensors")["output_proj.weight"].dtype == torch.bfloat16


def test_8_bit_floats_saturate(bfloat16: Path, tmp_path: Path):
    tensors = load_file(bfloat16 / "dit.safetensors")
    tensors["blocks.0.attn.qkv_x.weight"][0, 0] = -1000
    write(tmp_path / "a" / "dit.safetensors", tensors)
    convert(tmp_path / "a", tmp_path / "b", "original", dtype="fp8")
    assert load_file(tmp_path / "b" / "dit.safetensors")["blocks.0.attn.qkv_x.weight"][0, 0] == -448


def test_a_t5_goes_from_one_file_to_a_folder_that_transformers_loads_and_back(t5: Path, tmp_path: Path):
    tensors = load_file(t5)
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    write(tmp_path / "t5.safetensors", tensors)
    convert(tmp_path / "t5.safetensors", tmp_path / "b", "diffusers", only=["text"])
    loaded = T5EncoderModel.from_pretrained(tmp_path / "b" / "text_encoder")
    assert_equal(loaded, T5EncoderModel.from_pretrained(t5.parent))
    convert(tmp_path / "b", tmp_path / "c.safetensors", "comfy", only=["text"])
    assert_same(tmp_path / "c.safetensors", t5)


def test_a_whole_model_becomes_one_checkpoint_or_a_folder_with_its_tokenizer(bfloat16: Path, t5: Path, tmp_path: Path):
    (tmp_path / "a").mkdir()
    for path in (*bfloat16.glob("*.safetensors"), t5):
        os.link(path, tmp_path / "a" / path.name)
    (tmp_path / "a" / "spiece.model").write_bytes(b"a tokenizer")
    planned = convert(tmp_path / "a", tmp_path / "b.safetensors", "comfy")
    assert any("a tokenizer and defaults of requests have no place" in note for note in planned.notes)
    found = {content.part: content.prefix for content in contents(TensorFiles([tmp_path / "b.safetensors"]))}
    assert found == {
        "dit": "model.diffusion_model.",
        "encoder": "vae.encoder.",
        "decoder": "vae.decoder.",
        "text": "text_encoders.t5xxl.transformer.",
    }
    for to in ("original", "diffusers", "comfy"):
        convert(tmp_path / "a", tmp_path / to, to)
        assert (tmp_path / to / "tokenizer" / "spiece.model").read_bytes() == b"a tokenizer"


def test_defaults_of_a_model_come_along(bfloat16: Path, tmp_path: Path):
    os.link(bfloat16 / "dit.safetensors", tmp_path / "dit.safetensors")
    (tmp_path / "generation_config.json").write_text('{"height": 16}')
    convert(tmp_path, tmp_path / "b", "diffusers")
    assert json.loads((tmp_path / "b" / "generation_config.json").read_text()) == {"height": 16}


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(("to", "name"), [("diffusers", "b"), ("comfy", "b.safetensors"), ("gguf", "b.gguf")])
def test_a_failure_in_the_middle_leaves_what_was_there_before(
    bfloat16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, name: str, there: bool
):
    if there:
        convert(bfloat16, tmp_path / name, to, dtype="float16")
    before = files_below(tmp_path)
    planned = plan_convert(bfloat16, tmp_path / name, to=to, force=True)
    seen = 0

    def stop(num_bytes: int) -> None:
        nonlocal seen
        seen += num_bytes
        if seen > planned.num_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish.run(planned, stop)
    assert files_below(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ([name] if there else [])
    assert publish.run(planned) == tmp_path / name
    assert files_below(tmp_path) != before


def test_all_bytes_are_reported(bfloat16: Path, tmp_path: Path):
    planned = plan_convert(bfloat16, tmp_path / "b", to="diffusers")
    told: list[int] = []
    publish.run(planned, told.append)
    assert sum(told) == planned.num_bytes


def test_nothing_is_replaced_that_was_not_meant(bfloat16: Path, tmp_path: Path):
    with pytest.raises(UnwritableOutput, match="is, or contains, what is to be converted"):
        plan_convert(bfloat16, bfloat16, to="diffusers", force=True)
    with pytest.raises(UnwritableOutput, match="is, or contains, what is to be converted"):
        plan_convert(bfloat16, bfloat16.parent, to="diffusers", force=True)
    (tmp_path / "b").mkdir()
    with pytest.raises(UnwritableOutput, match="is there already; give another OUT, or --force"):
        plan_convert(bfloat16, tmp_path / "b", to="diffusers")
    plan_convert(bfloat16, tmp_path / "b", to="diffusers", force=True)
    (tmp_path / "b" / "thesis.txt").write_text("")
    with pytest.raises(UnwritableOutput, match=r"holds 'thesis.txt', which is no part of a model"):
        plan_convert(bfloat16, tmp_path / "b", to="diffusers", force=True)
    (tmp_path / "c.gguf").mkdir()
    with pytest.raises(UnwritableOutput, match=r"c.gguf is a folder, and is not replaced by a file"):
        plan_convert(bfloat16, tmp_path / "c.gguf", to="gguf", force=True)


def test_a_full_disk_is_told_before_anything_is_written(
    bfloat16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage())
    with pytest.raises(UnwritableOutput, match=r"0\.00 GB are to be written and .* has 0\.00 GB free"):
        plan_convert(bfloat16, tmp_path / "b", to="diffusers")


class Usage:
    """Of a disk."""

    free = 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "onnx"}, "no --to 'onnx': choose one of original, diffusers, comfy, gguf"),
        ({"to": "comfy", "dtype": "int3"}, "no --dtype 'int3': choose one of float32"),
        ({"to": "gguf", "quantise": "fp8_scaled"}, "fp8_scaled is written with --to comfy.*this layout holds q8_0"),
        ({"to": "original", "quantise": "q8_0"}, "q8_0 is written with --to gguf.*this layout holds --dtype fp8"),
        ({"to": "gguf", "dtype": "fp8"}, "try --quantise q8_0"),
        ({"to": "comfy", "only": ["audio"]}, "no part 'audio': its parts are dit, vae, text"),
        ({"to": "gguf"}, "call it b.gguf"),
        ({"to": "gguf", "only": ["vae"]}, "b will be a .gguf file"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_what_does(
    bfloat16: Path, tmp_path: Path, settings: dict[str, Any], message: str
):
    with pytest.raises(InvalidRequest, match=message):
        plan_convert(bfloat16, tmp_path / "b", **settings)


def test_a_layout_that_cannot_hold_a_model_is_refused(tmp_path: Path, bfloat16: Path):
    stats = LatentStats(mean=(0.0,) * 12, std=(1.0,) * 12)
    vae = small_vae()
    save_vae(AsymmVAE(vae.encoder, vae.decoder, stats), tmp_path)
    with pytest.raises(InvalidRequest, match="latent statistics of its own"):
        plan_convert(tmp_path, tmp_path / "b", to="original")
    with pytest.raises(InvalidRequest, match="holds a whole VAE, and one half is absent"):
        plan_convert(bfloat16 / "decoder.safetensors", tmp_path / "b", to="diffusers")
    with pytest.raises(ModelNotFound, match="holds no transformer"):
        plan_convert(bfloat16 / "decoder.safetensors", tmp_path / "b.gguf", to="gguf")


def test_a_damaged_model_is_refused_before_anything_is_written(bfloat16: Path, tmp_path: Path):
    tensors = load_file(bfloat16 / "dit.safetensors")
    del tensors["final_layer.mod.bias"]
    write(tmp_path / "dit.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"1 missing: final_layer.mod.bias"):
        plan_convert(tmp_path, tmp_path / "b", to="diffusers")


# Peak resident memory while converting, in bytes above what was there before.
MEASURE = """
import re, sys
from pathlib import Path
from daifuku.weights.convert import plan_convert
from daifuku.weights.publish import run

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

source, target, to, *quantise = sys.argv[1:]
run(plan_convert(source + "/tiny", target + "0" + Path(target).suffix, to=to, quantise=next(iter(quantise), None)))
before = peak()
run(plan_convert(source + "/wide", target, to=to, quantise=next(iter(quantise), None)))
print(peak() - before)
"""

WIDE = DiTConfig(
    num_blocks=9, num_heads=4, head_dim=128, text_width=256, video_mlp_width=1365, text_mlp_width=682, text_features=64
)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("to", "name", "quantise"),
    [("diffusers", "b", ()), ("comfy", "b.safetensors", ("fp8_scaled",)), ("gguf", "b.gguf", ("q8_0",))],
)
def test_converting_takes_memory_for_a_few_of_its_tensors_only(
    tmp_path: Path, to: str, name: str, quantise: tuple[str, ...]
):
    with torch.device("meta"):
        model = AsymmDiT(WIDE)
    save_dit(model.to_empty(device="cpu"), tmp_path / "wide", layout="original")
    save_dit(small_dit(), tmp_path / "tiny", layout="original")
    assert (tmp_path / "wide" / "dit.safetensors").stat().st_size > 190 * 2**20
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(tmp_path / name), to, *quantise]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # The largest tensor has 6 MiB.
    assert taken < 40 * 2**20
