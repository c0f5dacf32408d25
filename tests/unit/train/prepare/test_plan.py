"""From scans to clips and shards."""

import pytest

from daifuku.errors import InvalidRequest
from daifuku.train.prepare.plan import Cutting, plan_clips, plan_shards
from daifuku.train.prepare.scan import Scan
from daifuku.train.prepare.sources import Source


def scanned(name: str = "a.mp4", **about: object) -> dict[str, Scan]:
    told = {"sha256": "0", "size": (64, 64), "is_picture": False, "rate": 20.0, "shots": ((0.0, 1.974),)}
    return {name: Scan(name=name, **{**told, **about})}


def cutting(**about: object) -> Cutting:
    return Cutting(**{"sizes": ((64, 64),), "lengths": (25, 7), "fps": 20, **about})


def planned(found: dict[str, Scan], how: Cutting):
    sources = [Source(name=name, captions=("a ball",)) for name in found]
    return plan_clips(sources, found, how)


def spans(found: dict[str, Scan], how: Cutting) -> list[tuple[float, int]]:
    return [(clip.start_s, clip.num_frames) for clip in planned(found, how)[0]]


def test_a_shot_becomes_the_longest_clips_that_fit_one_after_the_other() -> None:
    assert spans(scanned(), cutting()) == [(0.0, 25), (1.25, 7), (1.6, 7)]


def test_no_clip_crosses_a_cut() -> None:
    found = scanned(shots=((0.0, 0.5745), (0.6, 1.1745)))
    assert spans(found, cutting(lengths=(7,))) == [(0.0, 7), (0.6, 7)]


def test_clips_of_a_long_film_are_spread_evenly() -> None:
    found = scanned(shots=((0.0, 20.0),))
    assert [round(start) for start, _ in spans(found, cutting(lengths=(19,), max_clips=3))] == [3, 10, 16]


def test_a_picture_is_a_clip_of_one_frame_at_any_rate() -> None:
    assert spans(scanned(is_picture=True, rate=0.0, shots=((0.0, 0.0),)), cutting()) == [(0.0, 1)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 848), (32, 64)), ((848, 480), (64, 32)), ((100, 100), (64, 64)), ((40, 300), (32, 64))],
)
def test_the_size_nearest_in_aspect_is_chosen(size: tuple[int, int], expected: tuple[int, int]) -> None:
    clips, _ = planned(scanned(size=size), cutting(sizes=((64, 64), (32, 64), (64, 32))))
    assert {clip.size for clip in clips} == {expected}


def test_of_sizes_of_one_aspect_the_largest_that_enlarges_nothing_is_chosen() -> None:
    sizes = ((32, 32), (64, 64), (128, 128))
    assert planned(scanned(size=(100, 100)), cutting(sizes=sizes))[0][0].size == (64, 64)
    assert planned(scanned(size=(100, 100)), cutting(sizes=sizes, max_upscale=1.3))[0][0].size == (128, 128)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"size": (32, 48)}, "it is 48x32 and would be enlarged 2.00 times: .*--max-upscale 2$"),
        ({"shots": ((0.0, 0.2245),)}, "5 frames at 20 a second, fewer than 7: try --frames 1"),
        ({"rate": 9.0}, "9.0 frames a second, too few for 20: try --fps 18"),
    ],
)
def test_a_source_that_gives_nothing_is_named_with_what_would_work(about: dict, message: str) -> None:
    clips, [skipped] = planned(scanned(**about), cutting())
    assert clips == [] and skipped.source == "a.mp4"
    with pytest.raises(InvalidRequest, match=message):
        raise InvalidRequest(skipped.reason)


def test_shards_hold_one_bucket_each_and_so_many_clips() -> None:
    clips, _ = planned(scanned(shots=((0.0, 20.4),)), cutting(lengths=(25, 7)))
    shards = plan_shards(clips, 5)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert all(len({clip.bucket for clip in shard.clips}) == 1 and len(shard.clips) <= 5 for shard in shards)
    assert sorted(clip.id for shard in shards for clip in shard.clips) == sorted(clip.id for clip in clips)
    assert len({clip.id for clip in clips}) == len(clips)
    assert {clip.bucket for clip in clips} == {(5, 8, 8), (2, 8, 8)}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"sizes": ((64, 60),)}, "60 pixels .*Try 64"),
        ({"sizes": ((0, 64),)}, "Try 16"),
        ({"sizes": ((64, 10**9),)}, "Try 4096"),
        ({"sizes": ()}, "need a size"),
        ({"lengths": (24,)}, "24 frames .*Try 19"),
        ({"lengths": (-5,)}, "Try 1"),
        ({"lengths": (10**9 + 3,)}, "Try 1201"),
        ({"fps": 0}, "fps=0"),
        ({"max_upscale": 0.5}, "max_upscale=0.5"),
        ({"max_upscale": float("nan")}, "max_upscale=nan"),
        ({"max_clips": 0}, "max_clips=0"),
    ],
)
def test_what_no_model_takes_is_refused_with_what_would_work(about: dict, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        cutting(**about)
