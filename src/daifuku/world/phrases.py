"""Words for fluids and what they do, and for the pace of any motion. How sentences are made of them: `captions`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrase:
    """One way to name a motion, as what the object does and as what it is doing."""

    verb: str
    gerund: str


FLUID_NOUNS = {
    "splash": (
        "a {size} {colour} drop",
        "a {size} drop of {colour} water",
        "a {size} drop of {colour} paint",
        "a {size} {colour} droplet",
        "a {size} drop of {colour} liquid",
    ),
    "smoke": (
        "a {size} plume of {colour} smoke",
        "a {size} cloud of {colour} smoke",
        "a {size} column of {colour} smoke",
        "a {size} trail of {colour} smoke",
        "a {size} {colour} cloud of smoke",
    ),
    "flag": (
        "a {size} {colour} flag",
        "a {size} {colour} banner",
        "a {size} {colour} flag on a pole",
        "a {size} {colour} cloth on a pole",
        "a {size} piece of {colour} cloth",
    ),
    "grass": (
        "{size} {colour} grass",
        "a field of {size} {colour} grass",
        "a patch of {size} {colour} grass",
        "a meadow of {size} {colour} grass",
    ),
}
"""What each fluid is called; the first is the plain one."""

GRASS_SIZE_WORDS = {
    "small": ("short", "low"),
    "medium": ("medium", "medium-high"),
    "large": ("tall", "high", "long"),
}

FLUID_PHRASES = {
    "splash": (
        Phrase("splashes into a pool", "splashing into a pool"),
        Phrase("falls into a pool and splashes", "falling into a pool and splashing"),
        Phrase("drops into the pool with a splash", "dropping into the pool with a splash"),
        Phrase("falls and makes a splash", "falling and making a splash"),
        Phrase("hits the surface and sends out waves", "hitting the surface and sending out waves"),
    ),
    "smoke": (
        Phrase("rises from the ground", "rising from the ground"),
        Phrase("rises and spreads", "rising and spreading"),
        Phrase("billows upwards", "billowing upwards"),
        Phrase("drifts up from the floor", "drifting up from the floor"),
        Phrase("floats up and thins out", "floating up and thinning out"),
    ),
    "flag": (
        Phrase("waves in the wind", "waving in the wind"),
        Phrase("flutters in the wind", "fluttering in the wind"),
        Phrase("blows in the breeze", "blowing in the breeze"),
        Phrase("flaps in the wind", "flapping in the wind"),
        Phrase("ripples in the breeze", "rippling in the breeze"),
    ),
    "grass": (
        Phrase("sways in the wind", "swaying in the wind"),
        Phrase("waves in the breeze", "waving in the breeze"),
        Phrase("bends in the wind", "bending in the wind"),
        Phrase("moves in the breeze", "moving in the breeze"),
        Phrase("ripples in waves", "rippling in waves"),
    ),
}

UNSEEN_FLUID_PHRASES = {
    "splash": (Phrase("falls into the pool and sends out waves", "falling into the pool and sending out waves"),),
    "smoke": (Phrase("billows up from the ground", "billowing up from the ground"),),
    "flag": (Phrase("flaps in the breeze", "flapping in the breeze"),),
    "grass": (Phrase("bends in the breeze", "bending in the breeze"),),
}

DIRECTION_WORDS: dict[str | None, tuple[str, ...]] = {
    None: ("in still air", "without wind"),
    "left": ("to the left", "leftwards", "towards the left"),
    "right": ("to the right", "rightwards", "towards the right"),
}
"""Where a fluid goes; the first is for smoke that drifts to no side."""

PACE_WORDS = {
    "slow": ("slowly", "gently", "at a slow pace"),
    "fast": ("quickly", "fast", "rapidly"),
}
