"""The page as people use it: Chromium, a live server, the built-in model."""

import json
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import READY
from tests.browser.pictures import IMAGES, draw
from tests.chaos.live import LONG, SHORT, Live

pytestmark = pytest.mark.slow

Visit = Callable[..., Any]

PROMPT = "a small red ball bouncing on a gray background"


def wait_made(page: Any) -> str:
    """Until the chosen video is there; its id."""
    page.wait_for_selector(".stage.is-completed studio-clip")
    return page.get_attribute(".stage", "data-id")


def write(page: Any, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)


def small(page: Any, *, steps: int = 8) -> None:
    """The form asks for a job of a moment."""
    if not page.get_by_label("Steps").is_visible():
        page.get_by_role("button", name="More").click()
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_label("Steps").blur()


def listed(server: Live) -> list[dict[str, Any]]:
    return server.http.get("/v1/videos?limit=100").json()["data"]


def made(server: Live, **changes: Any) -> str:
    """A finished job that the page finds."""
    job_id = server.submit(SHORT | changes).json()["id"]
    assert server.wait(job_id)["status"] == "completed"
    return job_id


def test_a_video_is_made_with_its_progress_and_its_preview_in_view(server: Live, visit: Visit) -> None:
    page = visit()
    small(page, steps=60)
    write(page, PROMPT)
    page.wait_for_selector(".tokens >> text=/\\d+ of 256 tokens/")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("[role=progressbar]")
    page.wait_for_selector("studio-preview[image^='data:image/png']")
    page.wait_for_selector(".progress >> text=/\\d+ of 60/")
    page.wait_for_selector(".progress >> text=/about .* left/")
    job = server.http.get(f"/v1/videos/{wait_made(page)}").json()
    assert (job["prompt"], job["num_inference_steps"]) == (PROMPT, 60)
    page.wait_for_function("document.querySelector('studio-clip').player?.readyState >= 2")
    assert page.evaluate("document.querySelector('studio-clip').player.videoWidth") == 96


def test_a_job_is_found_again_after_a_reload_and_after_the_server_starts_again(tmp_path: Path, visit: Visit) -> None:
    with Live(tmp_path, settings={"studio": "true"}) as server:
        server.wait_ready()
        page = visit(server.url)
        job_id = server.submit(LONG).json()["id"]
        page.reload()
        page.wait_for_selector(f".stage[data-id={job_id}] [role=progressbar]")
        server.kill()
        # The page is open at the old address; the next server takes another.
        server.start()
        server.wait_ready()
        page = visit(server.url)
        assert wait_made(page) == job_id
        assert page.locator(".card").count() == 1


def test_a_page_waits_for_a_server_that_is_away_and_keeps_what_was_typed(visit: Visit) -> None:
    page = visit()
    write(page, PROMPT)
    page.route("**/livez", lambda route: route.abort())
    page.wait_for_selector("text=The server does not answer")
    page.unroute("**/livez")
    page.wait_for_selector(".away", state="detached")
    page.wait_for_function(f"document.querySelector('#prompt textarea')?.value === '{PROMPT}'")
    page.wait_for_selector(READY)
    page.wait_for_selector(".tokens")


def test_a_job_is_cancelled(server: Live, visit: Visit) -> None:
    page = visit()
    small(page, steps=500)
    write(page, PROMPT)
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("[role=progressbar]")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector(".stage.is-cancelled")
    assert listed(server)[0]["status"] == "cancelled"


def test_a_replay_has_the_same_frames_and_a_variation_has_others(server: Live, visit: Visit) -> None:
    first = made(server, seed=11)
    page = visit()
    page.locator(f".card[data-id={first}]").click()
    frames = page.get_attribute(f".stage[data-id={first}]", "data-frames")
    page.get_by_role("button", name="Replay").click()
    page.wait_for_selector(f".stage.is-completed:not([data-id={first}])")
    assert page.get_attribute(".stage", "data-frames") == frames
    again = page.get_attribute(".stage", "data-id")
    page.get_by_role("button", name="Vary").click()
    page.wait_for_selector(f".stage.is-completed:not([data-id={first}]):not([data-id={again}])")
    assert page.get_attribute(".stage", "data-frames") != frames


