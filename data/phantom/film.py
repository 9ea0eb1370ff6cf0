"""The tools that draw the phantom: `Dice` (random numbers), `Film` (a picture in two layers) and `Body` (one patient's
build).

The same bytes on any machine: random numbers are made from PCG64's raw words, since numpy keeps the bit streams of
PCG64 and SeedSequence fixed, but not the results of Generator's methods. Pixels are made only by + - * / sqrt,
comparisons and table look-ups, one array operation at a time. IEEE 754 fixes the result of each of these to the last
bit, for any SIMD width. It does not fix exp, sin, pow, matmul and sums over an array, so these are not used.

Coordinates are the body's: x from -1 (the picture's left) to 1, y from -1 (top) to 1, with midline and mid-chest at 0.
The patient's right is on the picture's left. In the lateral view the front of the body is on the left.

A film has two layers: `water` in [0, 1], the share of the lung's air that is displaced (it saturates, so that two
shadows over each other are not whiter than the liver), and `extra`, brightness that is added to `water` (bone, calcium,
metal) or subtracted.
"""

from functools import lru_cache

import numpy as np

AIR, WATER = 0.17, 0.60
GRADES = ("mild", "moderate", "severe")
EVERYWHERE = (slice(None), slice(None))


class Dice:
    """Random numbers that depend on the integers of `key` alone, the same on any machine and numpy version."""

    def __init__(self, *key):
        self.bits = np.random.PCG64(np.random.SeedSequence(key))

    def unit(self):
        """A random number in [0, 1)."""
        return (self.bits.random_raw() >> 11) * 2.0**-53

    def between(self, low, high):
        return low + (high - low) * self.unit()

    def below(self, n):
        """A random integer from 0 to n - 1."""
        return int(self.unit() * n)

    def chance(self, probability):
        return self.unit() < probability

    def pick(self, options, weights=None):
        """One of the options, with probabilities in proportion to `weights`, or equal ones."""
        if weights is None:
            return options[self.below(len(options))]
        at = self.unit() * sum(weights)
        for option, weight in zip(options, weights):
            at -= weight
            if at < 0:
                return option
        return options[-1]

    def shuffled(self, items):
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]
        return items

    def bytes(self, n):
        """n random bytes as int16, the same on machines of either byte order."""
        words = self.bits.random_raw((n + 7) // 8).astype("<u8")
        return words.view(np.uint8)[:n].astype(np.int16)


def clip(t):
    """The values limited to [0, 1]."""
    return np.minimum(np.maximum(t, 0), 1)


def join(a, b, width):
    """The maximum of two fields, with a rounded transition (fillet) of `width` where they are equal."""
    fillet = np.maximum(width - np.abs(a - b), 0)
    return np.maximum(a, b) + fillet * fillet * (0.25 / width)


def smooth(t):
    """A soft step from 0 (t <= 0) to 1 (t >= 1)."""
    t = clip(t)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=4)
def _pixels(size):
    line = ((np.arange(size) * 2 + 1) / size - 1).astype(np.float32)
    return np.broadcast_to(line[None, :], (size, size)), np.broadcast_to(line[:, None], (size, size))


