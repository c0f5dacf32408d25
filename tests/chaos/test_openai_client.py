"""The client that people already have, against a server as it is started."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.chaos.live import SHORT, Live

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("data")) as live:
        live.wait_ready()
        yield live


@pytest.fixture
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none is needed", max_retries=0)


def test_the_client_creates_polls_lists_downloads_remixes_and_deletes(client: openai.OpenAI, tmp_path: Path) -> None:
    (model,) = client.models.list().data
    video = client.videos.create_and_poll(
        prompt="a small red ball bouncing on a gray background",
        model=model.id,
        size="64x48",  # type: ignore[arg-type]
        seconds="0.3",
        poll_interval_ms=50,
        extra_body={"seed": 7, "num_inference_steps": 6, "guidance": 2.5, "negative_prompt": "blur"},
    )
    assert (video.status, video.progress, video.size, video.seconds) == ("completed", 100, "64x48", "0.291667")
    shown = video.to_dict()
    assert [shown[name] for name in ("seed", "num_frames", "num_inference_steps", "guidance_scale")] == [7, 7, 6, 2.5]
    assert shown["negative_prompt"] == "blur"

    for variant, head in (("video", b"ftyp"), ("thumbnail", b"\x89PNG"), ("spritesheet", b"\x89PNG")):
        content = client.videos.download_content(video.id, variant=variant).read()  # type: ignore[arg-type]
        assert head in content[:16]
        assert hashlib.sha256(content).hexdigest() == shown["files"][variant]["sha256"]

    remix = client.videos.poll(client.videos.remix(video.id, prompt="a small blue ball").id, poll_interval_ms=50)
    assert (remix.status, remix.remixed_from_video_id, remix.prompt) == ("completed", video.id, "a small blue ball")
    assert remix.to_dict()["seed"] == 7

    assert [one.id for one in client.videos.list(limit=1)] == [remix.id, video.id]
    assert [one.id for one in client.videos.list(order="asc")] == [video.id, remix.id]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_the_client_understands_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="multiple of 16") as caught:
        client.videos.create(prompt="a ball", size="65x64")  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("invalid_value", "width")
    with pytest.raises(openai.BadRequestError, match="Files are not supported"):
        client.videos.create(prompt="a ball", input_reference=b"a picture")


def test_a_video_is_decoded_once_more_to_the_same_frames(live: Live) -> None:
    first = live.wait(live.submit(SHORT | {"seed": 4}).json()["id"])
    again = live.http.post(f"/v1/videos/{first['id']}/decode", json={"fps": 7}).json()
    again = live.wait(again["id"])
    assert (again["status"], again["kind"], again["fps"]) == ("completed", "decode", 7)
    assert again["frames_sha256"] == first["frames_sha256"]


def test_a_run_is_followed_from_the_queue_to_its_end(live: Live) -> None:
    job_id = live.submit(SHORT | {"num_inference_steps": 60}).json()["id"]
    with live.http.stream("GET", f"/v1/videos/{job_id}/events") as stream:
        names = [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]
    assert names[-1] == "done" and {"running", "preview"} <= set(names)
