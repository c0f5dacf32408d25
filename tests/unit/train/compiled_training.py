"""A few steps with compiled blocks and without: how many graphs there were, and the losses, as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import fx

from daifuku.train.config import parse_config
from daifuku.train.run import open_task, run_task

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "block": {"recompute": {"block": -1}},
    "mlp": {"recompute": {"mlp": -1}},
    "int8": {"quantise": "int8"},
}


def main(data: Path, folder: Path) -> None:
    """Compiles as torch does, but for the last step: graphs run as they are."""
    torch.set_num_threads(1)
    graphs = 0

    def count(graph: fx.GraphModule, _: list[torch.Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiler = torch.compile
    torch.compile = lambda function, **options: compiler(function, backend=count, **options)
    found = {}
    for way, compute in WAYS.items():
        graphs, losses = 0, {}
        torch._dynamo.reset()
        for name, compiled in (("compiled", True), ("not compiled", False)):
            content = {
                "method": "lora",
                "output": str(folder / way / name),
                "data": [{"folder": str(data)}],
                "schedule": {"steps": 2, "warmup": 0},
                "compute": compute | {"compile": compiled},
            }
            losses[name] = [report.values["loss"] for report in run_task(open_task(parse_config(content)))]
        found[way] = (graphs, losses)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