class Film:
    """A picture of size × size pixels while it is drawn: the body's coordinates `x`, `y` at every pixel, and the layers
    `water` and `extra`, each (size, size) float32.

    Anatomy and grain use the random numbers of `dice`, findings those of `luck`, so that the same chest can be drawn
    with and without a finding. Shift, scale and tilt of the body vary so much that no pixel always shows the same edge.
    """

    def __init__(self, size, dice, luck):
        self.size, self.dice, self.luck = size, dice, luck
        self.scale, tilt = dice.between(0.82, 1.03), dice.between(-0.05, 0.05)
        self.cos, self.sin = (1 - tilt * tilt) / (1 + tilt * tilt), 2 * tilt / (1 + tilt * tilt)
        self.shift = dice.between(-0.11, 0.11), dice.between(-0.09, 0.09)
        u, v = _pixels(size)
        u, v = (u - self.shift[0]) / self.scale, (v - self.shift[1]) / self.scale
        self.x, self.y = self.cos * u + self.sin * v, self.cos * v - self.sin * u
        self.pixel = 2 / size / self.scale
        self.water = np.zeros((size, size), np.float32)
        self.extra = np.zeros((size, size), np.float32)

    def edge(self, distance, blur=1.4):
        """1 inside (distance > 0), 0 outside, with a soft edge of `blur` pixels of a 128-pixel picture, at least one
        pixel of this picture.
        """
        width = max(blur / 64, self.pixel)
        return smooth(distance * (1 / width) + 0.5)

    def around(self, x0, x1, y0, y1):
        """The part of the picture that contains a rectangle in the body's coordinates, as a pair of slices."""
        corners = [(self.cos * x - self.sin * y, self.sin * x + self.cos * y) for x in (x0, x1) for y in (y0, y1)]
        parts = []
        for axis in (1, 0):
            ends = [(corner[axis] * self.scale + self.shift[axis] + 1) * self.size / 2 for corner in corners]
            parts.append(slice(min(max(int(min(ends)) - 1, 0), self.size), min(max(int(max(ends)) + 2, 0), self.size)))
        return tuple(parts)

    def ellipse(self, cx, cy, rx, ry, slant=0.0):
        """(where, q): slices of the picture, and there a field that is 0 at the centre and 1 on the ellipse.

        `slant` shears the ellipse: x grows with y.
        """
        reach = rx * 1.5 + abs(slant) * ry * 1.5 + 3 * self.pixel
        where = self.around(cx - reach, cx + reach, cy - ry * 1.5 - 3 * self.pixel, cy + ry * 1.5 + 3 * self.pixel)
        dy = self.y[where] - cy
        dx = (self.x[where] - cx - slant * dy) * (1 / rx)
        dy = dy * (1 / ry)
        return where, np.sqrt(dx * dx + dy * dy)

    def disc(self, cx, cy, rx, ry, slant=0.0, blur=1.4):
        """(where, mask) of an ellipse with the edge of `edge`: 1 inside, 0 outside."""
        where, q = self.ellipse(cx, cy, rx, ry, slant)
        return where, self.edge((1 - q) * min(rx, ry), blur)

    def cloud(self, cx, cy, rx, ry, slant=0.0):
        """(where, mask) of an ellipse without an edge: 1 at the centre, fading to 0 at 1.3 times its radii."""
        where, q = self.ellipse(cx, cy, rx, ry, slant)
        return where, smooth((1.3 - q) * (1 / 1.3))

    def line(self, points, width, blur=1.2):
        """(where, mask) of a line through the points. `width` is half its thickness; a pair: at its start and end."""
        start, end = width if isinstance(width, tuple) else (width, width)
        reach = max(start, end) + 3 * self.pixel
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        where = self.around(min(xs) - reach, max(xs) + reach, min(ys) - reach, max(ys) + reach)
        x, y = self.x[where], self.y[where]
        inside = None
        for number, ((ax, ay), (bx, by)) in enumerate(zip(points, points[1:])):
            dx, dy = bx - ax, by - ay
            px, py = x - ax, y - ay
            t = clip((px * dx + py * dy) * (1 / (dx * dx + dy * dy)))
            px, py = px - t * dx, py - t * dy
            first, step = start + (end - start) * number / (len(points) - 1), (end - start) / (len(points) - 1)
            depth = t * step + first - np.sqrt(px * px + py * py)
            inside = depth if inside is None else np.maximum(inside, depth)
        return where, self.edge(inside, blur)

    def curve(self, points, width, blur=1.2):
        """(where, mask) of a smooth curve through the points (Catmull-Rom), otherwise like `line`."""
        ends = [points[0], *points, points[-1]]
        bent = []
        for at in range(len(points) - 1):
            for t in (0, 1 / 3, 2 / 3):
                bent.append([q + 0.5 * t * (r - p + t * (2 * p - 5 * q + 4 * r - s + t * (3 * q - p - 3 * r + s)))
                             for p, q, r, s in zip(*ends[at:at + 4])])
        return self.line([*bent, points[-1]], width, blur)

    def fill(self, shape, strength):
        """Displaces the share `strength` of the air that is left in a shape (where, mask)."""
        where, mask = shape
        water = self.water[where]
        water += mask * strength * (1 - water)

    def add(self, shape, strength):
        """Adds `strength` to the layer `extra` in a shape (where, mask)."""
        where, mask = shape
        self.extra[where] += mask * strength

    def clouds(self, cells, dice):
        """Smooth noise in [-1, 1] over the picture: random values on a grid of `cells` × `cells`, interpolated."""
        grid = ((dice.bytes((cells + 2) ** 2) - 127.5) / 127.5).astype(np.float32).reshape(cells + 2, cells + 2)
        low, high, part = _lattice(self.size, cells)
        rows = grid[low] * (1 - part)[:, None] + grid[high] * part[:, None]
        return rows[:, low] * (1 - part) + rows[:, high] * part

    def develop(self, level, body):
        """The layers → (size, size) uint8: adds exposure, a brightness gradient over the film, a tone curve and grain.

        level: brightness of `water` 1. body: mask of the body. Both are (size, size).
        """
        dice = self.dice
        light = (AIR + self.water * (level - AIR) + self.extra) * body + 0.02
        u, v = _pixels(self.size)
        light = light * dice.between(0.82, 1.18) + dice.between(-0.05, 0.07)
        light = light + u * dice.between(-0.05, 0.05) + v * dice.between(-0.05, 0.05)
        light = clip(light)
        light = light + light * (1 - light) * dice.between(-0.32, 0.32)
        grain = dice.bytes(4 * self.size * self.size).reshape(4, self.size, self.size)
        grain = ((grain[0] + grain[1]) + (grain[2] + grain[3]) - 510) * np.float32(1 / 148)
        light = light + grain * dice.between(0.007, 0.020)
        return (clip(light) * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=16)
