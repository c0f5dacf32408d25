"""The five shapes as signed distances: negative inside, positive outside, zero on the outline."""

from collections.abc import Callable
from math import cos, pi, radians, sin, sqrt

import numpy as np
from jaxtyping import Float

Field = Float[np.ndarray, "..."]
"""One number a point of a grid; coordinates are relative to the shape's centre, y downwards, one unit = its radius."""

SQUARE_HALF_SIDE = sqrt(pi) / 2
"""A square of this half side has the ball's area."""

TRIANGLE_RADIUS = 1.3
STAR_RADIUS = 1.3
STAR_INNER_RADIUS = 0.58
RING_INNER_RADIUS = 0.5

REACH = {
    "ball": 1.0,
    "square": SQUARE_HALF_SIDE * sqrt(2),
    "triangle": TRIANGLE_RADIUS,
    "star": STAR_RADIUS,
    "ring": 1.0,
}
"""Radius of the circle around each shape."""

DEPTH = {
    "ball": 1.0,
    "square": SQUARE_HALF_SIDE,
    "triangle": TRIANGLE_RADIUS / 2,
    "star": STAR_RADIUS * cos(radians(36)),
    "ring": 1.0,
}
"""How far each upright shape reaches below its centre."""

HALF_WIDTH = {"ball": 1.0, "square": SQUARE_HALF_SIDE, "ring": 1.0}
"""Half the width of the shapes that can collide."""

HOLE_RADIUS = {"ball": 0.0, "square": 0.0, "triangle": 0.0, "star": 0.0, "ring": RING_INNER_RADIUS}
"""Radius of the hole around each shape's centre."""

AREA = {
    "ball": pi,
    "square": 4 * SQUARE_HALF_SIDE**2,
    "triangle": 3 * sqrt(3) / 4 * TRIANGLE_RADIUS**2,
    "star": 5 * STAR_RADIUS * STAR_INNER_RADIUS * sin(radians(36)),
    "ring": pi * (1 - RING_INNER_RADIUS**2),
}

MARK_DISTANCE = {"ball": 0.5, "square": 0.45, "triangle": 0.4, "star": 0.4, "ring": 0.75}
"""How far above the centre of the upright shape its mark sits."""

MARK_RADIUS = {"ball": 0.27, "square": 0.27, "triangle": 0.24, "star": 0.24, "ring": 0.22}


def coverage(distance: Field) -> Field:
    """Share of a pixel that lies inside an outline, from the signed distance of its middle in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def ball(x: Field, y: Field) -> Field:
    """A disc."""
    return np.sqrt(x * x + y * y) - 1


def ring(x: Field, y: Field) -> Field:
    """A disc with a round hole."""
    middle, half_band = (1 + RING_INNER_RADIUS) / 2, (1 - RING_INNER_RADIUS) / 2
    return np.abs(np.sqrt(x * x + y * y) - middle) - half_band


def square(x: Field, y: Field) -> Field:
    """Distances beyond the corners are those of the sides."""
    return np.maximum(np.abs(x), np.abs(y)) - SQUARE_HALF_SIDE


def triangle(x: Field, y: Field) -> Field:
    """Equilateral, one corner up; distances beyond the corners are those of the sides."""
    slope = np.abs(x) * cos(radians(30)) - y * sin(radians(30))
    return np.maximum(slope, y) - TRIANGLE_RADIUS / 2


def star(x: Field, y: Field) -> Field:
    """Folds the plane into the half sector beside the tip that points up, where one straight edge is the outline."""
    x, y = np.abs(x), -y
    for fold in (radians(108), radians(36)):
        beyond = np.maximum(cos(fold) * x - sin(fold) * y, 0)
        x, y = x - 2 * cos(fold) * beyond, y + 2 * sin(fold) * beyond
    edge_x, edge_y = STAR_INNER_RADIUS * sin(radians(36)), STAR_INNER_RADIUS * cos(radians(36)) - STAR_RADIUS
    length = sqrt(edge_x**2 + edge_y**2)
    return (-edge_y * np.abs(x) + edge_x * (y - STAR_RADIUS)) / length


SIGNED_DISTANCE: dict[str, Callable[[Field, Field], Field]] = {
    "ball": ball,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
}
