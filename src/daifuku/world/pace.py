"""How fast a motion is, beside the other ones of its kind."""

from daifuku.world.fluids import Flag, Grass, Law, Smoke
from daifuku.world.motions import Collision, Flight, Orbit, Path, Spring

FREE: dict[str, tuple[float, float]] = {
    "roll_left": (0.32, 0.52),
    "roll_right": (0.32, 0.52),
    "spin": (2.5, 5.0),
    "orbit": (2.6, 4.4),
    "rise": (0.3, 0.48),
    "spring": (0.75, 1.15),
    "collide": (0.2, 0.45),
    "smoke": (0.22, 0.5),
    "flag": (1.0, 2.6),
    "grass": (0.5, 1.4),
}
"""What each motion with a free speed draws it from: picture sides or radians per second, periods of springs in s, the
speed before a collision, and frequencies of flags and grass in Hz. Of other motions gravity alone sets the speed."""


def pace_of(motion: str, law: Path | Law) -> str | None:
    """`slow` or `fast` in the lowest or highest third of what the motion draws from.

    None between the two, and for a motion with no free speed.
    """
    if motion not in FREE:
        return None
    low, high = FREE[motion]
    share = (_free(law) - low) / (high - low)
    if isinstance(law, Spring):
        share = 1 - share
    return "slow" if share < 1 / 3 else "fast" if share > 2 / 3 else None


def _free(law: Path | Law) -> float:
    match law:
        case Flight():
            return abs(law.vx + law.vy) or abs(law.turn_rate)
        case Orbit():
            return abs(law.turn_rate)
        case Spring():
            return law.period
        case Collision():
            return abs(law.before)
        case Smoke():
            return law.speed
        case Flag() | Grass():
            return law.frequency
        case _:
            raise AssertionError(law)
