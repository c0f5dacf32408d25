"""What comes out of a run: a LoRA in every layout that holds it, or a whole model in both; and a card about it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from daifuku.model.dit import AsymmDiT
from daifuku.presets import without_loras
from daifuku.runtime.build import BUILT_IN, BUILT_IN_FOLDER, ModelInfo
from daifuku.train.config import TrainConfig
from daifuku.train.dataset import PreparedFolder
from daifuku.train.loop import LOG
from daifuku.train.lora import lora_pairs
from daifuku.version import VERSION
from daifuku.weights.convert import plan_convert
from daifuku.weights.files import published, write_safetensors
from daifuku.weights.locate import ModelFiles
from daifuku.weights.lora_write import LoraTarget, pairs_content
from daifuku.weights.publish import Output, Report, run
from daifuku.weights.save import save_dit, write_defaults, write_model_index, write_scheduler

CARD = "README.md"


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A finished run."""

    dit: AsymmDiT
    """With the weights to be shipped."""
    config: TrainConfig
    files: ModelFiles
    model: ModelInfo
    """What it started from."""
    folders: tuple[PreparedFolder, ...]


def write_outcome(outcome: Outcome, folder: Path) -> Iterator[Path]:
    """Writes everything into the folder of the run and yields what it wrote. Raises UnwritableOutput."""
    write = _write_lora if outcome.config.method == "lora" else _write_model
    yield from write(outcome, folder)
    card = folder / CARD
    with published(card) as file:
        file.write(model_card(outcome, folder).encode())
    yield card


def _write_lora(outcome: Outcome, folder: Path) -> Iterator[Path]:
    pairs = lora_pairs(outcome.dit)
    about = {"base_model": outcome.model.name, "trained_by": f"daifuku {VERSION}"}
    layouts: tuple[LoraTarget, ...] = ("diffusers", "comfy", "original")
    kinds = outcome.config.lora.kinds
    if kinds["video_mlp"].rank or kinds["text_mlp"].rank or outcome.config.lora.dora:
        # The original has no place for them, nor for magnitudes.
        layouts = layouts[:2]
    for layout in layouts:
        content = pairs_content(pairs, layout, about=about)
        path = folder / f"lora.{layout}.safetensors"
        write_safetensors(path, content.entries, content.metadata)
        yield path


def _write_model(outcome: Outcome, folder: Path) -> Iterator[Path]:
    """Both layouts: a whole model for diffusers, and the transformer alone as the original has it."""
    config = outcome.config
    base = BUILT_IN_FOLDER if config.model.name == BUILT_IN else config.model.name
    rest = plan_convert(
        base,
        folder / "model",
        to="diffusers",
        only=("vae", "text"),
        force=True,
        revision=config.model.revision,
        variant=config.model.variant,
    )
    beside = tuple(output for output in rest.outputs if output.path not in ("generation_config.json", "loras"))
    num_bytes = sum(p.nbytes for p in outcome.dit.parameters())
    defaults = without_loras(outcome.files.defaults)
    own = [
        Output(path="transformer", num_bytes=num_bytes, write=partial(_save_dit, outcome.dit)),
        Output(path="scheduler", num_bytes=0, write=lambda path, report: write_scheduler(path.parent)),
        Output(path="model_index.json", num_bytes=0, write=partial(_write_index, outcome.files.zero_empty)),
    ]
    if defaults:
        own.append(Output(path="generation_config.json", num_bytes=0, write=partial(_write_defaults, defaults)))
    yield run(replace(rest, outputs=(*beside, *own)))
    save_dit(outcome.dit, folder / "original", layout="original")
    yield folder / "original"


def _save_dit(dit: AsymmDiT, path: Path, report: Report) -> None:
    save_dit(dit, path.parent)


def _write_index(zero_empty: bool, path: Path, report: Report) -> None:
    write_model_index(path.parent, zero_empty=zero_empty)


def _write_defaults(defaults: dict[str, Any], path: Path, report: Report) -> None:
    write_defaults(path.parent, defaults)


def model_card(outcome: Outcome, folder: Path) -> str:
    """What it is, what it learnt from, and with which settings, in Markdown."""
    config, model = outcome.config, outcome.model
    what = (
        "A LoRA for" if config.method == "lora" else "A fine-tune of" if config.method == "full" else "Trained beside"
    )
    lines = [
        "---",
        f"base_model: {json.dumps(model.name)}",
        "pipeline_tag: text-to-video",
        "tags: [mochi, daifuku]" if config.method != "lora" else "tags: [mochi, daifuku, lora]",
        "---",
        f"# {folder.name}",
        "",
        f"{what} {model.name} (weights {model.identity}), by {config.method} training, {config.schedule.steps} steps.",
        "",
        *_measured(folder),
        "## Data",
        "",
        "| folder | samples | seen in an epoch | fingerprint |",
        "| --- | --- | --- | --- |",
        *_rows(outcome.folders, config),
        "",
        "## Settings",
        "",
        "| key | value |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in sorted(config.conditions().items())),
        "",
        "## Versions",
        "",
        f"daifuku {VERSION}, torch {torch.__version__}",
    ]
    return "\n".join(lines) + "\n"


def _rows(folders: Sequence[PreparedFolder], config: TrainConfig) -> Iterator[str]:
    for folder, own in zip(folders, config.data, strict=True):
        yield f"| {folder.path.name} | {len(folder.samples)} | {own.weight:g} times each | {folder.fingerprint} |"


def _measured(folder: Path) -> Iterator[str]:
    """The last of each measure in the log."""
    found: dict[str, float] = {}
    for line in (folder / LOG).read_text("utf-8").splitlines():
        found |= {name: value for name, value in json.loads(line).items() if name in ("loss", "val")}
    if found:
        yield "Last measured: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()) + "."
        yield ""
