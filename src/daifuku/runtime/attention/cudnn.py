"""The kernel of NVIDIA's cuDNN, the fastest that PyTorch brings for Hopper GPUs and later ones."""

import torch
from torch.nn.attention import SDPBackend

from daifuku.runtime.kernels import Attention, one_backend


def available() -> str | None:
    """What cuDNN lacks here."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    return None if torch.backends.cudnn.is_available() else "this PyTorch has no cuDNN"


ATTENTION = Attention(
    name="cudnn",
    help="NVIDIA's cuDNN, for 16-bit numbers.",
    available=available,
    kernel=one_backend(SDPBackend.CUDNN_ATTENTION),
    devices=("cuda",),
    half_only=("cuda",),
)
