"""Draws the phantom's lateral view: the front of the body is on the picture's left, and both sides overlap."""

import numpy as np

from data.phantom.film import WATER, join, of_severity, smooth, zone_of
from data.phantom.findings import IN_LUNG, callus, edema, effusion, fracture_sites, plaques, pleural_line, step_ribs

SPOTS = {"upper": (0.04, -0.40), "mid": (0.12, -0.06), "lower": (0.26, 0.26)}


def draw_lateral(film, body, findings):
    """Draws lungs and findings in them, then heart and vessels, then bones and devices → (size, size) uint8."""
    found = {finding.finding: finding for finding in findings}
    chest = Chest(film, body, found.get("Atelectasis"))
    film.water += 0.13 + film.clouds(14, film.dice) * 0.03 + film.clouds(30, film.dice) * 0.025
    _vessels(film, of_severity(found["Edema"], 1.25, 1.5, 1.7) if "Edema" in found else 1.0)
    for finding in findings:
        if finding.finding in IN_LUNG:
            IN_LUNG[finding.finding](film, chest, finding)
    if "Edema" in found:
        edema(film, chest, found["Edema"], wings=[(0.12, -0.02, 0.42, 0.46)], septa=[(-0.42, -0.30, 1)])
    if "Pleural Effusion" in found:
        _effusion(film, chest, found["Pleural Effusion"])

    shadow = _mediastinum(film, body, found)
    film.water[...] = 1 - chest.lung * (1 - film.water) * (1 - shadow)
    level = WATER + 0.05 * body.fat + 0.08 * shadow + 0.12 * film.edge(-chest.floor, 3)
    level = level + film.clouds(5, film.dice) * 0.02 - 0.14 * smooth((0.02 - chest.wall) * 2.6)
    shoulder = smooth((-0.42 - film.y) * 2.5) * smooth((film.x + 0.1) * 2)
    film.water += shoulder * 0.40 * (1 - film.water)

    _airways(film, body)
    _bones(film, chest, found.get("Fracture"))
    if "Pleural Other" in found:
        plaques(film, chest, found["Pleural Other"])
    if "Pneumothorax" in found:
        pleural_line(film, chest, found["Pneumothorax"], chest.lung)
    for finding in findings:
        if finding.finding == "Support Devices":
            _device(film, finding)
    slope = np.where(film.y < -0.1, np.float32(0.25), np.float32(0.06))
    outline = np.minimum(film.x + 0.70 + 0.06 * body.fat + slope * (film.y + 0.1), 0.90 + 0.05 * body.fat - film.x)
    return film.develop(level, film.edge(outline, 3) * np.float32(0.98))


class Chest:
    """Distances from the sternum (`front`), the back (`back`) and all walls (`wall`), positive inside, and from the
    diaphragm (`floor`, positive above); the mask of the lungs (`lung`); see data/phantom/findings.py.
    """

    over = 0.88  # the lung of the other side remains visible

    def __init__(self, film, body, atelectasis):
        x, y = film.x, film.y
        self.body = body
        depth = (body.width - 0.75) * 0.8
        self.front = x - (-0.44 - depth) + 0.30 * (y - 0.1) + 0.35 * smooth((-0.45 - y) * 2) * (-0.45 - y)
        self.back = 0.63 + depth - 0.42 * (y - 0.10) * (y - 0.10) - x
        top = y + 0.76 + 0.5 * (x - 0.05) * (x - 0.05)
        self.wall = -join(join(-self.front, -self.back, 0.12), -top, 0.16)
        raised = of_severity(atelectasis, 0.03, 0.08, 0.14) if atelectasis and zone_of(atelectasis) == "lower" else 0.0
        bulge = x + 0.16
        dome = body.dome - 0.06 + bulge * bulge * np.where(bulge > 0, np.float32(0.50), np.float32(0.9)) - y
        one, other = dome - raised, dome + film.dice.between(0.03, 0.07)
        self.floor = np.minimum(one, other)
        self.lung = film.edge(self.wall, 2) * film.edge(np.maximum(one, other), 2)
        self.lung = self.lung * (1 - 0.45 * film.edge(-self.floor, 2))  # between the domes only one side has lung

    def sides(self, finding):
        return (1,)

    def half(self, side):
        return np.float32(1)

    def rind(self, finding):
        return self.wall if zone_of(finding) == "upper" else self.back

    def spot(self, luck, side, finding, loose=1.0):
        x, y = SPOTS[zone_of(finding)]
        return x + loose * luck.between(-0.07, 0.07), y + loose * luck.between(-0.06, 0.05)


def _vessels(film, swell):
    dice = film.dice
    hx, hy = 0.10, dice.between(-0.12, -0.06)
    film.fill(film.cloud(hx, hy, 0.10, 0.13), 0.5)
    for dx, dy in ((-0.18, -0.36), (0.02, -0.46), (0.20, -0.36), (0.32, -0.12), (0.34, 0.14), (0.24, 0.36),
                   (0.06, 0.40), (-0.24, -0.18)):
        dx, dy = dx + dice.between(-0.08, 0.08), dy + dice.between(-0.08, 0.08)
        bend = dice.between(-0.12, 0.12)
        thick = (0.014 if dy > 0 else 0.011 * swell) * dice.between(0.8, 1.2)
        fork = (hx + dx * 0.5 + bend * dy, hy + dy * 0.5 - bend * dx)
        film.fill(film.line([(hx, hy), fork, (hx + dx, hy + dy)], (thick, 0.004), 1.6), 0.32)


