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
FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)


def commands(page: str) -> list[str]:
    """What the page tells people to type, in order, without remarks."""
    lines = (line.partition("  #")[0].strip() for block in COMMANDS.findall(page) for line in block.splitlines())
    return [line for line in lines if line]


def run(command: str, folder: Path) -> str:
    """Runs one of them in a folder that has the examples; returns what it printed."""
    (folder / "examples").exists() or (folder / "examples").symlink_to(ROOT / "examples")
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


def main() -> None:
    """Refuses nothing: what is there already is passed over by the commands themselves."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    page = PAGE.read_text()
    for command in commands(page):
        printed = run(command, folder)
    shutil.copy(folder / "zigzag.png", PICTURE)
    PAGE.write_text(FIGURES.sub(lambda found: f"{found[1]}{printed}\n{training_time(folder)}\n{found[2]}", page))


if __name__ == "__main__":
    main()
