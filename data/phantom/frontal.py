"""Draws the phantom's frontal (PA) view: the patient's right is on the picture's left."""

import numpy as np

from data.phantom.film import WATER, clip, join, of_severity, sides_of, smooth, zone_of
from data.phantom.findings import IN_LUNG, callus, edema, effusion, fracture_sites, plaques, pleural_line, step_ribs

ZONES = {"upper": -0.40, "mid": -0.06, "lower": 0.25}


def draw_frontal(film, body, findings):
    """Draws lungs and findings in them, then heart and mediastinum, then bones and devices → (size, size) uint8."""
    found = {finding.finding: finding for finding in findings}
    chest = Chest(film, body, found.get("Atelectasis"))
    _lungs(film, chest, found.get("Edema"))
    for finding in findings:
        if finding.finding in IN_LUNG:
            IN_LUNG[finding.finding](film, chest, finding)
    if "Edema" in found:
        rim = body.width - 0.04
        edema(film, chest, found["Edema"], wings=[(side * 0.28, -0.02, 0.34, 0.42) for side in (-1, 1)],
              septa=[(side * rim, 0.06, -side) for side in (-1, 1)])
    if "Pleural Effusion" in found:
        _effusion(film, chest, found["Pleural Effusion"])

    middle = film.dice.between(-0.045, 0.045)  # x of the midline: the patient is slightly rotated
    shadow, heart_x = _mediastinum(film, chest, middle, found)
    film.water[...] = 1 - chest.lung * (1 - film.water) * (1 - shadow)
    below = film.edge(-chest.floor, 2) * smooth((chest.wall + 0.26) * 4)
    level = WATER - 0.05 + 0.05 * body.fat + 0.12 * shadow + 0.10 * below + film.clouds(5, film.dice) * 0.02
    level = level - 0.16 * smooth((0.02 - chest.wall) * 3.2)

    _airways(film, chest, middle)
    _ribs(film, chest, found.get("Fracture"))
    _spine_and_clavicles(film, middle)
    if "Pleural Other" in found:
        plaques(film, chest, found["Pleural Other"])
    if "Pneumothorax" in found:
        pleural_line(film, chest, found["Pneumothorax"], chest.lung * (1 - shadow))
    for finding in findings:
        if finding.finding == "Support Devices":
            _device(film, chest, finding, middle, heart_x)
    outline = 0.93 + 0.05 * body.fat - 0.70 * smooth((-0.66 - film.y) * 3.6)
    return film.develop(level, film.edge(outline - np.abs(film.x), 3) * np.float32(0.98))


class Chest:
    """Distances from the chest wall (`wall`, positive inside) and the diaphragm (`floor`, positive above), the mask of
    the lungs (`lung`), and the positions of findings; see data/phantom/findings.py.
    """

    over = 1.0

    def __init__(self, film, body, atelectasis):
        self.body, self.ax, self.left = body, np.abs(film.x), film.x > 0
        raised = {-1: 0.0, 1: 0.0}
        if atelectasis and zone_of(atelectasis) == "lower":
            for side in sides_of(atelectasis):
                raised[side] = of_severity(atelectasis, 0.03, 0.08, 0.14)
        self.domes = {-1: body.dome - raised[-1], 1: body.dome + film.dice.between(0.02, 0.07) - raised[1]}
        ey = np.minimum(film.y - 0.22, 0) * (1 / body.top)
        ex = self.ax * (1 / body.width)
        self.wall = (1 - np.sqrt(ex * ex + ey * ey)) * body.width
        bulge = self.ax - 0.36
        self.floor = np.where(self.left, np.float32(self.domes[1]), np.float32(self.domes[-1])) - film.y
        self.floor = self.floor + bulge * bulge * np.where(bulge > 0, np.float32(1.35), np.float32(0.5))
        self.lung = film.edge(self.wall, 2) * film.edge(self.floor, 2)

    def sides(self, finding):
        return sides_of(finding)

    def half(self, side):
        return self.left if side > 0 else ~self.left

    def rind(self, finding):
        return self.wall

    def spot(self, luck, side, finding, loose=1.0):
        """A random point in the finding's zone, not on the heart or the chest wall."""
        zone = zone_of(finding)
        ax = {"upper": 0.36, "mid": 0.44, "lower": 0.47 if side < 0 else 0.53}[zone]
        return side * (ax + loose * luck.between(-0.05, 0.05)), ZONES[zone] + loose * luck.between(-0.07, 0.05)


def _lungs(film, chest, edema):
    """The lungs: air with a fine texture, denser toward the bases; vessels; the breasts over the bases."""
    dice = film.dice
    film.water += 0.09 + film.clouds(14, dice) * 0.03 + film.clouds(30, dice) * 0.025
    film.water += 0.06 * clip((film.y + 0.6) * 0.7)
    for side in (-1, 1):
        _vessels(film, side, of_severity(edema, 1.25, 1.5, 1.7) if edema else 1.0)
    if chest.body.breasts:
        for side in (-1, 1):
            breast = film.disc(side * dice.between(0.40, 0.47), dice.between(0.18, 0.28), 0.34, 0.34, 0, 3)
            film.fill(breast, dice.between(0.05, 0.11))


