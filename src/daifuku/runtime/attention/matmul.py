"""Attention written out: what every other kernel is compared with."""

from daifuku.model.attention import matmul
from daifuku.runtime.kernels import Attention

ATTENTION = Attention(
    name="matmul",
    help="Two matrix products with the whole matrix of scores between them: for short sequences.",
    kernel=matmul,
    devices=("cpu", "cuda", "mps"),
    stores_scores=True,
)
