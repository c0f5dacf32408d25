"""Joint attention: every kernel computes the same softmax, and padding text neither sees nor is seen."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from daifuku.model.attention import QKV, Kernel, local, matmul, sdpa, valid_tokens

KERNELS: dict[str, Kernel] = {"sdpa": sdpa, "matmul": matmul}


def random_qkv(num_tokens: int, seed: int) -> QKV:
    generator = torch.Generator().manual_seed(seed)
    return QKV(*torch.randn(3, 2, 3, num_tokens, 8, generator=generator))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By definition, one sequence at a time, in float64."""
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    return scores.softmax(dim=-1) @ v.double()


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_softmax_attention_over_the_valid_keys(name: str) -> None:
    q, k, v = random_qkv(7, seed=0)
    lengths = torch.tensor([7, 4])
    out = KERNELS[name](q, k, v, lengths)
    for i, length in enumerate(lengths.tolist()):
        expected = softmax_attention(q[i], k[i, :, :length], v[i, :, :length])
        assert torch.allclose(out[i].double(), expected, atol=1e-5)
    assert torch.allclose(KERNELS[name](q, k, v, None).double(), softmax_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_padding_text_changes_nothing_and_gets_nothing(name: str) -> None:
    video, text = random_qkv(5, seed=1), random_qkv(4, seed=2)
    lengths = torch.tensor([3, 0])
    attend = local(KERNELS[name])
    video_out, text_out = attend(video, text, lengths)
    noisy = QKV(*(torch.where(valid_tokens(lengths, 4)[:, None, :, None], t, t + 100.0) for t in text))
    again, _ = attend(video, noisy, lengths)
    assert torch.equal(video_out, again)
    assert not text_out[0, :, 3:].any() and not text_out[1].any()
    assert text_out[0, :, :3].all()


def test_without_text_video_attends_to_itself() -> None:
    video, text = random_qkv(5, seed=1), random_qkv(0, seed=2)
    video_out, text_out = local(sdpa)(video, text, None)
    assert torch.allclose(video_out, sdpa(*video, None))
    assert text_out.shape == (2, 3, 0, 8)


def test_there_is_a_test_for_every_kernel_of_the_module() -> None:
    from daifuku.model import attention

    found = {
        name
        for name, value in vars(attention).items()
        if callable(value) and getattr(value, "__module__", "") == attention.__name__ and name.islower()
        and list(getattr(value, "__annotations__", {}))[:3] == ["q", "k", "v"]
    }  # fmt: skip
    assert found == KERNELS.keys()
    assert len(get_args(Kernel)) == 2
