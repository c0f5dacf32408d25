"""FlashAttention (Dao, 2023, arXiv 2307.08691) as PyTorch brings it, for CPUs as well."""

from torch.nn.attention import SDPBackend

from daifuku.runtime.kernels import Attention, each_alone, one_backend

ATTENTION = Attention(
    name="flash",
    help="FlashAttention 2, built into PyTorch; on GPUs for 16-bit numbers.",
    kernel=each_alone(one_backend(SDPBackend.FLASH_ATTENTION)),
    devices=("cpu", "cuda"),
    half_only=("cuda",),
)
