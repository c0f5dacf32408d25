"""Every packaging and encoding of a transformer and a VAE loads to the same tensors, or within its bound."""

from pathlib import Path

import gguf
import pytest
import torch

from daifuku.errors import CheckpointError, ModelNotFound
from daifuku.model.dit import AsymmDiT
from daifuku.weights.contents import contents
from daifuku.weights.encoded_linear import EncodedLinear
from daifuku.weights.load import decoder_sizes, load_dit, load_vae, open_dit
from daifuku.weights.locate import locate
from daifuku.weights.names import Layout
from daifuku.weights.tensors import TensorFiles
from tests.unit.weights.weight_files import (
    DIT,
    ENCODINGS,
    WIDE,
    Tensors,
    block_bytes,
    dit_tensors,
    is_linear,
    prefixed,
    small_dit,
    small_vae,
    vae_tensors,
    write,
    write_gguf,
)

LAYOUTS: tuple[Layout, ...] = ("original", "diffusers")
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")


@pytest.fixture(scope="module")
def dit() -> AsymmDiT:
    return small_dit()


@pytest.fixture(scope="module")
def published(dit: AsymmDiT, tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Tensors]:
    return {layout: dit_tensors(dit, tmp_path_factory.mktemp(layout), layout) for layout in LAYOUTS}


def assert_equal(one: torch.nn.Module | None, other: torch.nn.Module | None) -> None:
    assert one is not None and other is not None
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def assert_close(one: torch.nn.Module, other: torch.nn.Module, bound: float) -> None:
    """Every tensor, by its relative error as a Euclidean norm."""
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        assert (tensor - expected[name]).norm() <= bound * expected[name].norm(), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_transformer_loads_whatever_its_names_begin_with(
    dit: AsymmDiT, published: dict[Layout, Tensors], tmp_path: Path, layout: Layout, prefix: str
):
    path = write(tmp_path / "any name.safetensors", prefixed(prefix, published[layout]))
    assert_equal(load_dit(path), dit)
    (found,) = contents(TensorFiles([path]))
    place = f" under {prefix}" if prefix else ""
    assert str(found) == f"transformer, {layout} names{place}, float32"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_loads_within_its_bound(
    dit: AsymmDiT, published: dict[Layout, Tensors], tmp_path: Path, layout: Layout, name: str
):
    encode, bound = ENCODINGS[name]
    path = write(tmp_path / "a.safetensors", prefixed("model.diffusion_model.", encode(published[layout])))
    assert_close(load_dit(path), dit, bound)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ENCODINGS)
def test_layers_that_keep_their_encoding_compute_what_decoded_ones_do(
    published: dict[Layout, Tensors], tmp_path: Path, layout: Layout, name: str
):
    path = write(tmp_path / "a.safetensors", ENCODINGS[name][0](published[layout]))
    decoded, kept = load_dit(path), load_dit(path, encoded=True)
    layers = {name: layer for name, layer in kept.named_modules() if isinstance(layer, EncodedLinear)}
    assert len(layers) == len([name for name in published["original"] if is_linear(name, published["original"][name])])
    for name, layer in layers.items():
        assert torch.equal(layer.dequantised(torch.float32), decoded.get_parameter(f"{name}.weight")), name
    stored = sum(tensor.nbytes for layer in layers.values() for tensor in layer.buffers())
    assert stored < 0.3 * sum(decoded.get_parameter(f"{name}.weight").nbytes for name in layers)
    latent, sigma = torch.randn(1, DIT.latent_channels, 2, 4, 4), torch.tensor([0.5])
    text, mask = torch.randn(1, 5, DIT.text_features), torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(kept(latent, sigma, text, mask), decoded(latent, sigma, text, mask))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_the_gguf_package_loads_within_its_bound(
    dit: AsymmDiT, published: dict[Layout, Tensors], tmp_path: Path, kind: str, layout: Layout
):
    path = write_gguf(tmp_path / "a.gguf", published[layout], kind)
    bounds = {"F32": 0.0, "F16": 0.001, "Q8_0": 0.01, "Q5_0": 0.06, "Q5_1": 0.06}
    assert_close(load_dit(path), dit, bounds.get(kind, 0.12))
    assert (open_dit(path).stored is None) == (kind in ("F32", "F16"))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "IQ4_NL", "IQ4_XS"])
