"""What a clip of the world can show, and the combinations of shape, colour and motion that training never sees."""

from functools import cache
from typing import NamedTuple

RGB = tuple[int, int, int]

SHAPES = ("ball", "square", "triangle", "star", "ring")

COLOURS: dict[str, RGB] = {
    "red": (225, 25, 35),
    "orange": (255, 140, 0),
    "yellow": (255, 225, 20),
    "green": (40, 190, 50),
    "blue": (40, 95, 255),
    "purple": (160, 30, 175),
    "pink": (255, 130, 195),
    "cyan": (30, 215, 230),
}

SIZES: dict[str, float] = {"small": 9 / 64, "medium": 11.5 / 64, "large": 14 / 64}
"""Radius of the ball of each size, in picture sides; the other shapes are made to look as large."""

BACKGROUNDS: dict[str, RGB] = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "navy": (15, 20, 75),
    "beige": (220, 195, 145),
    "dark green": (10, 65, 35),
}

MOTIONS = (
    "bounce",
    "fall",
    "throw_left",
    "throw_right",
    "roll_left",
    "roll_right",
    "pendulum",
    "spin",
    "orbit",
    "rise",
    "spring",
    "rest",
)
"""Motions of one object."""

UPRIGHT_MOTIONS = ("bounce", "fall", "spin", "rise", "spring", "rest")
"""Motions that stay within one half of the picture, so that two objects can perform them side by side."""

COLLIDE = "collide"
"""The motion of two objects that meet head-on. It has no place among the motions of one object."""

FLUIDS = ("splash", "smoke", "flag", "grass")
"""Fluid-like motions: they have a colour, a size and sometimes a direction, and no shape of their own."""

FLUID_SIZES: dict[str, dict[str, float]] = {
    "splash": {"small": 0.065, "medium": 0.09, "large": 0.12},
    "smoke": {"small": 0.019, "medium": 0.029, "large": 0.044},
    "flag": {"small": 0.24, "medium": 0.36, "large": 0.5},
    "grass": {"small": 0.26, "medium": 0.42, "large": 0.62},
}
"""In picture sides: radius of the drop, width of new smoke, height of the cloth, length of the longest blade."""

KINDS = ("single", "pair", "fluid")
"""Kinds of scene: one object, two objects, a fluid-like motion."""

COLLIDING_SHAPES = ("ball", "square", "ring")
"""Shapes whose width at the height of the centre is their whole width: two of them touch exactly where they seem to."""


class Combination(NamedTuple):
    """What a held-out combination is made of."""

    shape: str
    colour: str
    motion: str


def is_held_out(shape: str | None, colour: str, motion: str) -> bool:
    """Whether training never shows this combination.

    One in ten is held out, by a rule that is a Latin square in all but name: every motion loses four combinations,
    with four colours and four shapes; every colour loses six; every shape nine or ten. Fluids have no shape: each loses
    two colours, and every colour one fluid.
    """
    colour_index = tuple(COLOURS).index(colour)
    if motion in FLUIDS:
        return colour_index // 2 == FLUIDS.index(motion)
    assert shape is not None, motion
    shape_index = SHAPES.index(shape)
    motion_index = (*MOTIONS, COLLIDE).index(motion)
    return (colour_index + motion_index) % 2 == 0 and shape_index == (colour_index // 2 + motion_index) % len(SHAPES)


@cache
def combinations(motions: tuple[str, ...], shapes: tuple[str, ...] = SHAPES, *, split: str) -> tuple[Combination, ...]:
    """Every combination of the motions and shapes with all colours that belongs to a split (train, unseen or any)."""
    return tuple(
        Combination(shape, colour, motion)
        for motion in motions
        for colour in COLOURS
        for shape in shapes
        if split == "any" or is_held_out(shape, colour, motion) == (split == "unseen")
    )
