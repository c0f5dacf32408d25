"""Writers of the files that people have: the same small models in every packaging and encoding."""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from daifuku.config import MOCHI_STATS, DecoderConfig, DiTConfig, EncoderConfig
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.weights.names import Layout
from daifuku.weights.save import save_dit, save_vae

Tensors = dict[str, Tensor]

DIT = DiTConfig(
    num_blocks=2, num_heads=2, head_dim=48, text_width=96, video_mlp_width=256, text_mlp_width=256, text_features=32
)
"""Its rows are blocks of 32 numbers, in either layout."""

WIDE = DiTConfig(
    num_blocks=2, num_heads=4, head_dim=64, text_width=256, video_mlp_width=256, text_mlp_width=256, text_features=32
)
"""Its rows are blocks of 256 numbers."""

CHANNELS, NUM_BLOCKS = (32, 32, 64, 32), (0, 1, 1, 0, 1)


def small_dit(config: DiTConfig = DIT) -> AsymmDiT:
    torch.manual_seed(0)
    model = AsymmDiT(config)
    torch.nn.init.normal_(model.pos_frequencies)
    return model


def small_vae() -> AsymmVAE:
    torch.manual_seed(0)
    encoder = EncoderConfig(channels=CHANNELS, num_blocks=NUM_BLOCKS, attention=(False, True, True, False, True))
    return AsymmVAE(Encoder(encoder), Decoder(DecoderConfig(channels=CHANNELS, num_blocks=NUM_BLOCKS)), MOCHI_STATS)


def dit_tensors(model: AsymmDiT, folder: Path, layout: Layout) -> Tensors:
    """As a file of that layout names them."""
    save_dit(model, folder, layout=layout)
    return load_file(next(folder.rglob("*.safetensors")))


def vae_tensors(model: AsymmVAE, folder: Path, part: str) -> Tensors:
    """One half in the original layout, or "vae": both in the diffusers layout."""
    save_vae(model, folder, layout="diffusers" if part == "vae" else "original")
    name = "vae/diffusion_pytorch_model" if part == "vae" else part
    return load_file(folder / f"{name}.safetensors")


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def is_linear(name: str, tensor: Tensor) -> bool:
    """Weights that tools quantise: those inside the blocks of a transformer or a T5."""
    return "block" in name and name.endswith(".weight") and tensor.dim() == 2 and min(tensor.shape) > 8


def write(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _json_bytes(content: object) -> Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def each_linear(change: Callable[[str, Tensor], Tensors]) -> Callable[[Tensors], Tensors]:
    """A way to encode a file: what becomes of each linear weight, by the name of its layer; the rest is bfloat16."""

    def encode(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, tensor in tensors.items():
            if is_linear(name, tensor):
                found |= change(name.removesuffix(".weight"), tensor)
            else:
                found[name] = tensor if name.endswith("pos_frequencies") else tensor.bfloat16()
        return found

    return encode


def _fp8_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max() / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale


def _fp8(layer: str, weight: Tensor) -> Tensors:
    return {f"{layer}.weight": weight.to(torch.float8_e4m3fn)}


def _e5m2(layer: str, weight: Tensor) -> Tensors:
    return {f"{layer}.weight": weight.to(torch.float8_e5m2)}


def _fp8_scaled(layer: str, weight: Tensor) -> Tensors:
    codes, scale = _fp8_codes(weight)
    return {f"{layer}.weight": codes, f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.ones(())}


def _fp8_marked(tensors: Tensors) -> Tensors:
    return each_linear(_fp8_scaled)(tensors) | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def _fp8_rows(layer: str, weight: Tensor) -> Tensors:
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    return {f"{layer}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{layer}.weight_scale": scale}


def _comfy(layer: str, weight: Tensor) -> Tensors:
    codes, scale = _fp8_codes(weight)
    about = _json_bytes({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
    return {f"{layer}.weight": codes, f"{layer}.weight_scale": scale.reshape(1), f"{layer}.comfy_quant": about}


def _four_bit(kind: str, nested: bool) -> Callable[[str, Tensor], Tensors]:
    """As a layer of bitsandbytes saves itself."""

    def change(layer: str, weight: Tensor) -> Tensors:
        nn = import_module("bitsandbytes").nn
        linear = nn.Linear4bit(*weight.shape[::-1], bias=False, quant_type=kind, compress_statistics=nested)
        linear.weight = nn.Params4bit(
            weight.clone(), requires_grad=False, quant_type=kind, compress_statistics=nested, module=linear
        )
        return prefixed(f"{layer}.", linear.to("cpu").state_dict())

    return change


def _int8(layer: str, weight: Tensor) -> Tensors:
    nn = import_module("bitsandbytes").nn
    linear = nn.Linear8bitLt(*weight.shape[::-1], bias=False, has_fp16_weights=False)
    linear.weight = nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    return prefixed(f"{layer}.", linear.to("cpu").state_dict())


def block_bytes(kind: str, weight: Tensor) -> Tensor:
    """As the package gguf packs it, which does not pack all that it unpacks: other types get blocks of noise."""
    try:
        packed = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    except NotImplementedError:
        length, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        packed = np.random.default_rng(0).integers(0, 60, (weight.shape[0], weight.shape[1] // length * width), "uint8")
        # Small codes everywhere make small scales too, and no number that is not finite.
    return torch.from_numpy(packed)


def _pseudo_gguf(kind: str) -> Callable[[str, Tensor], Tensors]:
    return lambda layer, weight: {f"{layer}.{kind}_qweight": block_bytes(kind, weight)}


ENCODINGS: Mapping[str, tuple[Callable[[Tensors], Tensors], float]] = {
    "fp8 e4m3fn": (each_linear(_fp8), 0.04),
    "fp8 e5m2": (each_linear(_e5m2), 0.08),
    "fp8 e4m3fn scaled": (_fp8_marked, 0.04),
    "fp8 scaled by row": (each_linear(_fp8_rows), 0.04),
    "fp8 of comfy_quant": (each_linear(_comfy), 0.04),
    "NF4": (each_linear(_four_bit("nf4", nested=False)), 0.11),
    "NF4 nested": (each_linear(_four_bit("nf4", nested=True)), 0.11),
    "FP4": (each_linear(_four_bit("fp4", nested=False)), 0.17),
    "int8": (each_linear(_int8), 0.01),
    "Q4_0 in safetensors": (each_linear(_pseudo_gguf("Q4_0")), 0.11),
    "Q8_0 in safetensors": (each_linear(_pseudo_gguf("Q8_0")), 0.01),
}
"""By name: how a file is encoded, and the largest relative error (a Euclidean norm) of a weight that was normal."""


def write_gguf(path: Path, tensors: Mapping[str, Tensor], kind: str, arch: str = "mochi") -> Path:
    """As the package gguf writes it: linear weights of a type, all others float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    for name, tensor in tensors.items():
        as_blocks = kind not in ("F32", "F16") and (is_linear(name, tensor) or (".blk." in name and tensor.dim() == 2))
        if as_blocks and tensor.shape[-1] % 32 == 0:
            packed = block_bytes(kind, tensor).numpy()
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, (tensor.half() if kind == "F16" else tensor.float()).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
