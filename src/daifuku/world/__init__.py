"""A procedural two-dimensional world: moving shapes and fluids with exact physics and captions. numpy only."""

from daifuku.world.captions import describe
from daifuku.world.factors import BACKGROUNDS, COLOURS, FLUIDS, KINDS, MOTIONS, SHAPES, SIZES, is_held_out
from daifuku.world.render import Clip, render
from daifuku.world.scene import Fluid, Scene, Thing, sample_fluid, sample_scene
from daifuku.world.stream import clip

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "FLUIDS",
    "KINDS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "Clip",
    "Fluid",
    "Scene",
    "Thing",
    "clip",
    "describe",
    "is_held_out",
    "render",
    "sample_fluid",
    "sample_scene",
]
