from html.parser import HTMLParser

import pytest

from daifuku.studio import cards
from tests.unit.studio.samples import video

HOSTILE = (
    "<script>window.hurt = 1</script>",
    '"><img src=x onerror="window.hurt = 1">',
    "'-alert(1)-'",
    "</p></article><iframe src=javascript:alert(1)>",
    "{{#each this}}${window.hurt = 1}{{/each}}",
    "&lt;b&gt; **bold** [link](javascript:alert(1))",
)


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("words", HOSTILE)
@pytest.mark.parametrize("status", cards.STATUS)
def test_what_a_user_wrote_stays_text(words: str, status: str) -> None:
    hostile = video(status=status, prompt=words, negative_prompt=words, loras=[[words, 1.0]])
    hostile["error"] = {"code": words, "message": words}
    tame = video(
        status=status, prompt="x", negative_prompt="x", loras=[["x", 1.0]], error={"code": "x", "message": "x"}
    )
    for shown in (
        lambda one: cards.stage(one, {}),
        lambda one: cards.stage(one, {}, one),
        lambda one: cards.gallery([one], None, has_more=True),
    ):
        found, expected = Seen(shown(hostile)), Seen(shown(tame))
        assert found.tags == expected.tags and found.attributes == expected.attributes
        assert words in found.text
    assert Seen(cards.problem(words)).text == words


def test_a_page_without_videos_shows_how_to_begin() -> None:
    shown = Seen(cards.stage(None, {}))
    assert all(example in shown.text for example in cards.EXAMPLES)
    assert cards.gallery([], None, has_more=False) == ""


@pytest.mark.parametrize("position, said", [(1, "Next in line"), (2, "1 job before"), (4, "3 jobs before")])
def test_a_job_that_waits_says_how_many_come_first(position: int, said: str) -> None:
    assert said in cards.stage(video(status="queued", queue_position=position), {})


def test_a_job_in_the_making_says_how_far_it_is() -> None:
    live = {"step": 3, "total": 32, "left_s": 61.2, "image": "data:image/png;base64,AAAA", "step_seen": 2}
    shown = cards.stage(video(status="in_progress", stage="sampling", progress=8), live)
    for part in ("Sampling", "3 of 32", "about 1 min 02 s left", 'aria-valuenow="8"', "Preview of step 2"):
        assert part in shown


@pytest.mark.parametrize("image", ["javascript:alert(1)", "https://elsewhere.example/x.png", ""])
def test_only_a_picture_of_the_server_is_a_preview(image: str) -> None:
    shown = cards.stage(video(status="in_progress"), {"image": image, "step_seen": 1})
    assert "studio-preview" not in shown


@pytest.mark.parametrize("status, deeds", [("queued", {"cancel"}), ("failed", {"edit", "remove"})])
def test_only_what_can_be_done_is_offered(status: str, deeds: set[str]) -> None:
    shown = cards.stage(video(status=status), {})
    assert {part.split('"')[0] for part in shown.split('data-do="')[1:]} == deeds


def test_a_video_whose_files_went_can_be_made_again_but_not_played() -> None:
    shown = cards.stage(video(files=None), {})
    assert "studio-clip" not in shown and 'data-do="replay"' in shown and 'data-do="save"' not in shown


def test_two_videos_stand_side_by_side() -> None:
    shown = cards.stage(video(1), {}, video(2))
    assert shown.count("<studio-clip") == 2 and "studio-pair" in shown


def test_the_gallery_marks_the_chosen_one_and_offers_more() -> None:
    shown = cards.gallery([video(1), video(2, status="failed")], video(2)["id"], has_more=True)
    assert shown.count('aria-current="true"') == 1 and "Failed" in shown and 'data-do="more"' in shown


@pytest.mark.parametrize(
    "count, mood, said", [(10, "fits", "10 of 256"), (240, "near", "240"), (260, "over", "last 4 will not be read")]
)
def test_tokens_say_how_full_the_prompt_is(count: int, mood: str, said: str) -> None:
    assert f"is-{mood}" in cards.tokens(count, 256) and said in cards.tokens(count, 256)


@pytest.mark.parametrize(
    "value, said", [(0.0, "1 s"), (59.2, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")]
)
def test_durations_are_said_as_people_do(value: float, said: str) -> None:
    assert cards.seconds(value) == said
