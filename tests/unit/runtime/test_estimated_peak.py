"""What a plan says of memory, against what a fresh process takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PEAK = """
import re, sys
from daifuku.cli.main import main
try:
    main()
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""
SIZES = {
    "the model's own": [],
    "larger": ["--width", "128", "--height", "128", "--num-inference-steps", "2"],
    "in 8 bits": ["--quantise", "int8"],
    "decoded at once": ["--decoding", "whole"],
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
@pytest.mark.parametrize("flags", SIZES.values(), ids=SIZES)
def test_the_peak_of_a_plan_is_within_a_tenth_of_the_peak_of_the_run(flags: list[str], tmp_path: Path) -> None:
    common = ["a ball", "--no-remember-text", *flags]
    asked = subprocess.run(
        [sys.executable, "-m", "daifuku", "plan", *common, "--json"], capture_output=True, check=True
    )
    made = subprocess.run(
        [sys.executable, "-c", PEAK, "generate", *common, "--seed", "1", "-o", str(tmp_path / "clip.mp4")],
        capture_output=True,
        check=True,
    )
    measured = int(made.stderr.split()[-1]) * 1024
    assert json.loads(asked.stdout)["plan"]["peak_bytes"] == pytest.approx(measured, rel=0.1)
