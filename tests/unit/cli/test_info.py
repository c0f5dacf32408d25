"""daifuku info and daifuku doctor, as a user types them."""

import shutil
import sys

import pytest
from safetensors.torch import load_file

from daifuku.runtime import build


def test_info_counts_what_is_in_the_files(daifuku, model_folder):
    found = daifuku("info", model_folder, "--json").json
    parts = {part["name"]: part for part in found["parts"]}
    assert list(parts) == ["transformer", "vae encoder", "vae decoder", "text encoder"]
    for folder, names in {
        "transformer": ["transformer"],
        "vae": ["vae encoder", "vae decoder"],
        "text_encoder": ["text encoder"],
    }.items():
        (path,) = (model_folder / folder).glob("*.safetensors")
        tensors = load_file(path)
        assert sum(parts[name]["tensors"] for name in names) == len(tensors)
        assert sum(parts[name]["parameters"] for name in names) == sum(tensor.numel() for tensor in tensors.values())
        assert found["files"][str(path)] == path.stat().st_size
    assert parts["transformer"]["dtypes"] == {"float32": parts["transformer"]["parameters"]}
    assert parts["transformer"]["sizes"]["num_blocks"] == 2
    assert (found["layout"], found["defaults"]["num_frames"]) == ("diffusers", 7)
    assert found["missing"] == {} and len(found["identity"]) == 16


def test_info_reads_well(daifuku, model_folder):
    run = daifuku("info", model_folder)
    assert run.code == 0 and "transformer: 55,800 parameters in 59 tensors (float32 55,800)" in run.out


def test_info_tells_which_parts_are_missing(daifuku, golden_folder):
    found = daifuku("info", golden_folder, "--json").json
    assert found["layout"] == "original" and found["identity"] is None
    assert [part["name"] for part in found["parts"]] == ["transformer", "vae encoder", "vae decoder"]
    assert list(found["missing"]) == ["text"]
    assert "text: missing" in daifuku("info", golden_folder).out


def test_info_takes_a_single_file(daifuku, golden_folder):
    (part,) = daifuku("info", golden_folder / "decoder.safetensors", "--json").json["parts"]
    assert part["name"] == "vae decoder" and part["parameters"] > 0


def test_info_refuses_what_is_no_model(daifuku, tmp_path):
    run = daifuku("info", "nowhere")
    assert run.code == 2 and "nowhere" in run.err and run.out == ""
    assert daifuku("info", tmp_path).code == 2


def test_doctor_finds_a_sound_model_and_says_what_works(daifuku, model_folder, monkeypatch):
    monkeypatch.setattr(build, "BUILT_IN_FOLDER", model_folder)
    run = daifuku("doctor", "--json")
    found = {finding["name"]: finding for finding in run.json["findings"]}
    assert run.code == 0 and run.json["ready"]
    assert {"python", "torch", "av", "cpu", ".mp4", "euler", "built-in", "hub cache"} <= found.keys()
    assert found["built-in"]["problem"] is None and "parameters" in found["built-in"]["value"]
    page = daifuku("doctor").out
    assert "✓ built-in" in page and "✗ genmo/mochi-1-preview" in page


def test_doctor_says_why_nothing_can_be_generated(daifuku, model_folder, tmp_path, monkeypatch):
    damaged = tmp_path / "damaged"
    shutil.copytree(model_folder, damaged)
    path = damaged / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    monkeypatch.setattr(build, "BUILT_IN_FOLDER", damaged)
    run = daifuku("doctor")
    assert run.code == 1 and "✗ built-in" in run.out and "damaged" in run.out and "(needed)" in run.out
    assert "error: " in run.err


@pytest.mark.parametrize("library", ["torch", "av"])
def test_doctor_survives_a_library_that_does_not_import(daifuku, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    run = daifuku("doctor")
    assert run.code == 1 and f"✗ {library}" in run.out and "Traceback" not in run.err
