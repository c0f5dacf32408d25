"""Makes what the README shows of the built-in model: a contact sheet, a moving picture, and the table of figures.

make docs          measures the model, draws, and writes the table into README.md and docs/tiny.md
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image
from pydantic import TypeAdapter

import daifuku
from daifuku.evaluate.world import WorldReport

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
FIGURES = DOCS / "tiny_world.json"
PAGES = {DOCS.parent / "README.md": 1, DOCS / "tiny.md": 3}
"""How many of the measurements each page shows."""
START, END = "<!-- table:world -->", "<!-- /table -->"

PROMPTS = (
    "a small red ball bouncing on a gray background",
    "a large yellow star swinging like a pendulum on a navy background",
    "a purple ball rolling to the right on a white background",
    "an orange ring thrown to the left on a dark green background",
    "a cyan ball on a spring on a beige background",
    "a pink star falling down on a black background",
    "a blue ring orbiting around the centre on a white background",
    "a green triangle floating up slowly on a gray background",
    "a large blue drop dropping into the pool with a splash on a beige background",
    "a large cloud of orange smoke drifting up to the right on a black background",
    "a large red flag fluttering in the wind to the right on a white background",
    "tall green grass waving in the breeze to the left on a navy background",
)
SEED = 7
COMMAND = [sys.executable, "-m", "daifuku", "evaluate", "world", "--json", "--seeds", "0,1", "--pace", "--paraphrases"]
COMMAND += ["--controls", "--dtype", "bfloat16"]
MEASURED = ("--kinds single --prompts 400", "--kinds pair --prompts 100", "--kinds fluid --prompts 100")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
"""One measurement for each core is quicker than all cores for each."""
COLUMNS = 8


def draw() -> None:
    """One row per prompt for the sheet; all clips side by side for the moving picture."""
    pipe = daifuku.load()
    videos = [pipe(prompt, seed=SEED) for prompt in PROMPTS]
    clips = np.stack([video.frames for video in videos])
    IMAGES.mkdir(exist_ok=True)
    chosen = clips[:, np.linspace(0, clips.shape[1] - 1, COLUMNS).astype(int)]
    sheet = rearrange(chosen, "clips t h w c -> (clips h) (t w) c")
    Image.fromarray(sheet).save(IMAGES / "contact_sheet.png", optimize=True)
    grid = rearrange(clips, "(rows cols) t h w c -> t (rows h) (cols w) c", cols=4)
    frames = [Image.fromarray(frame).quantize(64) for frame in grid]
    duration_ms = 1000 // videos[0].fps
    frames[0].save(
        IMAGES / "built_in.gif", save_all=True, append_images=frames[1:], duration=duration_ms, loop=0, optimize=True
    )


def measured() -> list[bytes]:
    """The reports, as JSON; all of them at the same time."""
    runs = [subprocess.Popen(COMMAND + flags.split(), stdout=subprocess.PIPE, env=ONE_THREAD) for flags in MEASURED]
    reports = [run.communicate()[0] for run in runs]
    if any(run.returncode for run in runs):
        sys.exit("a measurement failed")
    return reports


def write(reports: Sequence[bytes]) -> None:
    """Puts their tables between the markers of each page, and the figures beside them."""
    FIGURES.write_text(json.dumps([json.loads(report) for report in reports], indent=2) + "\n")
    tables = [TypeAdapter(WorldReport).validate_json(report).as_markdown() for report in reports]
    for page, shown in PAGES.items():
        before, _, rest = page.read_text().partition(START)
        _, _, after = rest.partition(END)
        page.write_text(before + START + "\n" + "\n".join(tables[:shown]) + END + after)


if __name__ == "__main__":
    draw()
    write(measured())
