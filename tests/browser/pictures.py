"""Pictures of the page for the documents: `python -m tests.browser.pictures` makes them anew in docs/images."""

import tempfile
from pathlib import Path
from typing import Any

from tests.browser.conftest import READY, open_chromium
from tests.chaos.live import Live

IMAGES = Path(__file__).parents[2] / "docs" / "images"

PROMPTS = (
    "a cyan ball on a spring on a beige background",
    "a big green triangle spinning on a black background",
    "a blue ring orbiting around the centre on a white background",
    "an orange ring thrown to the left on a dark green background",
    "a purple square rolling to the right on a white background",
    "a small red ball bouncing on a gray background",
    "a pink star falling down on a black background",
)
"""What the gallery shows, the oldest first."""

SEED = 7
WIDE = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 375, "height": 812}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def draw(folder: Path, chromium: Any, server: Live) -> list[Path]:
    """The page in light colours while a video is made, in dark ones with two side by side, and on a phone."""
    jobs = [server.submit({"prompt": prompt, "seed": SEED}).json()["id"] for prompt in PROMPTS]
    for job_id in jobs:
        assert server.wait(job_id)["status"] == "completed"
    made = []

    def _shoot(page: Any, name: str) -> None:
        made.append(folder / f"studio_{name}.png")
        page.wait_for_timeout(600)
        page.screenshot(path=made[-1])
        page.context.close()

    page = _open(chromium, server, WIDE)
    page.get_by_label("Prompt", exact=True).fill("a large yellow star swinging like a pendulum on a navy background")
    page.locator("#seed input").fill(str(SEED))
    # Eight steps would be over before the picture is taken.
    page.get_by_label("exact", exact=True).check(force=True)
    page.wait_for_selector("text=Exact approximates nothing")
    page.wait_for_selector(".tokens")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".progress >> text=/^1\\d of 32/")
    _shoot(page, "light")

    page = _open(chromium, server, WIDE | {"color_scheme": "dark"})
    page.locator(f".card[data-id={jobs[1]}]").click()
    page.locator(f".stage[data-id={jobs[1]}]").get_by_role("button", name="Compare").click()
    page.wait_for_selector(".hint")
    page.locator(f".card[data-id={jobs[3]}]").click()
    page.wait_for_function("document.querySelector('studio-pair')?.players.length === 2")
    page.evaluate("scrollTo(0, 0)")
    _shoot(page, "dark")

    page = _open(chromium, server, PHONE)
    page.locator(f".card[data-id={jobs[5]}]").click()
    page.wait_for_function("document.querySelector('studio-clip').player?.readyState >= 2")
    page.evaluate("document.getElementById('stage').scrollIntoView()")
    page.wait_for_timeout(2500)
    _shoot(page, "phone")
    return made


def _open(chromium: Any, server: Live, options: dict[str, Any]) -> Any:
    page = chromium.new_context(**options).new_page()
    page.goto(server.url)
    page.wait_for_selector(READY)
    return page


def main() -> None:
    """Draws into the documents."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Live(Path(folder), settings={"studio": "true", "preview_every": "1"}) as server,
        open_chromium() as chromium,
    ):
        server.wait_ready()
        for path in draw(IMAGES, chromium, server):
            print(path)


if __name__ == "__main__":
    main()
