"""What each process of a context group computes, for tests."""

from pathlib import Path

import torch
import torch.distributed as dist
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from daifuku.config import DiTConfig
from daifuku.model.attention import QKV, JointAttend, local, sdpa
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.context import ContextGroup, share_tokens, ulysses

SIZES = DiTConfig(
    num_blocks=2, num_heads=6, head_dim=8, text_width=12, video_mlp_width=32, text_mlp_width=16, text_features=16
)
NUM_VIDEO, NUM_TEXT = 11, 5


def qkv(num_tokens: int) -> Tensor:
    draw = torch.Generator().manual_seed(num_tokens)
    return torch.randn(3, 2, SIZES.num_heads, num_tokens, 8, generator=draw).requires_grad_()


def weighed(video: Tensor, text: Tensor) -> Tensor:
    """A loss of which every output has a part of its own."""
    return (video * torch.linspace(-1, 1, NUM_VIDEO)[:, None]).square().sum() + (text**3).sum()


def attended(attend: JointAttend, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    return attend(QKV(*video), QKV(*text), torch.tensor([NUM_TEXT, 2]))


def attention(rank: int, folder: Path) -> None:
    """Forward and gradients of this process's part."""
    group = dist.group.WORLD
    assert isinstance(group, dist.ProcessGroup)
    context = ContextGroup(group)
    each, more = divmod(NUM_VIDEO, context.size)
    context.counts = tuple(each + (place < more) for place in range(context.size))
    video, text = qkv(NUM_VIDEO), qkv(NUM_TEXT)
    video_out, text_out = attended(ulysses(local(sdpa), context), context.part(video, 3), text)
    # Every process adds the same whole loss, as in a run: the mean of the gradients is that of the loss.
    tokens = context.gathered(rearrange(video_out, "b h n d -> b n (h d)"))
    weighed(rearrange(tokens, "b n (h d) -> b h n d", h=SIZES.num_heads), text_out).backward()
    assert video.grad is not None and text.grad is not None
    found = {"video": video_out, "text": text_out, "video_grad": video.grad, "text_grad": text.grad}
    save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, folder / f"{rank}.safetensors")


def small_dit() -> AsymmDiT:
    """With weights that let every part count."""
    torch.manual_seed(0)
    dit = AsymmDiT(SIZES)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return dit


def predicted(dit: AsymmDiT) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    latent, text = torch.randn(2, 12, 1, 6, 10, generator=draw), torch.randn(2, 4, 16, generator=draw)
    return dit(latent, torch.tensor([0.3, 0.8]), text, torch.tensor([[True] * 4, [True, True, False, False]]))


def transformer(rank: int, folder: Path) -> None:
    """The velocity, and what this process adds to the gradients."""
    group = dist.group.WORLD
    assert isinstance(group, dist.ProcessGroup)
    dit = share_tokens(small_dit(), group)
    velocity = predicted(dit)
    velocity.square().mean().backward()
    gradients = {name: p.grad for name, p in dit.named_parameters() if p.grad is not None}
    save_file(gradients | {"velocity": velocity.detach()}, folder / f"{rank}.safetensors")
