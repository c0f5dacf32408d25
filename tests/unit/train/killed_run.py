"""A whole run, for a process of its own."""

from typing import Any

import torch

from daifuku.train.config import parse_config
from daifuku.train.run import open_task, run_task


def work(content: dict[str, Any]) -> None:
    """What the configuration says, from the newest checkpoint to the end."""
    torch.set_num_threads(1)
    for _ in run_task(open_task(parse_config(content))):
        pass