def _vessels(film, side, swell):
    """A hilum and its tree of vessels, which are thicker below than above; `swell` widens the upper ones
    (cephalization).
    """
    dice = film.dice
    hx, hy = side * dice.between(0.15, 0.19), dice.between(-0.11, -0.04) - (0.03 if side > 0 else 0)
    film.fill(film.cloud(hx, hy, 0.085, 0.13), 0.55)
    for dx, dy in ((0.10, -0.50), (0.24, -0.42), (0.38, -0.26), (0.46, -0.06), (0.46, 0.16), (0.36, 0.32), (0.22, 0.42),
                   (0.10, 0.44)):
        dx, dy = side * (dx + dice.between(-0.09, 0.09)), dy + dice.between(-0.09, 0.09)
        bend = dice.between(-0.12, 0.12)
        thick = (0.015 if dy > 0 else 0.012 * swell) * dice.between(0.8, 1.2)
        fork = (hx + dx * 0.5 + bend * dy, hy + dy * 0.5 - bend * dx)
        film.fill(film.line([(hx, hy), fork, (hx + dx, hy + dy)], (thick, 0.004), 1.6), 0.34)
        tip = (fork[0] + dx * 0.42 + dy * dice.between(0.15, 0.3), fork[1] + dy * 0.42 - dx * dice.between(0.15, 0.3))
        film.fill(film.line([fork, tip], (thick * 0.6, 0.003), 1.6), 0.28)


def _effusion(film, chest, finding):
    for side in chest.sides(finding):
        dome = chest.domes[side]
        lateral = dome + of_severity(finding, 0.00, -0.20, -0.50) + film.luck.between(-0.02, 0.02)
        climb = clip((chest.ax - 0.12) * (1 / (chest.body.width - 0.12)))
        effusion(film, chest, finding, side, lateral, dome + of_severity(finding, 0.13, 0.05, -0.16), climb * climb)


def _mediastinum(film, chest, middle, found):
    """(shadow, x of the heart): the mask of mediastinum and heart, in one smooth outline, and of the aortic knob."""
    body, dice, x, y = chest.body, film.dice, film.x, film.y
    ratio, wide = body.ratio, body.mediastinum
    if "Cardiomegaly" in found:
        ratio = of_severity(found["Cardiomegaly"], 0.535, 0.605, 0.69) + film.luck.between(-0.012, 0.02)
    if "Enlarged Cardiomediastinum" in found:
        wide = of_severity(found["Enlarged Cardiomediastinum"], 0.205, 0.265, 0.335) + film.luck.between(-0.01, 0.015)
    swell = smooth((y + 0.80) * 2.4) * (1 - 0.8 * smooth((y + 0.16) * 2.6))
    narrow = 0.105 + (wide - 0.105) * swell - np.abs(x - middle)

    # The cardiothoracic ratio is the heart's width over the chest's width. Two thirds of the heart lie on the left.
    half, tall = ratio * body.width, 0.29 + 0.22 * (ratio - 0.44)
    heart_x = middle + half * (2 * dice.between(0.63, 0.73) - 1)
    dy = y - (body.dome + 0.07 - tall)
    dx = (x - heart_x - dice.between(0.15, 0.32) * dy) * (1 / half)
    dy = dy * (1 / tall)
    muscle = (1 - np.sqrt(dx * dx + dy * dy)) * min(half, tall)
    shadow = film.edge(join(narrow, muscle, 0.09), 2.4)
    where, knob = film.disc(middle + max(wide * 0.95, 0.12) * 0.82, -0.30, body.knob, body.knob * 1.25, 0, 2.4)
    shadow[where] = np.maximum(shadow[where], knob)
    return shadow, heart_x


def _airways(film, chest, middle):
    """Trachea, main bronchi, and the air bubble in the stomach."""
    dice = film.dice
    film.add(film.line([(middle, -0.98), (middle + 0.005, -0.6), (middle + 0.015, -0.30)], 0.046, 2.4), -0.18)
    for side in (-1, 1):
        film.add(film.line([(middle + 0.015, -0.30), (middle + side * 0.13, -0.17)], 0.028, 2.4), -0.11)
    if chest.body.bubble:
        x, y = dice.between(0.28, 0.38), chest.domes[1] + dice.between(0.12, 0.15)
        film.add(film.disc(x, y, dice.between(0.08, 0.12), dice.between(0.045, 0.07), 0, 2), -0.22)


def _spine_and_clavicles(film, middle):
    dice, x, y = film.dice, film.x - middle, film.y
    phase = (y + 1.2) * (1 / 0.135)
    disc = smooth(np.abs(phase - np.floor(phase) - 0.5) * 6 - 2.0)
    film.extra += film.edge(0.085 - np.abs(x), 2.4) * (0.07 - 0.045 * disc) * (1 - 0.6 * smooth((y + 0.2) * 1.6))
    for side in (-1, 1):
        height, rise = dice.between(-0.56, -0.50), dice.between(0.05, 0.12)
        clavicle = [(middle + side * 0.09, height + 0.04), (side * 0.26, height + 0.01), (side * 0.48, height - rise),
                    (side * 0.78, height - rise - 0.03)]
        film.add(film.curve(clavicle, (0.038, 0.028), 2), 0.11)
        film.add(film.disc(side * 0.80, -0.40, 0.10, 0.26, side * 0.25, 4), 0.05)  # shoulder blade


