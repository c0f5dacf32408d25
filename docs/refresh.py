"""Makes what the README shows of the built-in model: a contact sheet, a moving picture, and the table of figures.

make docs          measures the model, draws, and writes the table into README.md and docs/tiny.md
"""

from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

import daifuku
from daifuku.cli.evaluate import measure_world

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
FIGURES = DOCS / "tiny_world.json"
PAGES = (DOCS.parent / "README.md", DOCS / "tiny.md")
START, END = "<!-- table:world -->", "<!-- /table -->"

PROMPTS = (
    "a small red ball bouncing on a gray background",
    "a large yellow star swinging like a pendulum on a navy background",
    "a purple square rolling to the right on a white background",
    "a big green triangle spinning on a black background",
    "an orange ring thrown to the left on a dark green background",
    "a cyan ball on a spring on a beige background",
    "a pink star falling down on a black background",
    "a blue ring orbiting around the centre on a white background",
)
SEED = 7
NUM_PROMPTS = 200
COLUMNS = 8
SCALE = 2


def draw() -> None:
    """One row per prompt for the sheet; all clips side by side for the moving picture."""
    pipe = daifuku.load()
    videos = [pipe(prompt, seed=SEED) for prompt in PROMPTS]
    clips = np.stack([video.frames for video in videos]).repeat(SCALE, axis=2).repeat(SCALE, axis=3)
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


def measure() -> None:
    """Puts the measured table between the markers of each page, and the figures beside them."""
    report = measure_world(daifuku.load(), num_prompts=NUM_PROMPTS)
    FIGURES.write_text(report.to_json() + "\n")
    table = report.as_markdown()
    for page in PAGES:
        before, _, rest = page.read_text().partition(START)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{START}\n{table}{END}{after}")


if __name__ == "__main__":
    draw()
    measure()
