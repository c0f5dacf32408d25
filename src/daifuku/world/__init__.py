"""A procedural two-dimensional world: moving shapes with exact physics and captions. numpy only."""

from daifuku.world.captions import describe
from daifuku.world.factors import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, is_held_out
from daifuku.world.render import Clip, render
from daifuku.world.scene import Scene, Thing, sample_scene
from daifuku.world.stream import clip, clips

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "Clip",
    "Scene",
    "Thing",
    "clip",
    "clips",
    "describe",
    "is_held_out",
    "render",
    "sample_scene",
]
