import re
from itertools import product

import numpy as np
import pytest

from daifuku.world.captions import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    FLOURISHES,
    MAX_WORDS,
    MOTION_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
    describe,
    plain,
)
from daifuku.world.factors import BACKGROUNDS, COLLIDE, COLOURS, FLUIDS, MOTIONS, SHAPES, SIZES
from daifuku.world.phrases import (
    DIRECTION_WORDS,
    FLUID_NOUNS,
    FLUID_PHRASES,
    GRASS_SIZE_WORDS,
    PACE_WORDS,
    UNSEEN_FLUID_PHRASES,
)
from daifuku.world.scene import Fluid, Scene, sample_fluid, sample_scene


def described(count: int, *, num_objects: int = 1, phrasing: str = "train") -> list[tuple[Scene, str]]:
    rngs = (np.random.default_rng([1, index]) for index in range(count))
    scenes = ((sample_scene(rng, num_objects=num_objects), rng) for rng in rngs)
    return [(scene, describe(scene, rng, phrasing)) for scene, rng in scenes]


def says(caption: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", caption.lower()) for word in words)


def words_of(captions: list[str]) -> set[str]:
    return {word for caption in captions for word in re.findall(r"[a-z0-9-]+", caption.lower())}


@pytest.fixture(scope="module")
def many() -> list[str]:
    """Training captions enough for every word to turn up."""
    return [caption for count in (1, 2) for _, caption in described(600, num_objects=count)]


def test_every_value_has_words_and_every_motion_phrases() -> None:
    assert set(SHAPE_WORDS) == set(SHAPES)
    assert set(COLOUR_WORDS) == set(COLOURS)
    assert set(SIZE_WORDS) == set(SIZES)
    assert set(BACKGROUND_WORDS) == set(BACKGROUNDS)
    assert set(MOTION_PHRASES) == {*MOTIONS, COLLIDE}


def test_a_caption_names_every_object_and_its_motion() -> None:
    for num_objects, phrasing in product((1, 2), ("train", "unseen")):
        for scene, caption in described(60, num_objects=num_objects, phrasing=phrasing):
            for thing in scene.things:
                assert says(caption, COLOUR_WORDS[thing.colour]), caption
                assert says(caption, SHAPE_WORDS[thing.shape]), caption
                if phrasing == "train":
                    phrases = MOTION_PHRASES[thing.motion]
                    assert says(caption, tuple(form for one in phrases for form in (one.verb, one.gerund))), caption


def test_most_captions_name_the_right_background_and_size_and_none_a_wrong_size() -> None:
    pairs = described(200)
    assert np.mean([says(caption, BACKGROUND_WORDS[scene.background]) for scene, caption in pairs]) > 0.85
    assert np.mean([says(caption, SIZE_WORDS[scene.things[0].size]) for scene, caption in pairs]) > 0.5
    for scene, caption in pairs:
        for size in set(SIZES) - {scene.things[0].size}:
            assert not says(caption, SIZE_WORDS[size]), caption


def test_a_complete_description_always_gives_size_and_background() -> None:
    for index in range(60):
        rng = np.random.default_rng(index)
        scene = sample_scene(rng)
        caption = describe(scene, rng, complete=True)
        assert says(caption, SIZE_WORDS[scene.things[0].size]), caption
        assert says(caption, BACKGROUND_WORDS[scene.background]), caption


def test_every_word_of_the_vocabulary_turns_up(many: list[str]) -> None:
    values = [*SHAPE_WORDS.values(), *COLOUR_WORDS.values(), *SIZE_WORDS.values(), *BACKGROUND_WORDS.values()]
    phrases = [form for group in MOTION_PHRASES.values() for one in group for form in (one.verb, one.gerund)]
    assert words_of([word for group in values for word in group] + phrases + list(FLOURISHES)) <= words_of(many)


def test_unseen_phrasing_uses_only_words_of_training_in_sentences_training_never_makes(many: list[str]) -> None:
    unseen = [caption for count in (1, 2) for _, caption in described(60, num_objects=count, phrasing="unseen")]
    assert words_of(unseen) <= words_of(many)
    assert not {caption.lower() for caption in unseen} & {caption.lower() for caption in many}


def test_captions_are_short_and_mostly_different() -> None:
    captions = [caption for count in (1, 2) for _, caption in described(100, num_objects=count)]
    assert max(len(caption.split()) for caption in captions) <= MAX_WORDS
    assert len(set(captions)) > 0.97 * len(captions)


def test_articles_fit_their_nouns() -> None:
    for _, caption in described(200):
        assert not re.search(r"\ba [aeiou]", caption.lower()), caption
        assert not re.search(r"\ban [^aeiou]", caption.lower()), caption


def test_the_plain_caption_is_the_same_every_time_and_names_everything() -> None:
    scene = sample_scene(np.random.default_rng(2))
    caption = plain(scene)
    thing = scene.things[0]
    assert caption == plain(scene)
    assert all(word in caption for word in (thing.size, thing.colour, thing.shape, scene.background))


def fluids(count: int, *, complete: bool = False, phrasing: str = "train") -> list[tuple[Fluid, Scene, str]]:
    rngs = (np.random.default_rng([2, index]) for index in range(count))
    scenes = ((sample_fluid(rng), rng) for rng in rngs)
    return [
        (scene.fluid, scene, describe(scene, rng, phrasing, complete=complete, pace=True))
        for scene, rng in scenes
        if scene.fluid is not None
    ]


def paces_said(caption: str) -> list[str]:
    return [pace for pace, words in PACE_WORDS.items() if says(caption, words)]


def test_every_fluid_has_nouns_and_five_phrases_and_one_that_training_never_uses() -> None:
    assert set(FLUID_NOUNS) == set(FLUID_PHRASES) == set(UNSEEN_FLUID_PHRASES) == set(FLUIDS)
    assert all(len({phrase.verb for phrase in phrases}) >= 5 for phrases in FLUID_PHRASES.values())
    for motion, phrases in UNSEEN_FLUID_PHRASES.items():
        assert not {one.verb for one in phrases} & {one.verb for one in FLUID_PHRASES[motion]}


def test_a_complete_description_of_a_fluid_says_everything() -> None:
    for phrasing in ("train", "unseen"):
        for fluid, scene, caption in fluids(120, complete=True, phrasing=phrasing):
            assert len(caption.split()) <= MAX_WORDS
            sizes = GRASS_SIZE_WORDS if fluid.motion == "grass" else SIZE_WORDS
            assert says(caption, COLOUR_WORDS[fluid.colour]), caption
            assert says(caption, sizes[fluid.size]), caption
            assert says(caption, BACKGROUND_WORDS[scene.background]), caption
            said = [way for way in DIRECTION_WORDS if says(caption, DIRECTION_WORDS[way])]
            assert said == ([] if fluid.motion == "splash" else [fluid.direction]), caption
            assert paces_said(caption) == [fluid.pace] * (fluid.pace is not None), caption


def test_training_captions_of_fluids_name_the_motion_and_leave_some_things_out() -> None:
    made = fluids(300)
    for fluid, _, caption in made:
        phrases = FLUID_PHRASES[fluid.motion]
        assert says(caption, tuple(form for one in phrases for form in (one.verb, one.gerund))), caption
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", caption.lower()), caption
    directed = [says(caption, DIRECTION_WORDS[fluid.direction]) for fluid, _, caption in made if fluid.direction]
    assert 0.6 < np.mean(directed) < 0.8
    smoke = [caption for fluid, _, caption in made if fluid.motion == "smoke"]
    assert any(not says(caption, ("plume", "cloud", "column", "trail")) for caption in smoke)
    assert len({caption for _, _, caption in made}) > 0.97 * len(made)


def test_unseen_phrasing_of_fluids_uses_only_words_of_training() -> None:
    seen, unseen = ([caption for *_, caption in fluids(500, phrasing=phrasing)] for phrasing in ("train", "unseen"))
    assert words_of(unseen) <= words_of(seen)
    assert not {caption.lower() for caption in unseen} & {caption.lower() for caption in seen}


def test_a_pace_is_said_two_times_in_three_of_motions_that_have_one_and_only_if_asked_for() -> None:
    said = []
    for index in range(400):
        rng = np.random.default_rng([4, index])
        scene = sample_scene(rng)
        assert not paces_said(describe(scene, rng))
        caption = describe(scene, rng, pace=True)
        pace = scene.things[0].pace
        assert paces_said(caption) in ([], [pace]), caption
        if pace is not None:
            said.append(bool(paces_said(caption)))
    assert 0.55 < np.mean(said) < 0.78


def test_two_objects_have_their_own_paces_and_one_when_they_collide_alike() -> None:
    for index in range(150):
        rng = np.random.default_rng([5, index])
        scene = sample_scene(rng, num_objects=2)
        caption = describe(scene, rng, complete=True, pace=True)
        assert len(caption.split()) <= MAX_WORDS
        paces = {thing.pace for thing in scene.things}
        if scene.things[0].motion == COLLIDE and len(paces) == 2:
            paces = {None}
        assert set(paces_said(caption)) == paces - {None}, caption


def test_what_takes_more_words_than_a_description_has_is_said_all_the_same() -> None:
    """The first pair of the prompts that a model is measured on, when those are to say everything."""
    rng = np.random.default_rng([0, 0])
    scene = sample_scene(rng, num_objects=2, split="unseen")
    caption = describe(scene, rng, "unseen", complete=True, pace=True)
    assert MAX_WORDS < len(caption.split()) <= MAX_WORDS + 4
    for thing in scene.things:
        assert all(
            says(caption, words[name]) for words, name in ((COLOUR_WORDS, thing.colour), (SIZE_WORDS, thing.size))
        )
    assert set(paces_said(caption)) == {thing.pace for thing in scene.things} - {None}


def test_the_plain_caption_of_a_fluid_names_everything() -> None:
    scene = sample_fluid(np.random.default_rng(1))
    fluid = scene.fluid
    assert fluid is not None
    caption = plain(scene)
    assert all(word in caption for word in (fluid.colour, fluid.motion, scene.background))
    assert fluid.motion == "splash" or says(caption, DIRECTION_WORDS[fluid.direction])
