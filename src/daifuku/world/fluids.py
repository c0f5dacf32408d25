"""The laws of fluid-like motions: closed forms, exact at any time. Units as in `motions`.

Each law knows where its parts are at any time, and one `track` of what can be followed by eye.
"""

from dataclasses import dataclass
from math import pi, sqrt

import numpy as np
from jaxtyping import Float

from daifuku.world.motions import GRAVITY, Points, Times

Places = Float[np.ndarray, "*places"]
Paths = Float[np.ndarray, "parts t 2"]
PerPart = Float[np.ndarray, "parts t"]
Profile = Float[np.ndarray, "t x"]
Along = Float[np.ndarray, "x"] | Float[np.ndarray, "t x"]
"""Distances from a pole, the same for all times or not."""

GOLDEN = (sqrt(5) - 1) / 2
"""Multiples of it, without their whole part, fill 0 to 1 evenly and never repeat."""


@dataclass(frozen=True, kw_only=True)
class Droplet:
    """Two droplets of one splash that fly off to both sides, alike but for the side."""

    offset: float
    """How far from the middle of the splash each leaves the surface."""
    vx: float
    vy: float
    """Speeds, outwards and upwards."""
    radius: float


@dataclass(frozen=True, kw_only=True)
class Splash:
    """A drop falls from rest into a pool of the same fluid, throws up droplets and sends out waves.

    The pool rises by exactly what falls into it, and waves have as much below the surface as above it, so that the area
    of the fluid stays nearly the same; only droplets come on top.
    """

    x: float
    y: float
    """Centre of the drop before it falls."""
    radius: float
    level: float
    """Height of the still surface."""
    droplets: tuple[Droplet, ...]
    crater: float
    """Depth of the hollow that the drop leaves; a jet follows it."""
    swing_s: float = 0.5
    """Period of hollow and jet."""
    wave_height: float
    wave_speed: float
    wave_width: float
    """Width of the group of waves that runs out to each side."""
    decay_s: float = 0.45
    """Time in which waves die down to 1 / e."""
    gravity: float = GRAVITY

    @property
    def contact(self) -> float:
        """When the drop touches the surface, in s."""
        return sqrt(2 * (self.level - self.radius - self.y) / self.gravity)

    def drop(self, time: Times) -> Points:
        """Centre of the drop; it falls on through the pool that hides it."""
        return np.stack([np.full_like(time, self.x), self.y + self.gravity / 2 * time**2], axis=-1)

    def spray(self, time: Times) -> Paths:
        """Centres of all droplets, left ones before right ones; NaN before the splash."""
        since = np.where(time < self.contact, np.nan, time - self.contact)
        paths = [
            np.stack(
                [
                    self.x + side * (one.offset + one.vx * since),
                    self.level - one.vy * since + self.gravity / 2 * since**2,
                ],
                axis=-1,
            )
            for side in (-1, 1)
            for one in self.droplets
        ]
        return np.stack(paths)

    def swallowed(self, time: Times) -> Times:
        """Area of the drop that lies below the level: a circular segment."""
        depth = np.clip(self.drop(time)[:, 1] + self.radius - self.level, 0, 2 * self.radius) / self.radius
        return self.radius**2 * (np.arccos(1 - depth) - (1 - depth) * np.sqrt(depth * (2 - depth)))

    def surface(self, time: Times, x: Places) -> Profile:
        """Height of the surface of the pool above each place.

        A hollow that turns into a jet and back, (1 - 2 u^2) exp(-u^2) across, and one group of waves to each side,
        sin(4 v) exp(-v^2) around a middle that runs outwards. The first adds or takes no area, nor do the waves once
        they have left the middle.
        """
        since = np.maximum(time - self.contact, 0)[:, None]
        decay = np.exp(-since / self.decay_s)
        across = ((x - self.x) / (1.6 * self.radius)) ** 2
        swing = -self.crater * np.sin(2 * pi * since / self.swing_s) * decay
        hollow = swing * (1 - 2 * across) * np.exp(-across)
        within = (np.abs(x - self.x) - self.wave_speed * since) / self.wave_width
        growth = 1 - np.exp(-since / (self.swing_s / 4))
        waves = self.wave_height * growth * decay * np.sin(4 * within) * np.exp(-(within**2))
        return self.level - self.swallowed(time)[:, None] - hollow - waves

    def track(self, time: Times) -> Points:
        """Centre of the drop until it touches the pool, NaN from then on."""
        return np.where(time[:, None] < self.contact, self.drop(time), np.nan)


