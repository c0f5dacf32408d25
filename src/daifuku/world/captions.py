"""Describes scenes in varied plain English of at most 24 words."""

from typing import TypeVar

import numpy as np

from daifuku.world.factors import COLLIDE
from daifuku.world.phrases import (
    DIRECTION_WORDS,
    FLUID_NOUNS,
    FLUID_PHRASES,
    GRASS_SIZE_WORDS,
    PACE_WORDS,
    UNSEEN_FLUID_PHRASES,
    Phrase,
)
from daifuku.world.scene import Fluid, Scene, Thing

T = TypeVar("T")

MAX_WORDS = 24
MAX_TRIES = 1000
"""Descriptions of a scene, until one has no more words than that."""

SHAPE_WORDS = {
    "ball": ("ball", "sphere", "circle", "round ball", "disc"),
    "square": ("square", "box", "block", "cube"),
    "triangle": ("triangle", "triangular shape", "pyramid"),
    "star": ("star", "five-pointed star"),
    "ring": ("ring", "hoop", "donut", "circle with a hole"),
}
COLOUR_WORDS = {
    "red": ("red", "bright red", "scarlet", "crimson"),
    "orange": ("orange", "bright orange"),
    "yellow": ("yellow", "bright yellow", "golden"),
    "green": ("green", "bright green", "light green"),
    "blue": ("blue", "bright blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "light pink", "rose"),
    "cyan": ("cyan", "turquoise", "aqua", "light blue"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "mid-sized"),
    "large": ("large", "big", "huge"),
}
BACKGROUND_WORDS = {
    "black": ("black", "pure black", "pitch black"),
    "white": ("white", "plain white", "pure white"),
    "gray": ("gray", "grey"),
    "navy": ("navy", "navy blue", "dark blue"),
    "beige": ("beige", "cream", "sand-coloured"),
    "dark green": ("dark green", "deep green", "forest green"),
}


MOTION_PHRASES = {
    "bounce": (
        Phrase("bounces", "bouncing"),
        Phrase("bounces up and down", "bouncing up and down"),
        Phrase("bounces on the floor", "bouncing on the floor"),
        Phrase("drops and bounces", "dropping and bouncing"),
        Phrase("hops up and down", "hopping up and down"),
    ),
    "fall": (
        Phrase("falls", "falling"),
        Phrase("falls down", "falling down"),
        Phrase("falls to the floor", "falling to the floor"),
        Phrase("drops to the ground", "dropping to the ground"),
        Phrase("falls to the ground and stays there", "falling to the ground and staying there"),
    ),
    "throw_left": (
        Phrase("is thrown to the left", "thrown to the left"),
        Phrase("flies to the left", "flying to the left"),
        Phrase("flies through the air to the left", "flying through the air to the left"),
        Phrase("is tossed leftwards", "being tossed leftwards"),
        Phrase("is thrown from right to left", "being thrown from right to left"),
    ),
    "throw_right": (
        Phrase("is thrown to the right", "thrown to the right"),
        Phrase("flies to the right", "flying to the right"),
        Phrase("flies through the air to the right", "flying through the air to the right"),
        Phrase("is tossed rightwards", "being tossed rightwards"),
        Phrase("is thrown from left to right", "being thrown from left to right"),
    ),
    "roll_left": (
        Phrase("rolls left", "rolling left"),
        Phrase("rolls to the left", "rolling to the left"),
        Phrase("rolls leftwards", "rolling leftwards"),
        Phrase("rolls along the floor to the left", "rolling along the floor to the left"),
        Phrase("rolls from right to left", "rolling from right to left"),
    ),
    "roll_right": (
        Phrase("rolls right", "rolling right"),
        Phrase("rolls to the right", "rolling to the right"),
        Phrase("rolls rightwards", "rolling rightwards"),
        Phrase("rolls along the floor to the right", "rolling along the floor to the right"),
        Phrase("rolls from left to right", "rolling from left to right"),
    ),
    "pendulum": (
        Phrase("swings on a string", "swinging on a string"),
        Phrase("swings like a pendulum", "swinging like a pendulum"),
        Phrase("swings back and forth", "swinging back and forth"),
        Phrase("swings from side to side", "swinging from side to side"),
        Phrase("hangs on a string and swings", "hanging on a string and swinging"),
    ),
    "spin": (
        Phrase("spins", "spinning"),
        Phrase("spins in place", "spinning in place"),
        Phrase("rotates", "rotating"),
        Phrase("turns around itself", "turning around itself"),
        Phrase("rotates on the spot", "rotating on the spot"),
    ),
    "orbit": (
        Phrase("orbits the middle", "orbiting the middle"),
        Phrase("moves in a circle", "moving in a circle"),
        Phrase("goes round in circles", "going round in circles"),
        Phrase("orbits around the centre", "orbiting around the centre"),
        Phrase("circles around the center", "circling around the center"),
    ),
    "rise": (
        Phrase("rises", "rising"),
        Phrase("floats up", "floating up"),
        Phrase("floats upwards", "floating upwards"),
        Phrase("rises to the top", "rising to the top"),
        Phrase("moves upwards", "moving upwards"),
    ),
    "spring": (
        Phrase("hangs on a spring", "hanging on a spring"),
        Phrase("oscillates on a spring", "oscillating on a spring"),
        Phrase("moves up and down on a spring", "moving up and down on a spring"),
        Phrase("bobs on a spring", "bobbing on a spring"),
        Phrase("swings up and down on a spring", "swinging up and down on a spring"),
    ),
    "rest": (
        Phrase("rests", "resting"),
        Phrase("lies still", "lying still"),
        Phrase("does not move", "not moving"),
        Phrase("rests on the floor", "resting on the floor"),
        Phrase("stays still on the ground", "staying still on the ground"),
    ),
    COLLIDE: (
        Phrase("collide", "colliding"),
        Phrase("collide head-on", "colliding head-on"),
        Phrase("crash into each other", "crashing into each other"),
        Phrase("bump into each other", "bumping into each other"),
        Phrase("bounce off each other", "bouncing off each other"),
    ),
}

UNSEEN_PHRASES = {
    "bounce": (Phrase("hops on the floor", "hopping on the floor"),),
    "fall": (Phrase("drops down to the floor", "dropping down to the floor"),),
    "throw_left": (Phrase("is tossed through the air to the left", "tossed through the air to the left"),),
    "throw_right": (Phrase("is tossed through the air to the right", "tossed through the air to the right"),),
    "roll_left": (Phrase("rolls on the ground to the left", "rolling on the ground to the left"),),
    "roll_right": (Phrase("rolls on the ground to the right", "rolling on the ground to the right"),),
    "pendulum": (Phrase("swings from side to side on a string", "swinging from side to side on a string"),),
    "spin": (Phrase("turns on the spot", "turning on the spot"),),
    "orbit": (Phrase("moves around the middle in a circle", "moving around the middle in a circle"),),
    "rise": (Phrase("rises upwards through the air", "rising upwards through the air"),),
    "spring": (Phrase("oscillates up and down", "oscillating up and down"),),
    "rest": (Phrase("lies on the floor", "lying on the floor"),),
    COLLIDE: (Phrase("crash head-on", "crashing head-on"),),
}
"""Ways to name the motions that training never uses, made only of words that it does use.

They are short, because two objects share a sentence.
"""

PREFIXES = ("a video of", "an animation of", "a clip of", "a short video of", "video:", "animation of", "footage of")
FORMS = (
    "{subject} {gerund} {place}",
    "{subject} {gerund} {place}",
    "{subject} {verb} {place}",
    "{subject} {verb} {place}",
    "{subject} {be} {gerund} {place}",
    "{place}, {subject} {verb}",
    "{subject} {verb}. the background is {background}",
    "{subject} {gerund}, {background} background",
    "{prefix} {subject} {gerund} {place}",
    "{prefix} {subject} {gerund} {place}",
    "{prefix} {subject} that {verb} {place}",
)
FORMS_WITHOUT_PLACE = (
    "{subject} {gerund}",
    "{subject} {verb}",
    "{prefix} {subject} {gerund}",
)
UNSEEN_FORMS = (
    "{place} {subject} {be} {gerund}",
    "the background is {background}, {subject} {verb}",
)
PLACES = ("on a {} background", "against a {} background", "over a {} background", "in front of a {} wall")
FLOURISHES = ("4k", "cinematic", "high quality", "smooth motion", "detailed", "hd", "realistic", "simple")
PRAISE = ("beautiful", "nice", "pretty", "cute", "shiny")


def plain(scene: Scene) -> str:
    """The first and simplest wording of everything: size, colour, shape, motion, direction and background."""
    place = f"on a {BACKGROUND_WORDS[scene.background][0]} background"
    if fluid := scene.fluid:
        sizes = GRASS_SIZE_WORDS if fluid.motion == "grass" else SIZE_WORDS
        noun = FLUID_NOUNS[fluid.motion][0].format(size=sizes[fluid.size][0], colour=COLOUR_WORDS[fluid.colour][0])
        verb = FLUID_PHRASES[fluid.motion][0].verb
        return " ".join([noun, verb, *([DIRECTION_WORDS[fluid.direction][0]] if _has_direction(fluid) else ()), place])
    nouns = [
        _with_article(f"{SIZE_WORDS[one.size][0]} {COLOUR_WORDS[one.colour][0]} {SHAPE_WORDS[one.shape][0]}")
        for one in scene.things
    ]
    verbs = [MOTION_PHRASES[one.motion][0].verb for one in scene.things]
    if len(nouns) == 1:
        subject = f"{nouns[0]} {verbs[0]}"
    elif scene.things[0].motion == COLLIDE:
        subject = f"{nouns[0]} and {nouns[1]} {verbs[0]}"
    else:
        subject = f"{nouns[0]} {verbs[0]} and {nouns[1]} {verbs[1]}"
    return f"{subject} {place}"


def describe(
    scene: Scene,
    rng: np.random.Generator,
    phrasing: str = "train",
    *,
    complete: bool = False,
    pace: bool = False,
) -> str:
    """Describe a scene in words of one's own.

    With phrasing `unseen`, sentence forms and motion phrases are those kept out of training. Size, background and a
    fluid's direction are sometimes left unsaid, and so is the pace where it is asked for; unless the description is
    to be complete. It has at most `MAX_WORDS` words, or where all that is to be said takes more, as few as were found.
    """
    assert phrasing in ("train", "unseen"), phrasing
    tried = []
    for _ in range(MAX_TRIES):
        tried.append(_sentence(scene, rng, phrasing, complete, pace))
        if len(tried[-1].split()) <= MAX_WORDS:
            return tried[-1]
    return min(tried, key=lambda caption: len(caption.split()))


def _sentence(scene: Scene, rng: np.random.Generator, phrasing: str, complete: bool, pace: bool) -> str:
    background = _usual(rng, BACKGROUND_WORDS[scene.background])
    with_size = rng.random() < 0.6 or complete
    if scene.fluid:
        nouns = [_fluid_noun(scene.fluid, rng, with_size)]
        phrases = [_fluid_motion(scene.fluid, rng, phrasing, complete)]
    else:
        nouns = [_noun(thing, rng, with_size) for thing in scene.things]
        phrases = [_motion(thing, rng, phrasing) for thing in scene.things]
    if pace:
        phrases = [_paced(*each, rng, complete) for each in zip(phrases, _paces(scene), strict=True)]
    parts = {
        "prefix": _pick(rng, PREFIXES),
        "background": background,
        "place": _pick(rng, PLACES).format(background),
        "be": "is",
    }
    forms = UNSEEN_FORMS
    if phrasing == "train":
        forms = FORMS if rng.random() < 0.92 or complete else FORMS_WITHOUT_PLACE
    form = _pick(rng, forms)
    if len(nouns) == 2 and scene.things[0].motion == COLLIDE:
        parts |= {"subject": f"{nouns[0]} and {nouns[1]}", "be": "are"}
        parts |= {"verb": phrases[0].verb, "gerund": phrases[0].gerund}
    elif len(nouns) == 2:
        return _finish(_two(nouns, phrases, form, parts), rng, phrasing)
    else:
        parts |= {"subject": nouns[0], "verb": phrases[0].verb, "gerund": phrases[0].gerund}
    return _finish(form.format(**parts), rng, phrasing)


def _two(nouns: list[str], phrases: list[Phrase], form: str, parts: dict[str, str]) -> str:
    """One sentence about two objects that each do something of their own."""
    first = form.format(**parts, subject=f"{nouns[0]}", verb="@verb", gerund="@gerund")
    if "@verb" in first:
        return first.replace("@verb", f"{phrases[0].verb} and {nouns[1]} {phrases[1].verb}")
    be = "is " if "{be}" in form else ""
    return first.replace("@gerund", f"{phrases[0].gerund} and {nouns[1]} {be}{phrases[1].gerund}")


def _noun(thing: Thing, rng: np.random.Generator, with_size: bool) -> str:
    words = [_usual(rng, COLOUR_WORDS[thing.colour]), _usual(rng, SHAPE_WORDS[thing.shape])]
    if with_size:
        words.insert(0, _usual(rng, SIZE_WORDS[thing.size]))
    if rng.random() < 0.03:
        words.insert(0, _pick(rng, PRAISE))
    return _with_article(" ".join(words))


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _motion(thing: Thing, rng: np.random.Generator, phrasing: str) -> Phrase:
    return _pick(rng, (UNSEEN_PHRASES if phrasing == "unseen" else MOTION_PHRASES)[thing.motion])


def _fluid_noun(fluid: Fluid, rng: np.random.Generator, with_size: bool) -> str:
    colour = _usual(rng, COLOUR_WORDS[fluid.colour])
    if fluid.motion == "smoke" and not with_size and rng.random() < 0.5:
        return f"{colour} smoke"
    sizes = GRASS_SIZE_WORDS if fluid.motion == "grass" else SIZE_WORDS
    size = _usual(rng, sizes[fluid.size]) if with_size else ""
    noun = " ".join(_usual(rng, FLUID_NOUNS[fluid.motion]).format(size=size, colour=colour).split())
    return _with_article(noun.removeprefix("a ")) if noun.startswith("a ") else noun


def _fluid_motion(fluid: Fluid, rng: np.random.Generator, phrasing: str, complete: bool) -> Phrase:
    phrase = _pick(rng, (UNSEEN_FLUID_PHRASES if phrasing == "unseen" else FLUID_PHRASES)[fluid.motion])
    if _has_direction(fluid) and (rng.random() < 0.7 or complete):
        return _with(phrase, _usual(rng, DIRECTION_WORDS[fluid.direction]))
    return phrase


def _has_direction(fluid: Fluid) -> bool:
    return fluid.motion != "splash"


def _paces(scene: Scene) -> list[str | None]:
    """The pace of each motion; objects that collide share a phrase, and have a pace if it is the same."""
    paces = [each.pace for each in ((scene.fluid,) if scene.fluid else scene.things)]
    together = scene.kind == "pair" and scene.things[0].motion == COLLIDE and paces[0] != paces[1]
    return [None] * len(paces) if together else paces


def _paced(phrase: Phrase, pace: str | None, rng: np.random.Generator, complete: bool) -> Phrase:
    """Say the pace two times in three: before the verb or after the phrase."""
    if pace is None or not (rng.random() < 2 / 3 or complete):
        return phrase
    word = _usual(rng, PACE_WORDS[pace])
    if word.endswith("ly") and rng.random() < 0.3:
        return Phrase(f"{word} {phrase.verb}", f"{word} {phrase.gerund}")
    return _with(phrase, word)


def _with(phrase: Phrase, words: str) -> Phrase:
    return Phrase(f"{phrase.verb} {words}", f"{phrase.gerund} {words}")


def _finish(text: str, rng: np.random.Generator, phrasing: str) -> str:
    """Case, closing full stop and the odd flourish, as people add them."""
    if phrasing == "train" and rng.random() < 0.06:
        text = f"{text}, {_pick(rng, FLOURISHES)}"
    style = rng.random()
    if style < 0.4:
        text = ". ".join(part[0].upper() + part[1:] for part in text.split(". "))
    elif style < 0.42:
        text = text.upper()
    return f"{text}." if rng.random() < 0.35 else text


def _usual(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """The first word half the time, any of them otherwise."""
    return words[0] if rng.random() < 0.5 else _pick(rng, words)


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]
