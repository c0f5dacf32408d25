"""Some tokens, and some heads, at a time."""

import pytest
import torch
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.model.attention import QKV, local, matmul, sdpa
from daifuku.model.block import AsymmBlock, SwiGLU
from daifuku.model.dit import AsymmDiT
from daifuku.runtime import estimate
from daifuku.runtime.chunked import ChunkedSwiGLU, chunk_tokens, in_head_groups
from daifuku.runtime.footprint import footprint


@pytest.mark.parametrize("num_tokens", [1, 4, 7, 10, 100])
def test_an_mlp_in_chunks_is_the_whole_one(num_tokens: int) -> None:
    torch.manual_seed(0)
    mlp, x = SwiGLU(8, 32), torch.randn(2, 10, 8)
    assert torch.allclose(ChunkedSwiGLU(mlp, num_tokens)(x), mlp(x), atol=1e-6)


def test_an_mlp_in_chunks_keeps_the_names_of_its_weights() -> None:
    mlp = SwiGLU(8, 32)
    assert ChunkedSwiGLU(mlp, 4).state_dict().keys() == mlp.state_dict().keys()


def test_an_mlp_in_chunks_has_gradients() -> None:
    torch.manual_seed(0)
    mlp, x = SwiGLU(8, 32), torch.randn(1, 10, 8)
    mlp(x).sum().backward()
    expected = mlp.up.weight.grad
    mlp.zero_grad()
    ChunkedSwiGLU(mlp, 3)(x).sum().backward()
    assert expected is not None and mlp.up.weight.grad is not None
    assert torch.allclose(mlp.up.weight.grad, expected, atol=1e-5)


def qkv(num_tokens: int) -> QKV:
    return QKV(*torch.randn(3, 2, 5, num_tokens, 16))


@pytest.mark.parametrize("num_heads", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 4])])
def test_heads_in_groups_attend_as_all_at_once(num_heads: int, lengths: Tensor | None) -> None:
    torch.manual_seed(0)
    video, text = qkv(7), qkv(4)
    whole, grouped = local(matmul), in_head_groups(local(matmul), num_heads)
    for expected, found in zip(whole(video, text, lengths), grouped(video, text, lengths), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_a_chunked_transformer_computes_the_same() -> None:
    torch.manual_seed(0)
    config = DiTConfig(
        num_blocks=2, num_heads=8, head_dim=16, text_width=16, video_mlp_width=32, text_mlp_width=16, text_features=8,
        time_features=16,
    )  # fmt: skip
    dit = AsymmDiT(config).eval()
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.2)
    inputs = torch.randn(1, 12, 2, 8, 8), torch.tensor([0.5]), torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    expected = dit(*inputs)
    assert torch.allclose(chunk_tokens(dit, 5)(*inputs), expected, atol=1e-5)


def test_a_chunked_block_needs_less_memory() -> None:
    config = DiTConfig(num_heads=24, head_dim=8, text_width=96, video_mlp_width=512, text_mlp_width=256)

    def peak(block: AsymmBlock) -> int:
        with torch.device("meta"):
            video, text = torch.empty(1, 4096, 192), torch.empty(1, 16, 96)
            turn = torch.empty(24, 4096, 4, dtype=torch.complex64)
            return footprint(lambda: block(video, text, torch.empty(1, 192), turn, None)).peak_bytes

    with torch.device("meta"):
        dit = AsymmDiT(config)
    block = dit.blocks[0]
    assert isinstance(block, AsymmBlock)
    block.attention.attend = local(estimate.fused)
    before = peak(block)
    chunk_tokens(dit, 256)
    assert peak(block) < 0.8 * before


def test_the_kernel_of_a_chunked_transformer_is_the_one_it_had() -> None:
    calls = []

    def watched(*args: Tensor) -> Tensor:
        calls.append(args[0].shape[1])
        return sdpa(*args)

    grouped = in_head_groups(local(watched), 2)
    grouped(qkv(3), qkv(2), None)
    assert calls == [2, 2, 1]
