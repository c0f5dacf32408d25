"""Memory-efficient attention (Rabe and Staats, 2021, arXiv 2112.05682) as PyTorch brings it from xFormers."""

import torch
from torch.nn.attention import SDPBackend

from daifuku.runtime.kernels import Attention, one_backend

ATTENTION = Attention(
    name="efficient",
    help="Memory-efficient attention, built into PyTorch: for older GPUs, and for float32 on any.",
    available=lambda: None if torch.cuda.is_available() else "there is no CUDA GPU",
    kernel=one_backend(SDPBackend.EFFICIENT_ATTENTION),
    devices=("cuda",),
)