@dataclass(frozen=True, kw_only=True)
class Smoke:
    """Puffs leave a source one after the other, rise, widen, drift and thin out; none of them gains or loses smoke."""

    x: float
    y: float
    """The source."""
    speed: float
    """How fast every puff rises."""
    drift: float
    """Speed to the right, the same for every puff."""
    width: float
    """Standard deviation of a new puff."""
    spread: float = 0.03
    """How fast the standard deviation grows."""
    waver: float
    """Largest speed sideways, on top of the drift."""
    waver_rate: float
    """How often the plume wavers, in Hz."""
    phase: float
    scatter: float
    """From 0 to 1: where the first puff starts to the side; the others follow by the golden ratio."""
    lead_s: float
    """How long before the clip the first puff left."""
    interval_s: float = 0.06
    fade_s: float = 0.15
    """How long a puff takes to leave the source."""

    def age(self, time: Times) -> PerPart:
        """Time since each puff began to leave the source, negative before; as many puffs as leave by the last time."""
        last = float(time[-1]) if len(time) else 0.0
        left = np.arange(int((last + self.lead_s) / self.interval_s) + 1) * self.interval_s - self.lead_s
        return time - left[:, None]

    def amount(self, time: Times) -> PerPart:
        """Smoke in each puff, 1 for one that has wholly left the source."""
        return np.clip(self.age(time) / self.fade_s, 0, 1)

    def widths(self, time: Times) -> PerPart:
        """Standard deviation of each puff."""
        return self.width + self.spread * np.maximum(self.age(time), 0)

    def puffs(self, time: Times) -> Paths:
        """Centres of all puffs. Each keeps the direction it left in, so that the waver of the plume rises with it."""
        age = np.maximum(self.age(time), 0)
        number = np.arange(len(age))[:, None]
        sideways = np.sin(2 * pi * self.waver_rate * number * self.interval_s + self.phase)
        scatter = 2 * ((self.scatter + number * GOLDEN) % 1) - 1
        x = self.x + 1.5 * self.width * scatter + (self.drift + self.waver * (0.5 * sideways + 0.8 * scatter)) * age
        return np.stack([x, self.y - self.speed * age], axis=-1)

    def track(self, time: Times) -> Points:
        """Centre of mass of all smoke, in the picture or not.

        As new smoke follows all the time, it rises half as fast as the puffs. A pixel's smoke is -log(1 - cover).
        """
        amount = self.amount(time)[..., None]
        return (amount * self.puffs(time)).sum(axis=0) / amount.sum(axis=0)


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Cloth on a pole. Waves run from the pole to the free end and grow on the way; the cloth keeps its length."""

    x: float
    """The pole."""
    y: float
    """Upper edge of the cloth at the pole."""
    height: float
    length: float
    towards: int
    """1 where the cloth blows to the right, -1 to the left."""
    amplitude: float
    """Of the wave at the free end."""
    frequency: float
    """In Hz."""
    wavelength: float
    phase: float
    lag: float
    """Phase by which the lower edge is behind the upper one, in rad."""
    sag: float
    """How far the free end hangs below the upper edge."""

    def offset(self, time: Times, along: Along, down: float) -> Profile:
        """How far the cloth is moved down, at a distance from the pole and a share of its height (0 is the upper edge).

        A travelling wave with a little of its first overtone, sin(p) + sin(2 p) / 5, whose amplitude grows with the
        distance from the pole.
        """
        share = along / self.length
        phase = self._phase(time, along) - self.lag * down
        return self.sag * share**2 + self.amplitude * share * (np.sin(phase) + np.sin(2 * phase) / 5)

    def fold(self, time: Times, along: Along, down: Float[np.ndarray, "t y x"]) -> Float[np.ndarray, "t y x"]:
        """How steep the wave is at each place, from -1 to 1 at the free end; what light shows of folds."""
        rise = np.cos(self._phase(time, along)[:, None] - self.lag * down)
        return np.minimum(along / self.length * 1.5, 1) * (rise + 0.4 * (2 * rise**2 - 1)) / 1.4

    def _phase(self, time: Times, along: Along) -> Profile:
        """Of the wave at the upper edge."""
        return 2 * pi * (along / self.wavelength - self.frequency * time[:, None]) + self.phase

    def arc(self, time: Times, along: Along) -> Profile:
        """Length of the cloth's middle from the pole to each distance; these rise from place to place by even steps."""
        step = float(along[1] - along[0])
        slope = np.gradient(self.offset(time, along, 0.5), step, axis=-1)
        lengths = np.sqrt(1 + slope**2) * step
        return np.cumsum(lengths, axis=-1) - lengths / 2 + along[0] - step / 2

    def track(self, time: Times) -> Points:
        """Middle of the free end, between its upper and its lower corner."""
        along = (np.arange(256) + 0.5) / 256 * self.length
        end = np.array([np.interp(self.length, one, along) for one in self.arc(time, along)])
        corners = [self.offset(time, end[:, None], down)[:, 0] for down in (0.0, 1.0)]
        y = self.y + self.height / 2 + np.mean(corners, axis=0)
        return np.stack([self.x + self.towards * end, y], axis=-1)