def _effusion(film, chest, finding):
    """Fluid in the posterior costophrenic angle, rising along the back."""
    high = chest.body.dome + of_severity(finding, 0.02, -0.16, -0.42) + film.luck.between(-0.02, 0.02)
    low = chest.body.dome + of_severity(finding, 0.20, 0.06, -0.08)
    effusion(film, chest, finding, 1, high, low, smooth((film.x + 0.25) * 1.2))


def _mediastinum(film, body, found):
    """The shadow of the heart, on the diaphragm behind the sternum, and of the great vessels above it."""
    dice, luck = film.dice, film.luck
    size, wide = (body.ratio - 0.43) * 0.6, dice.between(-0.02, 0.03)
    if "Cardiomegaly" in found:
        size = of_severity(found["Cardiomegaly"], 0.075, 0.125, 0.18) + luck.between(-0.01, 0.015)
    if "Enlarged Cardiomediastinum" in found:
        wide = of_severity(found["Enlarged Cardiomediastinum"], 0.10, 0.16, 0.23) + luck.between(-0.01, 0.015)
    shadow = np.zeros_like(film.water)
    heart_x, heart_y = -0.25 + size * 0.7 + dice.between(-0.035, 0.045), body.dome - 0.23 - size * 0.6
    where, heart = film.disc(heart_x, heart_y, 0.25 + size, 0.26 + size * 0.75, -dice.between(0.1, 0.3), 3)
    shadow[where] = heart * 0.85
    vessels_x = -0.06 - wide * 0.2 + dice.between(-0.04, 0.04)
    where, vessels = film.disc(vessels_x, -0.26, 0.12 + wide, 0.30 + wide * 0.4, -0.15, 6)
    shadow[where] = np.maximum(shadow[where], vessels * (0.42 + 1.7 * max(wide, 0.0)))
    return shadow


def _airways(film, body):
    film.add(film.line([(0.02, -0.98), (0.08, -0.55), (0.12, -0.20)], 0.042, 2.4), -0.13)
    if body.bubble:
        x, y = film.dice.between(-0.02, 0.1), body.dome + film.dice.between(0.14, 0.18)
        film.add(film.disc(x, y, 0.10, 0.055, 0, 2), -0.20)


def _bend(x):
    """The height of a rib at x above its height at x = 0.1; ribs descend toward the front."""
    return 0.50 * (x - 0.1) + 0.25 * (x - 0.1) * (x - 0.1)


def _bones(film, chest, fracture):
    """Vertebrae along the back, the sternum, and ribs that fade toward the front."""
    body, x, y, pitch = chest.body, film.x, film.y, chest.body.spacing * 1.1
    phase = (y + 1.2) * (1 / 0.15)
    disc = smooth(np.abs(phase - np.floor(phase) - 0.5) * 6 - 1.9)
    column = film.edge(0.095 - np.abs(chest.back + 0.02), 2.4)
    film.extra += column * (0.14 - 0.07 * disc) * (1 - 0.55 * smooth((y + 0.3) * 1.1))
    sternum = film.edge(0.030 - np.abs(chest.front + 0.035), 2)
    film.extra += sternum * smooth((y + 0.62) * 5) * smooth((0.35 - y) * 5) * 0.12
    phase = (y + _bend(x)) * (1 / pitch) + (1.5 - body.rib0)
    sites = []
    if fracture:
        spot = 0.30 + film.luck.between(-0.03, 0.03), SPOTS[zone_of(fracture)][1] + film.luck.between(-0.04, 0.04)
        sites = fracture_sites(film, fracture, body, *spot, pitch, _bend)
        phase = step_ribs(phase, sites, lambda at: x > at)
    offset = np.abs(phase - np.floor(phase + 0.5)) * pitch
    bone = film.edge(0.030 - offset, 1.6) * smooth((x + 0.30) * 2.5) * smooth((0.68 - y) * 5) * smooth((y + 0.72) * 8)
    film.extra += bone * film.edge(chest.wall + 0.03, 2.5) * (body.bone * 0.75)
    callus(film, sites, 1)


def _device(film, finding):
    luck = film.luck
    if finding.kind == "tube":
        film.add(film.curve([(0.02, -0.98), (0.08, -0.55), (0.10, -0.40)], 0.016), 0.34)
    elif finding.kind == "feeding tube":
        film.add(film.curve([(0.10, -0.98), (0.20, -0.4), (0.26, 0.2), (0.16, 0.52), (0.02, 0.62)], 0.012), 0.36)
    elif finding.kind == "catheter":
        film.add(film.curve([(-0.20, -0.74), (-0.14, -0.55), (-0.04, -0.38), (-0.04, -0.04)], 0.013), 0.36)
    elif finding.kind == "pacemaker":
        x, y = -0.42 + luck.between(-0.03, 0.03), -0.46
        film.add(film.disc(x, y, 0.05, 0.10, -0.35), 0.36)
        film.add(film.curve([(x, y), (-0.10, -0.58), (-0.02, -0.35), (-0.06, 0.1), (-0.30, 0.36)], 0.011), 0.34)
    elif finding.kind == "wires":
        for number in range(5):
            y = -0.40 + 0.145 * number
            x = -0.46 - 0.30 * (y - 0.1)
            film.add(film.line([(x - 0.02, y - 0.03), (x + 0.01, y + 0.03)], 0.014), 0.36)
    elif finding.kind == "drain":
        y = luck.between(0.14, 0.24)
        path = [(0.36, y - 0.06), (0.16, -0.22), (0.04, -0.50)]
        film.add(film.curve([(0.58, y), *path], 0.020), 0.30)
        film.add(film.curve(path, 0.005), 0.14)
