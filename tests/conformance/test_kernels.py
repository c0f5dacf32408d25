"""What every attention kernel keeps: dropping a file into `runtime/attention/` is enough to be tested here."""

import pytest
import torch
from torch import Tensor

from daifuku.config import ATTENTION_KERNELS
from daifuku.model.attention import matmul
from daifuku.registry import load_all
from daifuku.runtime.kernels import Attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF, FULL = torch.bfloat16, torch.float32

TOLERANCE = {FULL: 2e-5, HALF: 2e-2}
"""Against float32 matrix products: bfloat16 keeps 8 bits of values near 1."""

APPROXIMATE = 0.1
"""The most that an approximate kernel may differ."""


@pytest.fixture(
    params=[
        pytest.param(attention, id=name, marks=[pytest.mark.slow] if attention.compiles else [])
        for name, attention in load_all(ATTENTION_KERNELS, Attention).items()
    ]
)
def attention(request: pytest.FixtureRequest) -> Attention:
    plugin: Attention = request.param
    if (reason := plugin.unfit(DEVICE, dtype_of(plugin))) is not None:
        pytest.skip(reason)
    return plugin


def dtype_of(attention: Attention) -> torch.dtype:
    return HALF if DEVICE.type in attention.half_only else FULL


def tolerance(attention: Attention) -> float:
    return TOLERANCE[dtype_of(attention)] if attention.exact else APPROXIMATE


def random_qkv(attention: Attention) -> list[Tensor]:
    """Laid out as the transformer has them: heads are slices of wide tokens."""
    torch.manual_seed(0)
    wide = torch.randn(2, 37, 3, 3, 64).to(DEVICE, dtype_of(attention))
    return [each.movedim(1, 2) for each in wide.unbind(2)]


@pytest.mark.parametrize("lengths", [None, [37, 37], [30, 5]])
def test_it_is_softmax_attention_over_the_valid_keys(attention: Attention, lengths: list[int] | None) -> None:
    q, k, v = random_qkv(attention)
    valid = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    with torch.no_grad():
        out = attention.kernel(q, k, v, valid)
    assert out.shape == q.shape and out.dtype == q.dtype
    expected = matmul(q.float(), k.float(), v.float(), valid)
    assert (out.float() - expected).abs().max() < tolerance(attention)


def test_keys_may_be_more_than_queries(attention: Attention) -> None:
    q, k, v = random_qkv(attention)
    with torch.no_grad():
        out = attention.kernel(q[:, :, :5], k, v, None)
    assert (out.float() - matmul(q[:, :, :5].float(), k.float(), v.float(), None)).abs().max() < tolerance(attention)


def test_it_learns_where_it_says_so(attention: Attention) -> None:
    if DEVICE.type not in attention.learns_on:
        pytest.skip("it does not claim to")
    q, k, v = (each.detach().requires_grad_() for each in random_qkv(attention))
    lengths = torch.tensor([30, 5], device=DEVICE)
    found = torch.autograd.grad(attention.kernel(q, k, v, lengths).float().square().sum(), (q, k, v))
    expected = torch.autograd.grad(matmul(q.float(), k.float(), v.float(), lengths).square().sum(), (q, k, v))
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other.float()).norm() <= 10 * tolerance(attention) * other.float().norm()