def _bend(ax):
    """The height of a posterior rib above its origin at the spine, at distance `ax` from the midline."""
    return 0.20 * ax - 0.58 * ax * ax


def _ribs(film, chest, fracture):
    """Posterior ribs with bright edges, and the fainter anterior ribs that cross them."""
    body, y, ax, pitch = chest.body, film.y, chest.ax, chest.body.spacing
    uneven = np.where(chest.left, np.float32(film.dice.between(-0.02, 0.02)), np.float32(0))
    phase = (y + _bend(ax) + uneven) * (1 / pitch) + (1.5 - body.rib0)
    sites, side = [], 0
    if fracture:
        side = sides_of(fracture)[0]
        spot = film.luck.between(0.50, 0.57), ZONES[zone_of(fracture)] + film.luck.between(-0.04, 0.04)
        sites = fracture_sites(film, fracture, body, *spot, pitch, _bend)
        phase = step_ribs(phase, sites, lambda at: chest.half(side) & (ax > at))
    offset = np.abs(phase - np.floor(phase + 0.5)) * pitch
    bone = film.edge(0.034 - offset, 1.6) * 0.8 + film.edge(0.012 - np.abs(offset - 0.028), 1.6) * 0.35
    bone = bone * smooth((0.72 - y) * 5) * smooth((y + 0.84) * 8)
    phase = (y - 0.55 * (body.width - ax) + 0.25 * ax) * (1 / (pitch * 1.35)) + body.rib0
    offset = np.abs(phase - np.floor(phase + 0.5)) * (pitch * 1.35)
    bone += film.edge(0.036 - offset, 2) * smooth((ax - 0.24) * 5) * smooth((0.5 - y) * 4) * 0.5
    veil = 1 - 0.45 * film.water  # bone is fainter where much tissue lies over it
    film.extra += bone * film.edge(chest.wall + 0.035, 2.5) * film.edge(ax - 0.07, 3) * veil * body.bone
    callus(film, [(side * x, y, number) for x, y, number in sites], side)


def _device(film, chest, finding, middle, heart_x):
    luck, side = film.luck, sides_of(finding)[0]

    # Tubes and lines: thin bright curves with the tip at its usual place
    if finding.kind == "tube":
        path = [(middle - 0.01, -0.98), (middle, -0.7), (middle + 0.005, luck.between(-0.42, -0.38))]
        film.add(film.curve(path, 0.016), 0.34)
    elif finding.kind == "feeding tube":
        path = [(middle + 0.02, -0.98), (middle + 0.03, -0.2), (middle + 0.06, 0.3), (0.16, chest.domes[1]),
                (0.30, chest.domes[1] + luck.between(0.16, 0.2))]
        film.add(film.curve(path, 0.012), 0.36)
    elif finding.kind == "catheter":
        height = luck.between(-0.62, -0.56)
        path = [(side * 0.72, height + 0.02), (side * 0.42, height - 0.03), (side * 0.16, height + 0.09),
                (middle - 0.075, height + 0.24), (middle - 0.085, luck.between(-0.07, 0.03))]
        film.add(film.curve(path, 0.013), 0.36)

    # A box below the clavicle, with a lead to the heart
    elif finding.kind == "pacemaker":
        x, y = side * luck.between(0.54, 0.60), luck.between(-0.44, -0.39)
        film.add(film.disc(x, y, 0.115, 0.085, 0.1), 0.36)
        film.add(film.disc(x - side * 0.02, y + 0.03, 0.05, 0.03), 0.08)
        path = [(x, y - 0.07), (side * 0.30, -0.57), (middle - 0.07, -0.42), (middle - 0.10, 0.05),
                (heart_x * 0.4, 0.36), (heart_x + 0.16, 0.40)]
        film.add(film.curve(path, 0.011), 0.34)

    # Traces of an operation: wires in the sternum, a drain beside the lung
    elif finding.kind == "wires":
        for number in range(5):
            y = -0.40 + 0.145 * number + luck.between(-0.015, 0.015)
            ring = [(middle - 0.045, y), (middle, y - 0.022), (middle + 0.045, y), (middle, y + 0.024),
                    (middle - 0.045, y)]
            film.add(film.line(ring, 0.009), 0.32)
    elif finding.kind == "drain":
        y = luck.between(0.22, 0.30)
        path = [(side * 0.64, y - 0.04), (side * 0.55, -0.2), (side * 0.40, -0.52)]
        film.add(film.curve([(side * 0.86, y + 0.04), *path], 0.020), 0.30)
        film.add(film.curve(path, 0.005), 0.14)  # the drain's radiopaque stripe