def _lattice(size, cells):
    at = (np.arange(size, dtype=np.float64) + 0.5) * (cells / size)
    low = at.astype(np.int64)
    part = (at - low).astype(np.float32)
    return low, low + 1, part * part * (3 - 2 * part)


class Body:
    """One patient's anatomy, which both views share: build, heart, diaphragm. Lengths are in the body's coordinates."""

    def __init__(self, dice):
        self.width = dice.between(0.71, 0.79)          # half the chest's width, inside the ribs
        self.top = dice.between(0.92, 1.0)             # from y = 0.22 up to the apex of the lungs
        self.ratio = dice.between(0.385, 0.475)        # cardiothoracic ratio, if the heart is not enlarged
        self.mediastinum = dice.between(0.105, 0.155)  # half the mediastinum's width, if it is not enlarged
        self.dome = dice.between(0.46, 0.54)           # height y of the right hemidiaphragm
        self.fat = dice.between(0, 1)
        self.breasts = dice.chance(0.45)
        self.knob = dice.between(0.055, 0.085)
        self.bone = dice.between(0.075, 0.12)
        self.rib0, self.spacing = dice.between(0, 1), dice.between(0.125, 0.145)
        self.bubble = dice.chance(0.7)


def sides_of(finding):
    """The finding's sides as signs of x in the frontal view: right (-1,), left (1,), else (-1, 1)."""
    return {"right": (-1,), "left": (1,)}.get(finding.location.split(" ")[0], (-1, 1))


def zone_of(finding):
    """The finding's zone: upper, mid or lower; mid if its location names no zone."""
    return next((zone for zone in ("upper", "mid", "lower") if zone in finding.location), "mid")


def of_severity(finding, mild, moderate, severe):
    """The one of three values that belongs to the finding's severity."""
    return (mild, moderate, severe)[GRADES.index(finding.severity)]
