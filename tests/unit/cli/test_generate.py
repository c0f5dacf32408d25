"""daifuku generate, as a user types it."""

from pathlib import Path


def test_try(daifuku, model_folder, tmp_path):
    run = daifuku("generate", "a small red ball", "--model", model_folder, "--seed", 3, "--save-latents")
    print(run.out, run.err, run.code)
    print(sorted(tmp_path.rglob("*")))
    p = run.lines[0]
    run = daifuku("generate", "--replay", p, "--json")
    print(run.out, run.err, run.code)
    run = daifuku("info", model_folder)
    print(run.out, run.err, run.code)
    run = daifuku("decode", p.replace(".mp4", ".latents.safetensors"),"-o","x/")
    print(run.out, run.err, run.code)
    run = daifuku("doctor")
    print(run.out, run.err, run.code)
    assert 0
