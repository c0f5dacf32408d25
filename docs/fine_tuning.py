"""Runs the commands of docs/fine-tuning.md, and writes what they found into the page.

python docs/fine_tuning.py FOLDER        FOLDER gets clips, data, the run and the picture; a stopped run goes on
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "fine-tuning.md"
PICTURE = ROOT / "docs" / "images" / "fine_tuning.png"
COMMANDS = re.compile(r"^```bash no-run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIGURES = re.compile(r"(<!-- figures -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)


def commands(page: str) -> list[str]:
    """What the page tells people to type, in order, without remarks."""
    lines = (line.partition("  #")[0].strip() for block in COMMANDS.findall(page) for line in block.splitlines())
    return [line for line in lines if line]


def run(command: str, folder: Path) -> str:
    """Runs one of them in a folder that has the examples; returns what it printed."""
    if not (folder / "examples").exists():
        (folder / "examples").symlink_to(ROOT / "examples")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def training_time(folder: Path) -> str:
    """How long the steps took, off the run's log."""
    (log,) = folder.glob("runs/*/log.jsonl")
    steps = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
    return f"The {len(steps)} steps took {sum(steps) / 60:.1f} minutes."


def with_figures(page: str, figures: str) -> str:
    """The page with these lines between its marks."""
    return FIGURES.sub(lambda found: found[1] + figures + found[3], page)


def main() -> None:
    """Each command passes over what is there already."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    *_, printed = [run(command, folder) for command in commands(PAGE.read_text())]
    shutil.copy(folder / "zigzag.png", PICTURE)
    PAGE.write_text(with_figures(PAGE.read_text(), f"{printed}\n{training_time(folder)}\n"))


if __name__ == "__main__":
    main()
