"""Whichever fused kernel PyTorch itself takes for the job."""

from daifuku.model.attention import sdpa
from daifuku.runtime.kernels import Attention

ATTENTION = Attention(
    name="sdpa",
    help="The fused attention that PyTorch chooses.",
    kernel=sdpa,
    devices=("cpu", "cuda", "mps"),
)
