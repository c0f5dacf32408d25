"""Run by test_compile.py in a process of its own: what checks shapes while tests run cannot be compiled."""

import json
import sys

import torch
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.compile import compile_blocks

LENGTHS = (7, 2, 30, 12, 0, 0, 5)
"""Text tokens of one pass after the other; 0 is a caption without any."""


def new_dit() -> AsymmDiT:
    torch.manual_seed(0)
    config = DiTConfig(
        num_blocks=3, num_heads=2, head_dim=16, text_width=24, video_mlp_width=32, text_mlp_width=16, text_features=8,
        time_features=16,
    )  # fmt: skip
    dit = AsymmDiT(config).eval().requires_grad_(False)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.2)
    return dit


def run(dit: AsymmDiT, num_text: int) -> Tensor:
    torch.manual_seed(1)
    mask = torch.ones(1, max(num_text, 1), dtype=torch.bool) & bool(num_text)
    with torch.inference_mode():
        return dit(torch.randn(1, 12, 2, 4, 4), torch.tensor([0.5]), torch.randn(1, mask.shape[1], 8), mask)


def main() -> None:
    dit, graphs, counts = new_dit(), [], []
    expected = [run(dit, length) for length in LENGTHS]
    names = list(dit.state_dict())

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compile_blocks(dit, backend="inductor" if "inductor" in sys.argv else count)
    errors = []
    for length, result in zip(LENGTHS, expected, strict=True):
        errors.append((run(dit, length) - result).abs().max().item())
        counts.append(len(graphs))
    dit.load_state_dict({name: 2 * tensor for name, tensor in dit.state_dict().items()}, assign=True)
    exchanged = (run(dit, LENGTHS[0]) - expected[0]).abs().max().item()
    same_names = list(dit.state_dict()) == names
    print(json.dumps({"errors": errors, "graphs": counts, "same_names": same_names, "exchanged": exchanged}))


if __name__ == "__main__":
    main()
