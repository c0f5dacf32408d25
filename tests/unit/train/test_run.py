"""Runs from their configuration, a few steps each: exact resume, what stops one, and what comes out."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import daifuku
from daifuku.errors import InvalidRequest, TrainingError, UnwritableOutput
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.train.config import parse_config
from daifuku.train.lora import lora_pairs
from daifuku.train.run import Task, open_task, run_task
from daifuku.weights.identity import part_identities
from daifuku.weights.locate import locate
from daifuku.weights.lora import read_lora
from tests.unit.train.prepared_data import write_prepared

SCRATCH = {
    "method": "scratch",
    "scratch": {
        "num_blocks": 2, "num_heads": 2, "head_dim": 16, "text_width": 16, "video_mlp_width": 85, "text_mlp_width": 42
    },
}  # fmt: skip
LORA = {"method": "lora", "scratch": None, "lora": {"video_qkv": {"rank": 4}}}
DORA = LORA | {"lora": {"video_qkv": {"rank": 4}, "dora": True}}
FULL = {"method": "full", "scratch": None}
GUIDED = LORA | {"distill": {"method": "guidance"}}
BESIDE_GIVEN = SCRATCH | {"given_share": 0.7}
CONSISTENT = FULL | {"distill": {"method": "consistency"}, "ema_decay": 0.9}


def _called(method: dict[str, Any]) -> str:
    kind = "dora" if method.get("lora", {}).get("dora") else method["method"]
    beside = "beside given frames" if "given_share" in method else method.get("distill", {}).get("method", "")
    return f"{kind} {beside}".strip()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("data"), [((2, 4, 4), 5), ((1, 4, 6), 3)])


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model that is smaller than the built-in one, and can be fine-tuned."""
    folder = tmp_path_factory.mktemp("base")
    list(run_task(task(data, folder, schedule={"steps": 1, "warmup": 0})))
    return {"name": str(folder / "model")}


def task(data: Path, output: Path, **changes: Any) -> Task:
    plain = SCRATCH | {
        "output": str(output),
        "data": [{"folder": str(data)}],
        "validation": {"folder": str(data), "num_samples": 1, "every": 3},
        "batch": {"size": 2, "accumulate": 2},
        "schedule": {"steps": 6, "warmup": 2},
        "checkpoints": {"every": 2},
    }
    return open_task(parse_config(plain | changes))


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def weights(task: Task) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in task.dit.named_parameters()}


def test_widths_that_no_model_folder_could_hold_are_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    sizes = SCRATCH["scratch"] | {"video_mlp_width": 84}
    content = {"method": "scratch", "scratch": sizes, "data": [{"folder": str(data)}], "output": str(tmp_path / "run")}
    with pytest.raises(InvalidRequest, match=r"width 32 to 85, and this model's has 84.*try 85"):
        open_task(parse_config(content))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", [SCRATCH, BESIDE_GIVEN, LORA, DORA, FULL, GUIDED, CONSISTENT], ids=_called)
def test_a_run_that_was_left_in_the_middle_ends_bit_identical(
    method: dict[str, Any], data: Path, base: dict[str, str], tmp_path: Path
) -> None:
    method = method | {"model": base}
    whole = task(data, tmp_path / "whole", **method)
    list(run_task(whole))
    reports = run_task(task(data, tmp_path / "left", **method))
    for _ in range(5):
        next(reports)
    reports.close()
    again = task(data, tmp_path / "left", **method)
    assert [report.step for report in run_task(again)] == [5, 6], "it goes on from the last checkpoint"
    assert log(tmp_path / "left") == log(tmp_path / "whole")
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(whole).items())


def test_every_optimiser_and_recomputing_resume_exactly_too(data: Path, tmp_path: Path) -> None:
    changes = {"optimiser": {"name": "muon"}, "compute": {"recompute": {"block": -1}}, "ema_decay": 0}
    whole = task(data, tmp_path / "whole", **changes)
    list(run_task(whole))
    next(reports := run_task(task(data, tmp_path / "left", **changes | {"checkpoints": {"every": 1}})))
    reports.close()
    again = task(data, tmp_path / "left", **changes)
    list(run_task(again))
    assert log(tmp_path / "left") == log(tmp_path / "whole")
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(whole).items())


