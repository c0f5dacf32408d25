"""daifuku generate, as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from daifuku.cli.preview import PreviewPicture
from daifuku.errors import InvalidRequest, NonFiniteLatent
from daifuku.events import Preview
from daifuku.media.read import read_metadata, read_video
from daifuku.request import GenerateRequest
from daifuku.runtime import build

FILES = ["clip.json", "clip.mp4"]


@pytest.fixture
def no_weights(monkeypatch):
    """Reading any weight is an error."""

    def never(*arguments, **options):
        raise AssertionError("weights were read")

    for name in ("load_vae", "load_text_encoder"):
        monkeypatch.setattr(build, name, never)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_stdout_carries_only_the_path_of_a_clip_with_its_record(daifuku, model_folder, tmp_path):
    run = daifuku("generate", "a red ball", "--model", model_folder, "--seed", 5, "-o", "clip.mp4")
    assert (run.code, run.out) == (0, "clip.mp4\n")
    assert names(tmp_path) == FILES
    record = read_metadata("clip.mp4")
    assert record == read_metadata("clip.json")
    assert record["request"]["prompt"] == "a red ball" and record["request"]["seed"] == 5
    assert record["model"]["name"] == str(model_folder) and len(record["model"]["identity"]) == 16
    assert set(record["versions"]) >= {"daifuku", "torch"}
    assert all(seconds > 0 for seconds in record["timings"].values())
    assert read_video("clip.mp4").frames.shape == (7, 16, 32, 3)


def test_progress_goes_to_stderr_with_rate_and_seed(daifuku, model_folder):
    run = daifuku("generate", "a red ball", "--model", model_folder, "--seed", 5)
    assert "seed 5" in run.err and "sampling" in run.err and "3/3" in run.err and "7/7" in run.err


def test_a_clip_without_a_name_is_called_after_its_prompt_and_seed(daifuku, model_folder):
    prompt = "A small, red ball; " + "bouncing " * 10
    run = daifuku("generate", prompt, "--model", model_folder, "--seed", 12)
    assert run.out == "outputs/a-small-red-ball-bouncing-bouncing-bouncing-12.mp4\n"
    assert daifuku("generate", "", "--model", model_folder, "--seed", 12).out == "outputs/clip-12.mp4\n"


def test_a_seed_is_drawn_and_recorded_if_none_is_given(daifuku, model_folder):
    runs = [daifuku("generate", "a ball", "--model", model_folder, "--json").json["clips"][0] for _ in range(2)]
    assert runs[0]["request"]["seed"] != runs[1]["request"]["seed"]


def test_every_flag_reaches_the_request(daifuku, model_folder):
    wanted = {
        "negative_prompt": "small", "height": 32, "width": 16, "num_frames": 1, "num_inference_steps": 4,
        "guidance_scale": [2.0, 1.0, 1.5, 1.0], "seed": 9, "fps": 12, "solver": "heun", "threshold_noise": 0.1,
        "linear_steps": 1, "preset": "balanced", "guidance_start_sigma": 0.9, "guidance_end_sigma": 0.1,
        "guidance_every": 3, "step_cache": "first_block", "cache_threshold": 0.2,
    }  # fmt: skip
    flags = [
        word
        for name, value in wanted.items()
        for word in (
            f"--{name.replace('_', '-')}",
            ",".join(map(str, value)) if isinstance(value, list) else value,
        )
    ]
    run = daifuku("generate", "a ball", "--model", model_folder, "--json", *flags)
    assert run.json["clips"][0]["request"] == {"prompt": "a ball", "loras": [], **wanted}
    assert set(wanted) | {"prompt", "loras"} == set(GenerateRequest.__dataclass_fields__)


def test_json_is_one_object_with_every_clip(daifuku, model_folder):
    run = daifuku("generate", "a ball", "--model", model_folder, "--seed", 3, "--count", 2, "--json", "--save-latents")
    clips = run.json["clips"]
    assert [clip["request"]["seed"] for clip in clips] == [3, 4]
    assert all(Path(clip["path"]).is_file() and Path(clip["latents"]).is_file() for clip in clips)


def test_several_clips_of_one_name_get_their_seeds(daifuku, model_folder):
    run = daifuku("generate", "a ball", "--model", model_folder, "--seed", 3, "--count", 2, "-o", "new/clip.gif")
    assert run.lines == ["new/clip-3.gif", "new/clip-4.gif"]
    run = daifuku("generate", "a ball", "--model", model_folder, "--seed", 3, "--count", 2, "-o", "frames/")
    assert run.lines == ["frames-3", "frames-4"]


def test_a_count_gives_the_clips_that_each_seed_gives_alone(daifuku, model_folder):
    daifuku("generate", "a ball", "--model", model_folder, "--seed", 3, "--count", 2, "-o", "clip/")
    daifuku("generate", "a ball", "--model", model_folder, "--seed", 4, "-o", "alone/")
    assert np.array_equal(read_video("clip-4").frames, read_video("alone").frames)
    assert not np.array_equal(read_video("clip-3").frames, read_video("alone").frames)


def test_a_name_that_is_taken_is_not_overwritten_and_said_so(daifuku, model_folder, tmp_path):
    (tmp_path / "clip.mp4").write_text("mine")
    run = daifuku("generate", "a ball", "--model", model_folder, "-o", "clip.mp4")
    assert run.out == "clip-1.mp4\n" and "clip.mp4 exists, so this clip is clip-1.mp4" in run.err
    assert (tmp_path / "clip.mp4").read_text() == "mine"


def test_a_sweep_makes_a_clip_for_each_line_with_the_flags_as_its_base(daifuku, model_folder, tmp_path):
    lines = ['{"num_frames": 13, "output": "long.gif"}', "", '{"prompt": "small", "guidance_scale": [1, 1, 2]}']
    (tmp_path / "sweep.jsonl").write_text("\n".join(lines))
    run = daifuku(
        "generate", "a ball", "--sweep", "sweep.jsonl", "--model", model_folder, "--seed", 1, "--fps", 9, "--json"
    )
    first, second = run.json["clips"]
    assert first["path"] == "long.gif" and second["path"] == "outputs/small-1.mp4"
    assert (first["request"]["prompt"], first["request"]["num_frames"], first["request"]["fps"]) == ("a ball", 13, 9)
    assert second["request"]["guidance_scale"] == [1.0, 1.0, 2.0] and second["request"]["num_frames"] == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x", "num_frames": 20}', "Try 19 or 25"),
        ('{"prompt": "x", "hight": 32}', "height"),
        ('{"seed": 1}', "prompt"),
        ('["x"]', "JSON object"),
        ("prompt: x", "no JSON"),
        ('{"prompt": "x", "output": 7}', "output=7"),
    ],
)
def test_a_bad_line_of_a_sweep_is_named_before_anything_runs(
    daifuku, model_folder, tmp_path, no_weights, line, message
):
    (tmp_path / "sweep.jsonl").write_text(f'{{"prompt": "good"}}\n{line}\n')
    run = daifuku("generate", "--sweep", "sweep.jsonl", "--model", model_folder)
    assert run.code == 2 and run.out == ""
    assert "sweep.jsonl, line 2: " in run.err and message in run.err and "Traceback" not in run.err
    assert names(tmp_path) == ["sweep.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-frames", 20], "Try 19 or 25"),
        (["--height", 100], "Try 96 or 112"),
        (["--num-inference-steps", 0], "Try 1"),
        (["--guidance-scale", "6,6"], "Try 3 values"),
        (["--guidance-scale", "six"], "Try 6.0"),
        (["--solver", "eular"], "euler"),
        (["-o", "clip.avi"], "clip.mp4"),
        (["-o", "clip"], "clip/"),
        (["--device", "gpu"], "Try cpu"),
        (["--dtype", "float8"], "float32"),
        (["--sweep", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--replay", "nowhere.mp4"], "--replay"),
    ],
)
def test_a_wrong_request_is_refused_before_any_weight_is_read(
    daifuku, model_folder, tmp_path, no_weights, flags, message
):
    run = daifuku("generate", "a ball", "--model", model_folder, *flags)
    assert run.code == 2 and run.out == ""
    assert run.err.startswith("error: ") and len(run.err.splitlines()) == 1 and message in run.err
    assert names(tmp_path) == []


@pytest.mark.parametrize("flags", [["--height", "tall"], ["--tall"], ["--count", 0]])
def test_a_flag_that_cannot_be_read_is_a_wrong_request(daifuku, flags):
    assert daifuku("generate", "a ball", *flags).code == 2


def test_there_must_be_a_prompt(daifuku):
    run = daifuku("generate")
    assert run.code == 2 and "no prompt" in run.err


def test_an_unknown_model_is_a_wrong_request(daifuku):
    run = daifuku("generate", "a ball", "--model", "no-such-folder")
    assert run.code == 2 and "no-such-folder" in run.err and len(run.err.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="root may write everywhere else")
def test_a_place_that_takes_no_files_is_refused(daifuku, model_folder, no_weights):
    run = daifuku("generate", "a ball", "--model", model_folder, "-o", "/proc/clip.mp4")
    assert run.code == 2 and "/proc" in run.err


def test_a_prompt_that_is_too_long_is_cut_with_a_warning_that_shows_the_count(daifuku, model_folder):
    run = daifuku("generate", "a " * 299 + "ball", "--model", model_folder)
    assert run.code == 0
    assert "301 tokens and the model reads 256; left out: " in run.err and "ball'" in run.err
    assert "PromptCut" not in run.err


def test_weights_that_give_nan_end_with_1_and_no_file(daifuku, other_model_folder, tmp_path, monkeypatch):
    def break_down(*arguments, **options):
        raise NonFiniteLatent("the latent is NaN")
        yield

    monkeypatch.setattr("daifuku.pipeline.finite", break_down)
    run = daifuku("generate", "a ball", "--model", other_model_folder, "-o", "clip/")
    assert run.code == 1 and run.out == "" and "error: the latent is NaN" in run.err
    assert names(tmp_path) == []


def test_clips_that_were_finished_before_a_failure_are_reported(daifuku, model_folder, tmp_path, monkeypatch):
    lines = ['{"prompt": "a ball", "seed": 1}', '{"prompt": "a ball", "seed": 2, "num_inference_steps": 2}']
    (tmp_path / "sweep.jsonl").write_text("\n".join(lines))
    from daifuku import pipeline

    schedule = pipeline.linear_quadratic

    def fail_for_two_steps(num_steps, *arguments):
        if num_steps == 2:
            raise NonFiniteLatent("the latent is NaN")
        return schedule(num_steps, *arguments)

    monkeypatch.setattr(pipeline, "linear_quadratic", fail_for_two_steps)
    run = daifuku("generate", "--sweep", "sweep.jsonl", "--model", model_folder, "--json")
    assert run.code == 1 and [clip["request"]["seed"] for clip in run.json["clips"]] == [1]


def test_a_bug_is_one_line_unless_debugging_is_asked_for(daifuku, monkeypatch):
    def boom(*arguments, **options):
        raise RuntimeError("boom\nmore")

    monkeypatch.setattr("daifuku.pipeline.load", boom)
    run = daifuku("generate", "a ball")
    assert run.code == 1 and len(run.err.splitlines()) == 1 and "RuntimeError: boom" in run.err
    run = daifuku("--debug", "generate", "a ball")
    assert run.code == 1 and "Traceback" in run.err


def test_saved_latents_are_float32_and_carry_the_record(daifuku, model_folder):
    daifuku("generate", "a ball", "--model", model_folder, "-o", "clip.mp4", "--save-latents")
    with safe_open("clip.latents.safetensors", "pt") as file:
        latents = file.get_tensor("latents")
        record = json.loads(file.metadata()["daifuku"])
    assert latents.shape == (12, 2, 2, 4) and str(latents.dtype) == "torch.float32"
    assert record == read_metadata("clip.mp4")


@pytest.mark.parametrize("name", ["clip/", "clip.mp4", "clip.gif"])
def test_a_replay_makes_the_same_clip_bit_for_bit(daifuku, model_folder, name):
    flags = ["--guidance-scale", "3,1,2", "--negative-prompt", "red"]
    first = daifuku("generate", "a ball", "--model", model_folder, "-o", name, *flags).lines[0]
    run = daifuku("generate", "--replay", first, "-o", f"again{name.removeprefix('clip')}")
    assert run.code == 0 and "warning" not in run.err
    again = run.lines[0]
    assert np.array_equal(read_video(first).frames, read_video(again).frames)
    assert read_metadata(first)["request"] == read_metadata(again)["request"]


def test_a_replay_takes_the_record_alone_and_names_the_clip_like_any_other(daifuku, model_folder):
    daifuku("generate", "a ball", "--model", model_folder, "-o", "clip.gif", "--seed", 8)
    os.remove("clip.gif")
    assert daifuku("generate", "--replay", "clip.json").out == "outputs/a-ball-8.mp4\n"


def test_a_replay_with_other_weights_is_refused(daifuku, model_folder, other_model_folder, tmp_path, no_weights):
    record = {
        "request": {"prompt": "a ball", "seed": 1},
        "model": {"name": str(model_folder), "identity": "0123456789abcdef", "device": "cpu"},
        "runtime": {"dtype": "float32"},
    }
    (tmp_path / "clip.json").write_text(json.dumps(record))
    for flags in ([], ["--model", other_model_folder]):
        run = daifuku("generate", "--replay", "clip.json", *flags)
        assert run.code == 2 and "0123456789abcdef" in run.err and "--model" in run.err


def test_a_replay_finds_weights_that_were_moved(daifuku, model_folder, tmp_path):
    moved = tmp_path / "old"
    moved.symlink_to(model_folder)
    daifuku("generate", "a ball", "--model", moved, "-o", "clip.mp4")
    moved.unlink()
    assert daifuku("generate", "--replay", "clip.mp4").code == 2
    assert daifuku("generate", "--replay", "clip.mp4", "--model", model_folder).code == 0


def test_a_replay_with_other_versions_warns(daifuku, model_folder):
    daifuku("generate", "a ball", "--model", model_folder, "-o", "clip.gif")
    record = json.loads(Path("clip.json").read_text())
    record["versions"]["torch"] = "1.0"
    Path("old.json").write_text(json.dumps(record))
    run = daifuku("generate", "--replay", "old.json")
    assert run.code == 0 and "instead of 1.0" in run.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_from_seed": False}, "noise of its own"),
        ({"decoded_by": {}}, "decoded by another model"),
        ({"request": {}}, "prompt"),
        ({"request": None}, "not complete"),
        ({"model": None}, "not complete"),
        ({"model": {"identity": None}}, "in memory"),
        ({"model": {"identity": "0"}}, "not complete"),
    ],
)
def test_a_record_that_does_not_suffice_is_refused(daifuku, tmp_path, change, message):
    model = {"name": "built-in", "identity": "0123456789abcdef", "device": "cpu"}
    record = {"request": {"prompt": "x"}, "model": model, "runtime": {}}
    (tmp_path / "clip.json").write_text(json.dumps({**record, **change}))
    run = daifuku("generate", "--replay", "clip.json")
    assert run.code == 2 and message in run.err and run.err.startswith("error: ")


def test_a_clip_without_a_record_cannot_be_replayed(daifuku, tmp_path):
    (tmp_path / "clip.gif").write_bytes(b"GIF89a")
    run = daifuku("generate", "--replay", "clip.gif")
    assert run.code == 2 and "no record" in run.err


@pytest.mark.parametrize(
    ("sign", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_run_that_is_stopped_leaves_only_what_it_takes_to_go_on(model_folder, tmp_path, sign, code, word):
    command = [sys.executable, "-m", "daifuku", "generate", "a ball", "--model", str(model_folder), "-o", "frames/"]
    command += ["--num-frames", "241", "--height", "64", "--width", "64", "--num-inference-steps", "1"]
    source = str(Path(build.__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 300
    while not list(tmp_path.rglob("*.png")) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.01)
    assert list(tmp_path.rglob("*.png")), process.communicate(timeout=300)[1]
    process.send_signal(sign)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code and out == ""
    assert err.rstrip().endswith(word) and "Traceback" not in err
    assert names(tmp_path) == ["frames.resume.safetensors"] and "--resume frames.resume.safetensors" in err


def test_damaged_weights_end_with_1(daifuku, model_folder, tmp_path):
    for part in ("vae", "text_encoder", "tokenizer", "model_index.json", "generation_config.json"):
        target = tmp_path / "model" / part
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(model_folder / part)
    weights = load_file(model_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    weights.pop("proj_out.weight")
    (tmp_path / "model" / "transformer").mkdir()
    save_file(weights, tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    run = daifuku("generate", "a ball", "--model", "model", "-o", "clip.mp4")
    assert run.code == 1 and "proj_out.weight" in run.err
    assert names(tmp_path) == ["model"]


def test_previews_show_in_a_picture_beside_the_clip_until_it_is_done(daifuku, model_folder, tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setattr("daifuku.runtime.build.cache_folder", lambda: home)
    flags = ["generate", "a ball", "--model", model_folder, "--preview", 1, "--seed", 1, "-o"]
    first = daifuku(*flags, "first.gif")
    assert first.code == 0 and "preview" not in first.err and list(home.rglob("*.json"))
    seen = []
    show = PreviewPicture.show

    def watched(self, event):
        show(self, event)
        if isinstance(event, Preview):
            seen.append((event.index, event.frames.shape, self.path.read_bytes()[1:4]))

    monkeypatch.setattr(PreviewPicture, "show", watched)
    second = daifuku(*flags, "second.gif")
    assert second.code == 0 and "preview: second.preview.png" in second.err
    assert seen == [(index, (2, 2, 4, 3), b"PNG") for index in (1, 2, 3)]
    assert not Path("second.preview.png").exists()
    assert np.array_equal(read_video("first.gif").frames, read_video("second.gif").frames)


@pytest.mark.parametrize(
    "flags",
    [
        ["--residency", "offload"],
        ["--residency", "stream"],
        ["--residency", "stream", "--no-tabulate"],
        ["--no-tabulate"],
        ["--chunk-tokens", 3],
        ["--batch-guidance"],
        ["--decoding", "whole"],
        ["--kernel", "matmul"],
    ],
)
def test_an_exact_way_of_running_shows_the_same_clip(daifuku, model_folder, flags):
    daifuku("generate", "a ball", "--model", model_folder, "--seed", 1, "-o", "usual/")
    run = daifuku("generate", "a ball", "--model", model_folder, "--seed", 1, "-o", "other/", *flags)
    assert run.code == 0 and "running with" in run.err
    usual, other = read_video("usual").frames.astype(int), read_video("other").frames.astype(int)
    assert np.abs(usual - other).max() <= 1


@pytest.mark.parametrize("flags", [["--quantise", "int8"], ["--residency", "stream", "--quantise", "fp8_storage"]])
def test_an_approximate_way_of_running_tells_its_measured_error(daifuku, model_folder, flags):
    run = daifuku("generate", "a ball", "--model", model_folder, "--seed", 1, "-o", "clip.gif", *flags)
    assert run.code == 0 and "on average" in run.err and "at worst" in run.err


def test_a_way_of_running_that_is_not_there_is_refused(daifuku, model_folder, tmp_path):
    run = daifuku("generate", "a ball", "--model", model_folder, "--kernel", "flash_attn", "-o", "clip.gif")
    assert run.code == 2 and "flash_attn" in run.err and "auto" in run.err and names(tmp_path) == []


def test_the_same_prompt_with_another_seed_needs_no_text_encoder(daifuku, model_folder, monkeypatch):
    make = ("generate", "a ball that nobody asked for", "--model", model_folder)
    assert daifuku(*make, "--seed", 1, "-o", "first/").code == 0

    def never(*arguments, **options):
        raise InvalidRequest("the text encoder was read")

    monkeypatch.setattr("daifuku.runtime.build._read_text", never)
    assert daifuku(*make, "--seed", 1, "-o", "again/").code == 0
    assert np.array_equal(read_video("first").frames, read_video("again").frames)
    assert daifuku(*make, "--seed", 2).code == 0
    assert "text encoder was read" in daifuku(*make, "--seed", 2, "--no-remember-text").err
