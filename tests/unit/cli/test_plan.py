"""daifuku plan, and what generate says of it."""

import pytest


def test_the_plan_of_a_small_model_keeps_everything_resident(daifuku, model_folder, no_reading):
    run = daifuku("plan", "--model", model_folder, "--json")
    plan = run.json["plan"]
    assert run.code == 0 and plan["fits"] and plan["runtime"]["residency"] == "resident"
    assert [stage["name"] for stage in plan["stages"]] == ["text", "sampling", "decoding"]
    assert plan["peak_bytes"] > plan["base_bytes"] > 0
    assert {"every network on the device", "decoding all at once"} & {each["name"] for each in run.json["alternatives"]}


def test_the_page_shows_stages_and_alternatives(daifuku, model_folder, no_reading):
    page = daifuku("plan", "--model", model_folder, "--num-frames", 31).out
    assert all(
        word in page for word in ("residency", "sampling", "decoding", "what else it could be", "its blocks streamed")
    )


def test_less_memory_means_another_plan(daifuku, model_folder, no_reading):
    size = ["--height", 480, "--width", 848, "--num-frames", 163]
    whole = daifuku("plan", "--model", model_folder, "--json", "--vram", "64GiB", *size).json["plan"]
    base = whole["base_bytes"] / 2**30
    needed = whole["peak_bytes"] / 2**30
    tight = daifuku("plan", "--model", model_folder, "--json", "--vram", f"{(base + needed) / 2:.2f}GiB", *size)
    assert tight.json["plan"]["runtime"]["decoding"] == "tiled"
    assert tight.json["plan"]["peak_bytes"] < whole["peak_bytes"]


def test_what_cannot_fit_is_said_and_the_smallest_plan_shown(daifuku, model_folder, no_reading):
    run = daifuku("plan", "--model", model_folder, "--vram", "10MiB")
    assert run.code == 0 and "does not fit" in run.out and "fewer frames" in run.err
    run = daifuku("generate", "a ball", "--model", model_folder, "--vram", "10MiB", "-o", "clip.gif")
    assert run.code == 1 and "fewer frames" in run.err


@pytest.mark.parametrize(("flags", "hint"), [(["--vram", "lots"], "12GiB"), (["--residency", "disk"], "stream")])
def test_wrong_flags_are_refused(daifuku, model_folder, flags, hint):
    run = daifuku("plan", "--model", model_folder, *flags)
    assert run.code == 2 and hint in run.err


@pytest.fixture
def no_reading(monkeypatch):
    """Reading any weight is an error."""

    def never(*arguments, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr("daifuku.weights.tensors.TensorFiles.read", never)
