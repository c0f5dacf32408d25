"""The command as a whole."""

import os
import subprocess
import sys
from dataclasses import fields
from time import perf_counter

from daifuku.request import GenerateRequest, choices
from daifuku.version import VERSION


def test_help_names_every_command_and_imports_nothing_heavy():
    script = (
        "import sys; sys.argv = ['daifuku', 'generate', '--help']\n"
        "from daifuku.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'av', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_runs_like_the_command():
    done = subprocess.run([sys.executable, "-m", "daifuku", "--help"], capture_output=True, text=True, check=True)
    for command in ("generate", "decode", "info", "doctor"):
        assert command in done.stdout


def test_help_takes_less_than_half_a_second_of_processor_time():
    before = os.times()
    subprocess.run([sys.executable, "-m", "daifuku", "--help"], capture_output=True, check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.5


def test_the_help_of_generate_shows_range_and_default_of_every_field(daifuku, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    page = daifuku("generate", "--help").out
    for each in fields(GenerateRequest):
        if each.name == "prompt":
            continue
        flag = each.metadata.get("flag") or f"--{each.name.replace('_', '-')}"
        (line,) = [line for line in page.splitlines() if f"{flag} " in line]
        about = each.metadata
        if about["type"] in (int, float):
            assert f"{about['min']} to {about['max']}" in line
        assert all(choice in line for choice in choices(each) or ())
        if about["default"]:
            assert f"default {about['default']}" in line


def test_the_version_is_shown(daifuku):
    run = daifuku("--version")
    assert (run.code, run.out) == (0, f"{VERSION}\n")


def test_an_unknown_command_is_a_wrong_request_and_the_nearest_is_named(daifuku):
    run = daifuku("generat")
    assert run.code == 2 and "generate" in run.err


def test_the_command_alone_shows_its_help(daifuku):
    started = perf_counter()
    run = daifuku()
    assert "Usage: daifuku" in run.out + run.err and perf_counter() - started < 5
