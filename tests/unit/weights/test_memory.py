"""Loading must not hold the weights twice."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from daifuku.config import DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.weights.names import Layout
from daifuku.weights.save import save_dit

# Peak resident memory while loading and then reading every page of the weights, in bytes above what was there before.
MEASURE = """
import re, sys
from pathlib import Path
import torch
from daifuku.weights.load import load_dit

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
model = load_dit(sys.argv[1], dtype=sys.argv[2], encoded=sys.argv[3:] == ["encoded"])
for tensor in model.state_dict().values():
    tensor.flatten().view(torch.uint8)[::1024].max()
print(peak() - before)
"""

ONE_TENSOR_MORE = 24 * 2**20
"""Room for the tensor that is being converted, in both precisions, and for what Python allocates meanwhile."""

WIDE = DiTConfig(
    num_blocks=9, num_heads=4, head_dim=128, text_width=256, video_mlp_width=1365, text_mlp_width=682, text_features=64
)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path, layout: Layout, dtype: str):
    with torch.device("meta"):
        model = AsymmDiT(WIDE)
    model.to_empty(device="cpu")
    save_dit(model, tmp_path, layout=layout)
    num_bytes = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert num_bytes > 190 * 2**20
    weights = num_bytes if dtype == "float32" else num_bytes // 2
    assert 0.8 * weights < peak(tmp_path, dtype) < weights + ONE_TENSOR_MORE


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("encoded", [False, True])
def test_decoding_takes_little_more_memory_than_its_result(tmp_path: Path, encoded: bool):
    with torch.device("meta"):
        model = AsymmDiT(WIDE)
    save_dit(model.to_empty(device="cpu"), tmp_path, layout="original")
    path = tmp_path / "dit.safetensors"
    # Numbers do not matter here, only where they are.
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(path).items():
        quantised = "blocks" in name and tensor.dim() == 2
        tensors[name] = tensor.to(torch.float8_e4m3fn) if quantised else tensor
        if quantised:
            tensors[name.replace("weight", "scale_weight")] = torch.ones(())
    num_weights = sum(tensor.numel() for tensor in tensors.values())
    save_file(tensors, path)
    weights = path.stat().st_size if encoded else 2 * num_weights
    more = ["encoded"] if encoded else []
    assert 0.8 * weights < peak(tmp_path, "bfloat16", *more) < weights + ONE_TENSOR_MORE


def peak(folder: Path, *settings: str) -> int:
    """Bytes by which the memory of a process grows that loads a model."""
    command = [sys.executable, "-c", MEASURE, str(folder), *settings]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
