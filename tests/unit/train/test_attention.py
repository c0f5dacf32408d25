"""Attention for training: the numbers of matrix products, and their gradients."""

import pytest
import torch
from torch import Tensor

from daifuku.model.attention import matmul, sdpa
from daifuku.train import attention
from daifuku.train.attention import kernel_for, recomputing

LENGTHS = [None, [37, 12, 30]]


def found(kernel, tensors: list[Tensor], lengths: list[int] | None) -> list[Tensor]:
    q, k, v = (each.detach().requires_grad_() for each in tensors)
    out = kernel(q, k, v, None if lengths is None else torch.tensor(lengths))
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return [out, *torch.autograd.grad(out, (q, k, v), gradient.to(out.dtype))]


@pytest.mark.parametrize("at_once", [1, 4 * 23 * 37, 2**21])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_it_is_what_matrix_products_give_however_many_heads_are_taken_at_a_time(
    at_once: int, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    torch.manual_seed(0)
    tensors = [torch.randn(3, tokens, 2, 16).movedim(1, 2) for tokens in (23, 37, 37)]
    for one, other in zip(found(recomputing, tensors, lengths), found(matmul, tensors, lengths), strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_in_bfloat16_it_is_about_as_near_as_they_are(lengths: list[int] | None) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(3, 2, 37, 16).bfloat16() for _ in range(3)]
    exact = found(matmul, [each.float() for each in tensors], lengths)

    def errors(kernel) -> list[float]:
        pairs = zip(found(kernel, tensors, lengths), exact, strict=True)
        return [((one.float() - other).norm() / other.norm()).item() for one, other in pairs]

    for error, usual in zip(errors(recomputing), errors(matmul), strict=True):
        assert error < 1.5 * usual < 0.02


def test_only_a_cpu_needs_it() -> None:
    assert kernel_for(torch.device("cpu")) is recomputing
    assert kernel_for(torch.device("cuda")) is sdpa
