"""Loading must not hold the weights twice."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
model = load_dit(sys.argv[1], dtype=sys.argv[2])
for parameter in model.parameters():
    parameter.detach().view(torch.uint8).flatten()[::1024].max()
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
    command = [sys.executable, "-c", MEASURE, str(tmp_path), dtype]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.8 * weights < grown < weights + ONE_TENSOR_MORE
