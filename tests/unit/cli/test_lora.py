"""LoRAs on the command line, with the built-in model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import daifuku as package
from daifuku.cli.lora_page import trigger_words
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.weights.lora import linear_shapes

CLIP = {"seed": 1, "num_frames": 7, "num_inference_steps": 2, "height": 32, "width": 32}
Daifuku = Callable[..., Any]

SMALL = ("a small red ball", "--seed", "1", "--num-frames", "7", "--num-inference-steps", "2", "--height", "32",
         "--width", "32")  # fmt: skip


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, for the built-in model, as ComfyUI names it."""
    return write_lora(tmp_path_factory.mktemp("lora") / "style.safetensors", seed=0)


def write_lora(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    tensors = {}
    theirs = {"attention.video_qkv": "attn.qkv_x", "video_modulation": "mod_x"}
    for name, (rows, cols) in linear_shapes(package.load_dit(BUILT_IN_FOLDER, device="meta")).items():
        for ours in theirs:
            if name.endswith(ours):
                module = f"diffusion_model.{name.replace(ours, theirs[ours])}"
                tensors |= {
                    f"{module}.lora_A.weight": torch.randn(4, cols) / cols**0.5,
                    f"{module}.lora_B.weight": torch.randn(rows, 4),
                    f"{module}.alpha": torch.tensor(2.0),
                }
    about = {
        "modelspec.trigger_phrase": "in the style of mochi",
        "modelspec.title": "Rice \x1b[31mcakes",
        "modelspec.author": "somebody",
        "ss_base_model_version": "mochi1",
    }
    save_file(tensors, path, about)
    return path


def clip(daifuku: Daifuku, *flags: object, name: str = "clip") -> bytes:
    run = daifuku("generate", *flags, "-o", f"{name}.gif")
    assert run.code == 0, run.err
    return Path(run.lines[0]).read_bytes()


def test_a_clip_with_a_lora_is_another_one_and_replays_to_the_same_bytes(daifuku: Daifuku, lora: Path) -> None:
    plain, styled = clip(daifuku, *SMALL), clip(daifuku, *SMALL, "--lora", lora, name="styled")
    assert plain != styled
    assert clip(daifuku, "--replay", "styled.gif", name="again") == styled
    record = json.loads(Path("styled.json").read_text())
    assert record["request"]["loras"] == [[str(lora), 1.0]] and len(record["model"]["loras"][0]) == 16


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_strength_0_is_no_lora_bit_for_bit_and_strengths_of_several_matter(
    daifuku: Daifuku, lora: Path, mode: str
) -> None:
    flags = (*SMALL, "--lora-mode", mode)
    plain, other = clip(daifuku, *flags), write_lora(Path("other.safetensors"), seed=1)
    assert clip(daifuku, *flags, "--lora", f"{lora}:0") == plain
    both = clip(daifuku, *flags, "--lora", f"{lora}:0.5", "--lora", f"{other}:0.7")
    one = clip(daifuku, *flags, "--lora", f"{lora}:0.5", "--lora", f"{other}:0")
    assert len({plain, both, one}) == 3
    assert clip(daifuku, *flags, "--lora", f"{lora}:0.5") == one


def test_a_relative_path_is_recorded_in_full(daifuku: Daifuku) -> None:
    write_lora(Path("style.safetensors"), seed=0)
    clip(daifuku, *SMALL, "--lora", "style.safetensors:0.8")
    record = json.loads(Path("clip.json").read_text())
    assert record["request"]["loras"] == [[str(Path.cwd() / "style.safetensors"), 0.8]]


def test_a_replay_with_another_file_under_the_name_of_a_lora_is_refused(daifuku: Daifuku) -> None:
    path = write_lora(Path("style.safetensors"), seed=0)
    clip(daifuku, *SMALL, "--lora", path)
    write_lora(path, seed=1)
    changed = daifuku("generate", "--replay", "clip.gif", "-o", "again.gif")
    assert changed.code == 2 and "would be another one" in changed.err
    path.unlink()
    gone = daifuku("generate", "--replay", "clip.gif", "-o", "again.gif")
    assert gone.code == 2 and "Put it back" in gone.err
    assert not Path("again.gif").exists()


@pytest.fixture
def fast_model(tmp_path: Path) -> Path:
    """The built-in model, with a preset for which it brings a LoRA."""
    folder = tmp_path / "fast_model"
    shutil.copytree(BUILT_IN_FOLDER, folder)
    write_lora(folder / "own.safetensors", seed=1)
    preset = {
        "loras": [["own.safetensors", 0.5]],
        "guidance_scale": 1.0,
        "num_inference_steps": 2,
        "linear_steps": None,
    }
    defaults = {"preset": "fast8", "presets": {"fast8": preset}, "guidance_scale": 4.5, "fps": 24}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder


def test_a_models_own_lora_acts_in_its_preset_and_beside_those_of_the_request(
    daifuku: Daifuku, fast_model: Path, lora: Path
) -> None:
    plain = [flag for flag in SMALL if flag not in ("--num-inference-steps", "2")]
    own = f"{fast_model}/own.safetensors:0.5"
    like_fast8 = (*SMALL, "--guidance-scale", "1", "--threshold-noise", "0.1", "--linear-steps", "1")
    for more in ((), ("--lora", lora)):
        found = clip(daifuku, *plain, "--model", fast_model, *more)
        assert found == clip(daifuku, *like_fast8, "--lora", own, *more, name="like")
    exact = clip(daifuku, *SMALL, "--model", fast_model)
    assert exact == clip(daifuku, *SMALL, "--threshold-noise", "0.025", name="without")


def test_a_clip_of_such_a_preset_replays_until_that_lora_changes(daifuku: Daifuku, fast_model: Path) -> None:
    plain = [flag for flag in SMALL if flag not in ("--num-inference-steps", "2")]
    found = clip(daifuku, *plain, "--model", fast_model)
    assert clip(daifuku, "--replay", "clip.gif", name="again") == found
    write_lora(fast_model / "own.safetensors", seed=2)
    changed = daifuku("generate", "--replay", "clip.gif", "-o", "again.gif")
    assert changed.code == 2 and "own.safetensors when it was" in changed.err
    (fast_model / "generation_config.json").write_text("{}")
    gone = daifuku("generate", "--replay", "clip.gif", "-o", "again.gif")
    assert gone.code == 2 and "was made with 1 LoRAs, and 0 would act now" in gone.err


def test_a_lora_that_is_not_there_or_does_not_fit_stops_before_anything_is_made(
    daifuku: Daifuku, model_folder: Path, lora: Path
) -> None:
    missing = daifuku("generate", *SMALL, "--lora", "missing.safetensors", "-o", "clip.gif")
    assert missing.code == 2 and "missing.safetensors" in missing.err
    unfit = daifuku("generate", "a ball", "--model", model_folder, "--lora", lora, "-o", "clip.gif")
    assert unfit.code == 1 and "do not match" in unfit.err
    assert list(Path().glob("*.gif")) == []


def test_a_lora_is_shown_with_what_a_user_needs_to_know(daifuku: Daifuku, lora: Path) -> None:
    page = daifuku("info", lora)
    assert page.code == 0
    for text in ("comfy", "in the style of mochi", "Rice  [31mcakes", "somebody", "mochi1", "attention.video_qkv"):
        assert text in page.out
    assert "\x1b" not in page.out
    found = daifuku("info", lora, "--json").json
    num_blocks = found["modules"]["attention.video_qkv"]
    assert found["layout"] == "comfy" and found["dtypes"] == ["F32"]
    assert found["ranks"] == {"4": 2 * num_blocks} and found["alphas"] == {"2": 2 * num_blocks}
    assert found["trigger_words"] == ["in the style of mochi"]


def test_a_dora_is_shown_as_one(daifuku: Daifuku, lora: Path) -> None:
    assert "a LoRA" in daifuku("info", lora).out
    tensors = load_file(lora)
    up = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file(tensors | {up.replace("lora_B.weight", "dora_scale"): torch.ones(len(tensors[up]))}, "dora.safetensors")
    assert "a DoRA" in daifuku("info", "dora.safetensors").out
    assert daifuku("info", "dora.safetensors", "--json").json["num_doras"] == 1


def test_without_a_phrase_the_most_frequent_tags_are_the_trigger_words() -> None:
    tags = {"10_ball": {"sks ball": 20, "red": 5}, "5_more": {"red": 1, "blue": 9}}
    assert trigger_words({"ss_tag_frequency": json.dumps(tags)}) == ["sks ball", "blue", "red"]
    for text in ("", "[]", '{"a": 1}', '{"a": {"b": "c"}}', "[" * 100_000):
        assert trigger_words({"ss_tag_frequency": text}) == []


def test_a_damaged_lora_is_told_so(daifuku: Daifuku, lora: Path) -> None:
    Path("cut.safetensors").write_bytes(lora.read_bytes()[:-10])
    run = daifuku("info", "cut.safetensors")
    assert run.code == 1 and "damaged" in run.err


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_a_lora_changes_modulations_too_whether_they_come_from_a_table_or_not(lora: Path, mode: str) -> None:
    table, layers = (
        load(lora_mode=mode, tabulate=tabulate)("a red ball", loras=[(str(lora), 1.0)], **CLIP).latents
        for tabulate in (True, False)
    )
    torch.testing.assert_close(table, layers, atol=1e-3, rtol=0)


def load(**settings: Any) -> Any:
    return package.load(device="cpu", runtime=package.RuntimeConfig(**settings))


def test_a_pipeline_changes_loras_from_clip_to_clip(lora: Path) -> None:
    for mode in ("merged", "live"):
        pipe = package.load(device="cpu", runtime=package.RuntimeConfig(lora_mode=mode), loras=[(str(lora), 0.5)])
        styles = [None, [], [(str(lora), 1.0)], [], None]
        clips = [pipe("a red ball", loras=style, **CLIP).latents for style in styles]
        alone = load(lora_mode=mode)
        assert torch.equal(clips[1], alone("a red ball", **CLIP).latents)
        assert torch.equal(clips[0], clips[4]) and torch.equal(clips[1], clips[3])
        assert len({float(latent.sum()) for latent in clips[:3]}) == 3
        assert torch.equal(clips[0], alone("a red ball", loras=f"{lora}:0.5", **CLIP).latents)