def test_a_job_that_waits_says_how_many_come_first_and_moves_up(server: Live, visit: Visit) -> None:
    first, second, third = (server.submit(body).json()["id"] for body in (LONG, SHORT, SHORT))
    page = visit()
    page.locator(f".card[data-id={third}]").click()
    page.wait_for_selector(f".stage[data-id={third}] .progress >> text=/1 job before|Next in line/")
    server.http.post(f"/v1/videos/{first}/cancel")
    assert wait_made(page) == third
    assert server.wait(second)["status"] == "completed"


@pytest.mark.parametrize(
    "prompt",
    [
        "<img src=x onerror='window.hurt=1'><script>window.hurt=1</script>",
        '"><iframe srcdoc="<script>parent.hurt=1</script>"></iframe>',
        "{{#each this}}${window.hurt=1}{{/each}} `${window.hurt=1}`",
        "</p></article><button data-do=remove data-id=x>x</button><style>*{display:none}</style>",
        "**bold** [link](javascript:window.hurt=1) $x^2$ <b>b</b> &lt;i&gt; \u202egnp.exe",
    ],
)
def test_what_a_user_wrote_is_inert(server: Live, visit: Visit, prompt: str) -> None:
    job_id = made(server, prompt=prompt, negative_prompt=prompt)
    page = visit()
    page.locator(f".card[data-id={job_id}]").click()
    page.wait_for_selector(f".stage[data-id={job_id}]")
    page.get_by_text("Everything about it").click()
    assert page.locator(".stage .prompt").inner_text() == prompt
    assert page.locator(f".card[data-id={job_id}] .name").text_content() == prompt
    page.get_by_role("button", name="Edit").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.length > 0")
    assert page.get_by_label("Prompt", exact=True).input_value() == prompt
    assert page.evaluate("window.hurt") is None
    assert page.evaluate("document.querySelectorAll('#work :is(iframe, script, style, img, a)').length") == 0


def test_edit_fills_the_form_and_a_wrong_value_is_named_where_it_stands(server: Live, visit: Visit) -> None:
    job_id = made(server, seed=2**63 - 1, num_frames=13, preset="draft")
    page = visit()
    page.locator(f".card[data-id={job_id}]").click()
    page.get_by_role("button", name="Edit").click()
    page.wait_for_function(f"document.querySelector('#seed input').value === '{2**63 - 1}'")
    assert page.locator("#frames input[type=number]").input_value() == "13"
    assert page.get_by_label("draft").is_checked()
    page.get_by_label("Seed").fill("seven")
    before = len(listed(server))
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#seed-row ~ .note .problem >> text=/seed/")
    assert len(listed(server)) == before
    page.get_by_role("button", name="Roll").click()
    page.wait_for_function("/^\\d+$/.test(document.querySelector('#seed input').value)")
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector(".problem", state="detached")


def test_a_preset_sets_steps_and_says_what_it_costs(visit: Visit) -> None:
    page = visit()
    page.get_by_role("button", name="More").click()
    page.get_by_label("fast8").check(force=True)
    page.wait_for_selector("text=Fast8 suits weights")
    shown = "[...document.querySelectorAll('#more input')].some((each) => each.value === '{}')"
    page.wait_for_function(shown.format(8))
    page.get_by_label("exact", exact=True).check(force=True)
    page.wait_for_selector("text=Exact approximates nothing")
    page.wait_for_function(shown.format(32))


def held_up(route: Any) -> None:
    """A server that takes its time."""
    time.sleep(0.5)
    route.continue_()


def test_who_does_not_wait_for_the_steps_of_a_preset_gets_them_all_the_same(server: Live, visit: Visit) -> None:
    page = visit()
    write(page, PROMPT)
    page.wait_for_selector("#generate:not([disabled])")
    page.route("**/queue/join*", held_up)
    page.evaluate(
        "document.querySelector('#preset input[value=draft]').click();"
        "setTimeout(() => document.querySelector('#generate').click(), 100)"
    )
    job = server.http.get(f"/v1/videos/{wait_made(page)}").json()
    own = server.submit({"prompt": PROMPT, "preset": "draft"}).json()
    for name in ("preset", "num_inference_steps", "guidance_scale"):
        assert job[name] == own[name], name


