"""One clip on many devices: each holds a part of the video tokens, and attention a part of the heads.

Ulysses (Jacobs et al. 2023, https://arxiv.org/abs/2309.14509): before attention, an all-to-all turns all heads of some
tokens into some heads of all tokens, and after it back. Text is short, so every device holds all of it and computes its
heads of it. Nothing is padded: a device may hold one token more than another. Gradients come out such that the sum over
all devices is the gradient of the sum of their losses.
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed.nn.functional import all_to_all_single

from daifuku.errors import InvalidRequest
from daifuku.model.attention import QKV, JointAttend, Lengths
from daifuku.model.dit import AsymmDiT
from daifuku.model.embed import unpatchify
from daifuku.runtime.kernels import blocks_of


class ContextGroup:
    """The processes that share the tokens of a clip, and how many each holds of the clip at hand."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.counts: tuple[int, ...] = ()

    def part(self, tokens: Tensor, dim: int) -> Tensor:
        """The tokens that are held here."""
        return tokens.split(self.counts, dim)[self.rank]

    def gathered(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b all w"]:
        """All tokens, from the part that each holds."""
        shapes = [(tokens.shape[0], count, tokens.shape[2]) for count in self.counts]
        return torch.cat(self.exchanged([tokens] * self.size, shapes), dim=1)

    def exchanged(self, sent: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """One tensor for each process goes out, one of these shapes from each comes in; gradients go the other way."""
        flat = torch.cat([tensor.flatten() for tensor in sent])
        sizes = [prod(shape) for shape in shapes]
        found = all_to_all_single(
            flat.new_empty(sum(sizes)), flat, sizes, [tensor.numel() for tensor in sent], self._group
        )
        return [piece.view(shape) for piece, shape in zip(found.split(sizes), shapes, strict=True)]


def ulysses(inner: JointAttend, context: ContextGroup) -> JointAttend:
    """Joint attention over all tokens of a clip, of whose video tokens each process has a part, and the whole text."""

    def attend(video: QKV, text: QKV, lengths: Lengths) -> tuple[Tensor, Tensor]:
        stacked = torch.stack(video)
        pieces = stacked.chunk(context.size, dim=2)
        three, b, heads, _, d = pieces[0].shape
        found = context.exchanged(pieces, [(three, b, heads, count, d) for count in context.counts])
        own_text = QKV(*(x.chunk(context.size, dim=1)[context.rank] for x in text))
        video_out, text_out = inner(QKV(*torch.cat(found, dim=3)), own_text, lengths)

        # Text goes behind the tokens of each process: one exchange brings both back.
        num_own, num_text = context.counts[context.rank], text_out.shape[2]
        sent = [torch.cat([part, text_out], dim=2) for part in video_out.split(context.counts, dim=2)]
        back = context.exchanged(sent, [(b, heads, num_own + num_text, d)] * context.size)
        video_out, text_out = torch.cat(back, dim=1).split([num_own, num_text], dim=2)
        return video_out, text_out

    return attend


def share_tokens(dit: AsymmDiT, group: dist.ProcessGroup) -> AsymmDiT:
    """The transformer whose blocks compute a part of the video tokens in each process of the group.

    Every process gives it the same inputs, and is given the whole velocity. Raises InvalidRequest where the heads
    cannot be divided among them.
    """
    context = ContextGroup(group)
    check_heads(dit.config.num_heads, context.size)
    for block in blocks_of(dit):
        block.attention.attend = ulysses(block.attention.attend, context)
    dit.forward = partial(_forward, dit, context)
    return dit


def check_heads(num_heads: int, num_processes: int) -> None:
    """Raises InvalidRequest where so many processes cannot share the heads evenly."""
    if num_heads % num_processes:
        fit = [size for size in range(1, num_heads + 1) if num_heads % size == 0]
        raise InvalidRequest(
            f"{num_processes} processes cannot share the {num_heads} attention heads of this model evenly: "
            f"try {', '.join(map(str, fit[:-1]))} or {fit[-1]}"
        )


def _forward(
    dit: AsymmDiT,
    context: ContextGroup,
    latent: Float[Tensor, "b c t h w"],
    sigma: Float[Tensor, " b"],
    text: Float[Tensor, "b l features"],
    mask: Bool[Tensor, "b l"],
) -> Float[Tensor, "b c t h w"]:
    state = dit.embed(latent, sigma, text, mask)
    each, more = divmod(state.video.shape[1], context.size)
    context.counts = tuple(each + (rank < more) for rank in range(context.size))
    video, text, turn = context.part(state.video, 1), state.text, context.part(state.turn, 1)
    for block in dit.blocks:
        video, text = block(video, text, state.conditioning, turn, state.lengths)
    return unpatchify(context.gathered(dit.final(video, state.conditioning)), *state.grid)
