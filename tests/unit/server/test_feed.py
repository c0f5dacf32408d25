import asyncio

from daifuku.server.feed import Feed, Progress


def test_progress_grows_from_stage_to_stage_and_stays_below_the_end() -> None:
    stages = [
        Progress(),
        Progress(stage="text"),
        Progress(stage="sampling", step=1, total=64),
        Progress(stage="sampling", step=64, total=64),
        Progress(stage="decoding", step=1, total=163),
        Progress(stage="decoding", step=163, total=163),
    ]
    percents = [one.percent for one in stages]
    assert percents == sorted(percents) and percents[-1] == 99


def test_a_follower_hears_of_his_job_only_and_leaves_nothing_behind() -> None:
    async def _follow() -> None:
        feed = Feed()
        with feed.following("a") as one, feed.following("b") as other:
            feed.report("a", Progress(stage="text"))
            assert one.is_set() and not other.is_set()
            feed.ring_all()
            assert other.is_set()
        assert not feed._bells

    asyncio.run(_follow())


def test_a_preview_stays_while_steps_go_on_and_goes_with_the_job() -> None:
    feed = Feed()
    feed.report("a", Progress(stage="sampling", step=4, total=8))
    feed.preview("a", 4, "AAAA")
    assert (feed.progress("a").step, feed.progress("a").preview) == (4, "AAAA")
    feed.ended("a")
    assert not feed.is_running("a") and feed.progress("a").preview is None
