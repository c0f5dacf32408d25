"""daifuku convert: what it prints, what it says, and how it ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from daifuku.weights.load import load_dit


def test_it_prints_the_path_and_nothing_else_on_stdout(daifuku: Callable[..., Any], model_folder: Path):
    run = daifuku("convert", model_folder, "out", "--to", "original", "--only", "dit")
    assert run.code == 0 and run.lines == ["out"]
    assert "writing" in run.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["dit.safetensors", "generation_config.json"]
    assert load_dit("out").config == load_dit(model_folder).config


def test_a_converted_model_makes_the_same_video(daifuku: Callable[..., Any], model_folder: Path):
    assert daifuku("convert", model_folder, "out", "--to", "comfy").code == 0
    for model, name in ((model_folder, "a/"), ("out", "b/")):
        run = daifuku("generate", "a small red ball", "--model", model, "--seed", "3", "--output", name)
        assert run.code == 0, run.err
    first, second = (sorted(Path(name).glob("*.png")) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first


def test_as_json_it_tells_the_size_and_what_to_know(daifuku: Callable[..., Any], model_folder: Path):
    run = daifuku("convert", model_folder, "out.gguf", "--to", "gguf", "--quantise", "q8_0", "--json")
    assert run.json["path"] == "out.gguf" and 0 < run.json["bytes"] <= Path("out.gguf").stat().st_size
    assert run.json["notes"] == ["a GGUF file holds the transformer alone: all other parts are left out"]
    assert "note: a GGUF file holds the transformer alone" in run.err


def test_what_is_there_is_replaced_only_by_force(daifuku: Callable[..., Any], model_folder: Path):
    arguments = ("convert", model_folder, "out.safetensors", "--to", "comfy", "--only", "dit")
    assert daifuku(*arguments).code == 0
    before = load_file("out.safetensors")
    run = daifuku(*arguments, "--dtype", "float16")
    assert run.code == 2 and "out.safetensors is there already; give another OUT, or --force" in run.err
    assert load_file("out.safetensors").keys() == before.keys()
    assert daifuku(*arguments, "--dtype", "float16", "--force").code == 0
    assert "torch.float16" in {str(tensor.dtype) for tensor in load_file("out.safetensors").values()}


def test_the_built_in_model_is_converted_by_its_name(daifuku: Callable[..., Any]):
    run = daifuku("convert", "built-in", "out", "--to", "original", "--only", "dit")
    assert run.lines == ["out"] and Path("out/dit.safetensors").is_file()