def test_every_type_of_gguf_is_unpacked_as_its_package_does(tmp_path: Path, kind: str):
    published = dit_tensors(small_dit(WIDE), tmp_path, "original")
    path = write_gguf(tmp_path / "a.gguf", published, kind)
    packed = block_bytes(kind, published["blocks.0.attn.qkv_x.weight"]).numpy()
    expected = torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind]))
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(load_dit(path).blocks[0].get_parameter("attention.video_qkv.weight"), expected)
    kept = load_dit(path, encoded=True).blocks[0].get_submodule("attention.video_qkv")
    # What only the package unpacks, on a CPU, is not kept.
    assert isinstance(kept, EncodedLinear) == kind.endswith("_K")


def test_a_file_is_described_by_its_tensors(published: dict[Layout, Tensors], tmp_path: Path):
    fp8 = ENCODINGS["fp8 e4m3fn scaled"][0](published["original"])
    path = write(tmp_path / "a.safetensors", prefixed("model.diffusion_model.", fp8))
    (found,) = contents(TensorFiles([path]))
    assert str(found) == "transformer, original names under model.diffusion_model., fp8 e4m3fn scaled and bfloat16"
    stored = open_dit(path).stored
    assert stored is not None and stored.words == "fp8 e4m3fn scaled" and 8 < stored.bits < 8.1


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_one_file_holds_a_whole_model(dit: AsymmDiT, published: dict[Layout, Tensors], tmp_path: Path, prefix: str):
    vae = small_vae()
    tensors = prefixed(prefix, published["original"])
    for half in ("encoder", "decoder"):
        tensors |= prefixed(f"vae.{half}.", vae_tensors(vae, tmp_path / "vae", half))
    tensors |= {"vae.scale": torch.ones(())} if prefix else {}
    path = write(tmp_path / "all.safetensors", tensors)
    assert_equal(load_dit(path), dit)
    assert_equal(load_vae(path), vae)


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize("parts", [("vae",), ("encoder", "decoder"), ("decoder",), ("encoder",)])
def test_a_vae_loads_from_every_packaging(tmp_path: Path, prefix: str, parts: tuple[str, ...]):
    vae, tensors = small_vae(), dict[str, torch.Tensor]()
    for part in parts:
        # A combined file keeps the halves apart by name.
        inner = "" if len(parts) == 1 else f"{part}."
        tensors |= prefixed(prefix + inner, vae_tensors(vae, tmp_path / "vae", part))
    loaded = load_vae(write(tmp_path / "a.safetensors", tensors))
    halves = parts if parts != ("vae",) else ("encoder", "decoder")
    for half in ("encoder", "decoder"):
        assert (getattr(loaded, half) is not None) == (half in halves)
        if half in halves:
            assert_equal(getattr(loaded, half), getattr(vae, half))


def test_the_wrong_half_of_a_vae_is_named(tmp_path: Path):
    path = write(tmp_path / "vae.safetensors", vae_tensors(small_vae(), tmp_path / "x", "encoder"))
    message = r"there is no VAE decoder: \S*vae.safetensors holds the VAE encoder, original names, float32"
    with pytest.raises(ModelNotFound, match=message):
        load_vae(path, halves=["decoder"])
    with pytest.raises(ModelNotFound, match=message):
        decoder_sizes(locate(path, parts=["vae"]))


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"comfy_quant": b'{"format": "nvfp4"}', "weight": torch.zeros(288, 48, dtype=torch.uint8)}, "'nvfp4'"),
        ({"comfy_quant": b"{"}, "is no JSON"),
        ({"comfy_quant": b"[]"}, "is no JSON object"),
        ({"scale_weight": torch.ones(3)}, r"its scale \[3\]"),
        ({"SCB": torch.ones(288)}, "should be 8-bit whole numbers"),
        ({"weight.quant_state.bitsandbytes__nf4": b'{"shape": [288, 96]}'}, "is not whole"),
        (
            {
                "weight.quant_state.bitsandbytes__nf4": b'{"shape": [288, 96], "blocksize": 64}',
                "weight.absmax": torch.ones(2),
                "weight.quant_map": torch.ones(16),
            },
            "does not fit its weight",
        ),
        ({"Q4_0_qweight": torch.zeros(288, 17, dtype=torch.uint8)}, "multiple of 18"),
    ],
)
def test_an_encoding_that_makes_no_sense_is_refused(
    published: dict[Layout, Tensors], tmp_path: Path, change: dict[str, bytes | torch.Tensor], problem: str
):
    layer, tensors = "blocks.0.attn.qkv_x", dict(published["original"])
    for name, value in change.items():
        as_bytes = isinstance(value, bytes)
        tensors[f"{layer}.{name}"] = torch.tensor(list(value), dtype=torch.uint8) if as_bytes else value
    with pytest.raises(CheckpointError, match=problem):
        load_dit(write(tmp_path / "a.safetensors", tensors))