def test_two_videos_play_in_step(server: Live, visit: Visit) -> None:
    first, second = made(server, num_frames=31, seed=1), made(server, num_frames=31, seed=2)
    page = visit()
    page.locator(f".card[data-id={first}]").click()
    page.locator(f".stage[data-id={first}]").get_by_role("button", name="Compare").click()
    page.wait_for_selector("text=Choose a second video")
    page.locator(f".card[data-id={second}]").click()
    page.wait_for_function("document.querySelector('studio-pair')?.players.length === 2")
    page.wait_for_timeout(1500)
    times = page.evaluate("document.querySelector('studio-pair').players.map((each) => each.currentTime)")
    assert abs(times[0] - times[1]) < 0.15
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Time of both videos").fill("0.5")
    times = page.evaluate("document.querySelector('studio-pair').players.map((each) => each.currentTime)")
    assert times[0] == times[1] > 0.5
    page.get_by_role("button", name="Back to one").click()
    page.wait_for_selector(f".stage[data-id={first}]")


def test_a_download_carries_its_record(server: Live, visit: Visit, tmp_path: Path) -> None:
    job_id = made(server, seed=5)
    page = visit()
    page.locator(f".card[data-id={job_id}]").click()
    stage = page.locator(f".stage[data-id={job_id}]")
    files = {}
    for name in ("Download", "JSON"):
        with page.expect_download() as download:
            stage.get_by_role("button", name=name, exact=True).click()
        files[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[name])
    job = server.http.get(f"/v1/videos/{job_id}").json()
    assert sha256(files["Download"].read_bytes()).hexdigest() == job["files"]["video"]["sha256"]
    assert b'"seed": 5' in files["Download"].read_bytes()
    assert json.loads(files["JSON"].read_text()) == job


def test_a_video_is_deleted_only_when_that_is_confirmed(server: Live, visit: Visit) -> None:
    job_id = made(server, seed=6)
    page = visit()
    page.locator(f".card[data-id={job_id}]").click()
    page.locator(f".stage[data-id={job_id}]").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    assert server.http.get(f"/v1/videos/{job_id}").status_code == 200
    page.locator(f".stage[data-id={job_id}]").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_selector(f".card[data-id={job_id}]", state="detached")
    assert server.http.get(f"/v1/videos/{job_id}").status_code == 404


def test_nothing_is_wider_than_a_phone(server: Live, visit: Visit) -> None:
    made(server, prompt="w" * 300)
    page = visit(viewport={"width": 375, "height": 812}, is_mobile=True, has_touch=True)
    page.get_by_role("button", name="More").click()
    page.get_by_text("Everything about it").click()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.get_by_role("button", name="Compare").click()
    page.locator(".card").nth(1).click()
    page.wait_for_selector("studio-pair")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_keyboard_reaches_everything(server: Live, visit: Visit) -> None:
    made(server)
    page = visit()
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.dataset.do || document.activeElement.id || ''"))
    assert {"generate", "roll", "reuse", "replay", "vary", "edit", "compare", "save", "remove", "open"} <= seen


def test_a_server_with_keys_asks_for_one_and_keeps_others_out(visit: Visit, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[key]]\nname = "alice"\nsha256 = "{sha256(b"secret").hexdigest()}"\n')
    with Live(tmp_path / "data", settings={"studio": "true", "keys": str(keys)}) as server:
        server.http.headers["Authorization"] = "Bearer secret"
        server.wait_ready()
        job_id = made(server)
        page = visit(server.url, until="#key")
        assert page.locator(".card").count() == 0
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=An API key is needed")
        page.get_by_label("API key").fill("secret")
        page.keyboard.press("Enter")
        assert wait_made(page) == job_id
        page.wait_for_function("document.querySelector('studio-clip').player?.readyState >= 2")
        page.reload()
        assert wait_made(page) == job_id


def test_the_pictures_of_the_documents_can_be_drawn(chromium: Any, tmp_path: Path) -> None:
    with Live(tmp_path / "data", settings={"studio": "true", "preview_every": "1"}) as server:
        server.wait_ready()
        found = draw(tmp_path, chromium, server)
    assert {path.name for path in found} == {path.name for path in IMAGES.glob("studio_*.png")}
    assert all(path.stat().st_size < 250_000 for path in [*found, *IMAGES.glob("studio_*.png")])