@pytest.mark.slow
def test_blocks_are_compiled_whether_they_are_recomputed_quantised_or_neither(data: Path, tmp_path: Path) -> None:
    """In a process without the checks of shapes, which nothing can be compiled with."""
    command = [sys.executable, str(Path(__file__).with_name("compiled_training.py")), str(data), str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert found.keys() == {"plain", "block", "mlp", "int8"}
    for way, (graphs, losses) in found.items():
        assert graphs >= 2, f"{way}: the last block is not like the others"
        assert losses["compiled"] == pytest.approx(losses["not compiled"], rel=1e-4)


def test_a_finished_run_writes_what_comes_out_once_more_and_learns_nothing(data: Path, tmp_path: Path) -> None:
    list(run_task(task(data, tmp_path)))
    said: list[str] = []
    assert list(run_task(task(data, tmp_path), say=said.append)) == []
    assert [Path(line.removeprefix("wrote ")).name for line in said] == ["model", "original", "README.md"]


def test_settings_that_changed_are_named_and_refused_unless_allowed(data: Path, tmp_path: Path) -> None:
    list(run_task(task(data, tmp_path)))
    changed = {"optimiser": {"lr": 1e-3}, "schedule": {"steps": 8, "warmup": 2}}
    with pytest.raises(TrainingError, match=r"optimiser\.lr is 0\.001 and was 0\.0002.*--allow-inexact"):
        list(run_task(task(data, tmp_path, **changed)))
    said: list[str] = []
    reports = list(run_task(task(data, tmp_path, **changed), say=said.append, allow_inexact=True))
    assert [report.step for report in reports] == [7, 8]
    assert "would not be exact: optimiser.lr is 0.001" in said[0]


def test_other_data_under_the_same_name_are_noticed(data: Path, tmp_path: Path) -> None:
    list(run_task(task(data, tmp_path / "run")))
    other = write_prepared(tmp_path / "other", [((2, 4, 4), 5), ((1, 4, 6), 3)], seed=1)
    with pytest.raises(TrainingError, match=r"data\.0 is"):
        list(run_task(task(other, tmp_path / "run")))


def test_a_number_of_threads_that_changed_is_noticed(data: Path, tmp_path: Path) -> None:
    list(run_task(task(data, tmp_path)))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(TrainingError, match=f"threads is {before + 1} and was {before}"):
            list(run_task(task(data, tmp_path)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_is_named_before_any_weight_is_touched(value: float, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", [((2, 4, 4), 3)], broken=(1, value))
    ready = task(data, tmp_path / "run", batch={"size": 1})
    before = weights(ready)
    seen = 0
    with pytest.raises(TrainingError, match=r"on the samples 2x4x4-1\. No weight was touched"):
        for _ in run_task(ready):
            seen += 1
            before = weights(ready)
    assert seen < 3
    assert all(torch.equal(before[name], weight) for name, weight in weights(ready).items())


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_its_samples(data: Path, tmp_path: Path) -> None:
    ready = task(data, tmp_path)
    ready.dit.text_proj.weight.register_hook(lambda gradient: gradient * math.inf)
    before, samples = weights(ready), [*ready.batches.ids(0), *ready.batches.ids(1)]
    with pytest.raises(TrainingError, match=r"gradient norm (inf|nan)") as error:
        list(run_task(ready))
    assert f"on the samples {', '.join(samples)}." in str(error.value)
    assert all(torch.equal(before[name], weight) for name, weight in weights(ready).items())


def test_a_run_that_is_asked_to_stop_is_saved_and_goes_on_exactly(data: Path, tmp_path: Path) -> None:
    list(run_task(task(data, tmp_path / "whole")))
    asked = iter([False, False, True])
    reports = list(run_task(task(data, tmp_path / "stopped"), stop=lambda: next(asked)))
    assert [report.step for report in reports] == [1, 2, 3]
    assert not (tmp_path / "stopped" / "model").exists()
    assert [report.step for report in run_task(task(data, tmp_path / "stopped"))] == [4, 5, 6]
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")


def test_clips_are_shown_with_the_averaged_weights_and_change_nothing(data: Path, tmp_path: Path) -> None:
    list(run_task(task(data, tmp_path / "alone")))
    shown: dict[int, Tensor] = {}
    watched = task(data, tmp_path / "watched", watch={"clips": {"prompts": ["a red ball"], "every": 4}})

    def show(step: int, parts: Any) -> None:
        torch.manual_seed(step)
        shown[step] = parts.dit(None, None).final.linear.weight.detach().clone()

    reports = list(run_task(watched, show=show))
    assert list(shown) == [4, 6]
    assert torch.equal(shown[6], watched.dit.final.linear.weight), "the last one shows what is shipped"
    assert log(tmp_path / "watched") == log(tmp_path / "alone")
    assert all({"samples_per_s", "memory_gib", "lr", "grad_norm"} <= report.values.keys() for report in reports)


def test_a_lora_comes_out_in_every_layout_with_a_card(data: Path, base: dict[str, str], tmp_path: Path) -> None:
    ready = task(data, tmp_path, **LORA, model=base)
    list(run_task(ready))
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == ["lora.comfy.safetensors", "lora.diffusers.safetensors", "lora.original.safetensors"]
    checkpoint = load_file(max((tmp_path / "checkpoints").iterdir()) / "model.safetensors")
    assert all("lora_" in name for name in checkpoint), "checkpoints hold the adapters alone"
    card = (tmp_path / "README.md").read_text()
    for words in (f"A LoRA for {base['name']}", "| lora.video_qkv.rank | 4 |", f"| {data.name} | 8 |", "val "):
        assert words in card


def test_a_dora_comes_out_in_the_layouts_that_hold_it(data: Path, base: dict[str, str], tmp_path: Path) -> None:
    told: list[str] = []
    ready = task(data, tmp_path, **DORA, model=base)
    list(run_task(ready, say=told.append))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == ["lora.comfy.safetensors", "lora.diffusers.safetensors"]
    assert sum("the original layout holds no magnitudes" in line for line in told) == 1
    checkpoint = load_file(max((tmp_path / "checkpoints").iterdir()) / "model.safetensors")
    assert sum("lora_magnitude_vector" in name for name in checkpoint) == len(lora_pairs(ready.dit))
    for path in files:
        assert read_lora(path).num_doras > 0
    assert "| lora.dora | True |" in (tmp_path / "README.md").read_text()


def test_a_full_model_comes_out_whole_and_loads(data: Path, base: dict[str, str], tmp_path: Path) -> None:
    ready = task(data, tmp_path, **FULL, model=base)
    list(run_task(ready))
    for source in ("model", "original"):
        dit = daifuku.load_dit(tmp_path / source)
        assert all(torch.equal(weight, weights(ready)[name]) for name, weight in dit.state_dict().items())
    clip = daifuku.load(tmp_path / "model")("a red ball", num_frames=7, height=32, width=32, num_inference_steps=2)
    assert clip.frames.shape == (7, 32, 32, 3)


def test_captions_are_dropped_to_what_this_model_makes_of_an_empty_prompt(data: Path, tmp_path: Path) -> None:
    silent = task(data, tmp_path).recipe.null
    assert not silent.mask.any(), "the built-in model never looks at an empty prompt"
    folder = shutil.copytree(BUILT_IN_FOLDER, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    read = task(data, tmp_path, model={"name": str(folder)}).recipe.null
    assert read.mask.all() and read.features.any() and read.features.shape[2] == 128


def test_data_that_other_networks_encoded_are_told_about(tmp_path: Path) -> None:
    files = locate(BUILT_IN_FOLDER)
    models = {"same": part_identities(files), "other": part_identities(files) | {"vae_sha256": "0" * 64}}
    said: dict[str, list[str]] = {name: [] for name in models}
    for name, model in models.items():
        data = write_prepared(tmp_path / name, [((2, 4, 4), 2)], model=model)
        list(run_task(task(data, tmp_path / f"run {name}", schedule={"steps": 1}), say=said[name].append))
    assert not any("warning" in line for line in said["same"])
    assert "was encoded by a VAE of other files" in said["other"][0]


def test_a_run_whose_folder_cannot_be_made_says_so(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnwritableOutput, match="the run cannot be kept in"):
        list(run_task(task(data, tmp_path / "file" / "run")))


def test_data_that_cannot_fit_are_refused_before_the_first_step(tmp_path: Path) -> None:
    odd = write_prepared(tmp_path / "odd", [((2, 5, 4), 1)])
    with pytest.raises(InvalidRequest, match=r"2x5x4.* multiples of 2"):
        task(odd, tmp_path)
    narrow = write_prepared(tmp_path / "narrow", [((2, 4, 4), 1)], features=64)
    with pytest.raises(InvalidRequest, match="features of 64 numbers, and this model reads 128"):
        task(narrow, tmp_path)
