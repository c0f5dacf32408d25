"""Curves of a run for TensorBoard, and for Weights & Biases where that is wanted."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from daifuku.errors import InvalidRequest
from daifuku.text.quiet import quiet
from daifuku.train.config import TrainConfig
from daifuku.train.loop import Report

Write = Callable[[Report], object]


def open_curves(config: TrainConfig, say: Callable[[str], object]) -> list[Write]:
    """Where every report goes. Raises InvalidRequest where Weights & Biases is asked for and not installed."""
    curves: list[Write] = []
    if config.watch.tensorboard:
        if find_spec("tensorboard"):
            curves.append(_TensorBoard(config.output / "tensorboard"))
        else:
            say("no curves for TensorBoard, which is not installed: pip install 'daifuku[train]'")
    if config.watch.wandb is not None:
        if not find_spec("wandb"):
            raise InvalidRequest("watch.wandb needs the package wandb: pip install wandb, or leave watch.wandb out")
        curves.append(_WandB(config))
    return curves


class _TensorBoard:
    """Opened at the first report: what an earlier run wrote from that step on gives way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def __call__(self, report: Report) -> None:
        if self._writer is None:
            with quiet():
                from torch.utils.tensorboard import SummaryWriter
            self._writer = SummaryWriter(self._folder, purge_step=report.step)
        for name, value in _named(report).items():
            self._writer.add_scalar(name, value, report.step)
        self._writer.flush()


class _WandB:
    def __init__(self, config: TrainConfig) -> None:
        wandb: Any = import_module("wandb")
        about = config.model_dump(mode="json")
        # The same name in the same project goes on with the same run.
        self._run = wandb.init(project=config.watch.wandb, id=config.output.name, resume="allow", config=about)

    def __call__(self, report: Report) -> None:
        self._run.log(_named(report), step=report.step)


def _named(report: Report) -> dict[str, float]:
    """Measures in groups, as both tools show them."""
    found: dict[str, float] = {}
    for name, value in report.values.items():
        group = (
            "validation"
            if name.startswith(("val", "psnr"))
            else "cost"
            if name in ("samples_per_s", "memory_gib")
            else "train"
        )
        found[f"{group}/{name}"] = value
    return found