@dataclass(frozen=True, kw_only=True)
class Grass:
    """Blades rooted in the floor, each bent to an arc of a circle; a wave of wind runs over them."""

    length: float
    """Of the longest blade; the shortest has three quarters of it."""
    floor: float = 1.0
    num_blades: int = 40
    towards: int
    """1 where the wind runs to the right, -1 to the left."""
    lean: float
    """Angle at the tips when the wind is even, in rad."""
    sway: float
    """How far the angle swings to either side of it."""
    frequency: float
    """In Hz."""
    wavelength: float
    phase: float
    scatter: float
    """From 0 to 1: by how much the first blade is moved and shortened; the others follow by the golden ratio."""

    @property
    def roots(self) -> Places:
        """Where along the floor each blade stands, from beyond the left edge to beyond the right one."""
        return 1.2 * (np.arange(self.num_blades) + 0.8 * self.scattered(1)) / self.num_blades - 0.1

    @property
    def lengths(self) -> Places:
        """Length of each blade."""
        return self.length * (0.75 + 0.25 * self.scattered(2))

    def scattered(self, times: int) -> Places:
        """A number from 0 to 1 for each blade, spread evenly; another one for each multiple of the golden ratio."""
        return (self.scatter + np.arange(self.num_blades) * GOLDEN * times) % 1

    def bend(self, time: Times) -> PerPart:
        """Angle of each blade's tip from the vertical in rad, positive to the right."""
        run = self.frequency * time - self.towards * self.roots[:, None] / self.wavelength
        return self.towards * self.lean + self.sway * np.sin(2 * pi * run + self.phase)

    def tips(self, time: Times) -> Paths:
        """Tip of every blade: an arc of length l turned by b ends l (1 - cos b) / b to the side, l sin(b) / b up."""
        bend = self.bend(time)
        bend = np.where(np.abs(bend) < 1e-6, 1e-6, bend)
        lengths = self.lengths[:, None]
        x = self.roots[:, None] + lengths * (1 - np.cos(bend)) / bend
        return np.stack([x, self.floor - lengths * np.sin(bend) / bend], axis=-1)

    def track(self, time: Times) -> Points:
        """Mean of the tips of all blades, those just outside of the picture included."""
        return self.tips(time).mean(axis=0)


Law = Splash | Smoke | Flag | Grass
