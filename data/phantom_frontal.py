"""The phantom's frontal view, and its findings, each as its radiographic sign; the patient's right is on the left."""

import numpy as np

from data.phantom_film import WATER, clip, of_severity, sides_of, smooth, zone_of

ZONES = {"upper": -0.40, "mid": -0.06, "lower": 0.25}


def draw_frontal(film, body, findings):
    """The back-to-front film: lungs, then what lies in them, then mediastinum, bones and devices over both."""
    dice, x, y = film.dice, film.x, film.y
    found = {finding.finding: finding for finding in findings}
    left = x > 0
    ax = np.abs(x)
    heart = body.ratio
    if "Cardiomegaly" in found:
        heart = of_severity(found["Cardiomegaly"], 0.54, 0.61, 0.69) + dice.between(-0.012, 0.02)
    high = {side: 0.0 for side in (-1, 1)}
    if "Atelectasis" in found and "lower" in found["Atelectasis"].location:
        for side in sides_of(found["Atelectasis"]):
            high[side] = of_severity(found["Atelectasis"], 0.03, 0.08, 0.14)
    domes = {-1: body.dome - high[-1], 1: body.dome + dice.between(0.02, 0.07) - high[1]}

    # The chest: distances to its wall and to the diaphragm shape all that follows.
    ey = np.minimum(y - 0.22, 0) * (1 / body.top)
    ex = ax * (1 / body.width)
    wall = (1 - np.sqrt(ex * ex + ey * ey)) * body.width
    bulge = ax - 0.36
    floor = np.where(left, np.float32(domes[1]), np.float32(domes[-1])) - y
    floor = floor + np.where(bulge > 0, bulge * bulge * 1.35, bulge * bulge * 0.5)
    lung = film.edge(wall, 2) * film.edge(floor, 2)
    chest = Chest(wall, floor, left, domes, body)

    texture = film.clouds(14) * 0.03 + film.clouds(30) * 0.025
    film.water += 0.09 + texture + 0.06 * clip((y + 0.6) * 0.7)
    edema = of_severity(found["Edema"], 1.25, 1.5, 1.7) if "Edema" in found else 1.0
    for side in (-1, 1):
        _vessels(film, side, edema)
    if body.breasts:
        for side in (-1, 1):
            where, breast = film.disc(side * dice.between(0.40, 0.47), dice.between(0.18, 0.28), 0.34, 0.34, 0, 3)
            film.fill((where, breast), dice.between(0.05, 0.11))
    for finding in findings:
        if finding.finding in _IN_LUNG:
            _IN_LUNG[finding.finding](film, chest, finding)

    # Mediastinum and heart.
    middle = dice.between(-0.02, 0.02)
    wide = body.mediastinum
    if "Enlarged Cardiomediastinum" in found:
        wide = of_severity(found["Enlarged Cardiomediastinum"], 0.215, 0.275, 0.345) + dice.between(-0.01, 0.015)
    down = smooth((y + 0.78) * 2.2)
    neck = 0.10 + (wide - 0.10) * down
    shadow = film.edge(neck - np.abs(x - middle), 2.2)
    width = heart * 2 * body.width
    reach_left = width * dice.between(0.66, 0.72)
    cx, half = reach_left - width / 2, width / 2
    tall = 0.27 + 0.16 * (heart - 0.44)
    cy = 0.26 - 0.10 * (heart - 0.44)
    slant = dice.between(0.12, 0.30)
    where, muscle = film.disc(cx + middle * 0.5, cy, half * 0.985, tall, slant, 2.4)
    shadow[where] = np.maximum(shadow[where], muscle)
    where, knob = film.disc(middle + max(wide, 0.12) * 0.82, -0.30, body.knob, body.knob * 1.25, 0, 2)
    shadow[where] = np.maximum(shadow[where], knob)
    below = film.edge(-floor, 2) * film.edge(wall + 0.16, 4)
    film.water[...] = 1 - lung * (1 - film.water) * (1 - shadow)

    # Soft tissue, how much of it the rays cross.
    level = WATER - 0.05 + 0.05 * body.fat + 0.12 * shadow + 0.10 * below + film.clouds(5) * 0.02
    level = level - 0.16 * smooth((0.02 - wall) * 3.2)
    _neck_and_spine(film, middle)
    trachea = film.line([(middle, -0.98), (middle + 0.005, -0.6), (middle + 0.015, -0.30)], 0.04, 2.4)
    film.add(trachea, -0.13)
    for side in (-1, 1):
        film.add(film.line([(middle + 0.015, -0.30), (middle + side * 0.14, -0.16)], 0.026, 2.4), -0.08)
    if body.bubble:
        film.add(film.disc(dice.between(0.28, 0.38), domes[1] + dice.between(0.12, 0.15), dice.between(0.08, 0.12),
                           dice.between(0.045, 0.07), 0, 2), -0.22)
    _ribs(film, chest, found.get("Fracture"))
    _clavicles(film, middle)
    _plaques(film, chest, found.get("Pleural Other"))
    _pleural_line(film, chest, found.get("Pneumothorax"), lung)
    for finding in findings:
        if finding.finding == "Support Devices":
            _device(film, finding, chest, middle, cx)

    outline = 0.93 + 0.05 * body.fat - 0.70 * smooth((-0.66 - y) * 3.6)
    return film.develop(level, film.edge(outline - ax, 3) * np.float32(0.98))


class Chest:
    """The frontal chest that findings are placed in: distance inside its wall, height above the diaphragm, the domes."""

    def __init__(self, wall, floor, left, domes, body):
        self.wall, self.floor, self.left, self.domes, self.body = wall, floor, left, domes, body

    def side(self, side):
        return self.left if side > 0 else ~self.left

    def spot(self, dice, side, zone, loose=1.0):
        """A point in the zone of that side, clear of the heart and of the wall."""
        ax = {"upper": 0.36, "mid": 0.44, "lower": 0.47 if side < 0 else 0.53}[zone]
        return (side * (ax + loose * dice.between(-0.05, 0.05)), ZONES[zone] + loose * dice.between(-0.07, 0.05))


def _vessels(film, side, swell):
    """Hilum and a tree of vessels: thick and straight near the root, thinner outward, thicker below than above."""
    dice = film.dice
    hx, hy = side * dice.between(0.15, 0.19), dice.between(-0.11, -0.04) - (0.03 if side > 0 else 0)
    film.fill(film.cloud(hx, hy, 0.085, 0.13), 0.6)
    directions = [(0.10, -0.50), (0.24, -0.42), (0.38, -0.26), (0.46, -0.06), (0.46, 0.16), (0.36, 0.32), (0.22, 0.42),
                  (0.10, 0.44)]
    for dx, dy in directions:
        dx, dy = side * (dx + dice.between(-0.06, 0.06)), dy + dice.between(-0.06, 0.06)
        bend = dice.between(-0.05, 0.05)
        thick = (0.015 if dy > 0 else 0.012 * swell) * dice.between(0.8, 1.2)
        fork = (hx + dx * 0.5 + bend * dy, hy + dy * 0.5 - bend * dx)
        film.fill(film.line([(hx, hy), fork, (hx + dx, hy + dy)], (thick, 0.004), 1.6), 0.42)
        tip = (fork[0] + dx * 0.42 + dy * dice.between(0.15, 0.3), fork[1] + dy * 0.42 - dx * dice.between(0.15, 0.3))
        film.fill(film.line([fork, tip], (thick * 0.6, 0.003), 1.6), 0.32)


def _neck_and_spine(film, middle):
    x, y = film.x - middle, film.y
    phase = (y + 1.2) * (1 / 0.135)
    phase = phase - np.floor(phase)
    disc = smooth(np.abs(phase - 0.5) * 6 - 2.0)
    column = film.edge(0.085 - np.abs(x), 2.4)
    film.extra += column * (0.075 - 0.05 * disc) * (1 - 0.3 * smooth(y * 2))


def _clavicles(film, middle):
    for side in (-1, 1):
        dice = film.dice
        y0, rise = dice.between(-0.56, -0.50), dice.between(0.06, 0.13)
        points = [(middle + side * 0.09, y0 + 0.03), (side * 0.28, y0 - rise * 0.25), (side * 0.50, y0 - rise * 0.8),
                  (side * 0.78, y0 - rise)]
        film.add(film.line(points, (0.036, 0.030), 2), 0.11)
        film.add(film.disc(side * 0.80, -0.40, 0.10, 0.26, side * 0.25, 4), 0.05)


def _ribs(film, chest, fracture):
    """Posterior and anterior ribs; a fracture steps some of them down from a point on outward, and leaves callus."""
    body, x, y, dice = chest.body, film.x, film.y, film.dice
    ax = np.abs(x)
    inside = film.edge(chest.wall + 0.035, 2.5) * film.edge(ax - 0.07, 3)
    pitch = body.spacing
    back = y + 0.20 * ax - 0.58 * ax * ax + np.where(chest.left, np.float32(dice.between(-0.02, 0.02)), np.float32(0))
    breaks = []
    if fracture:
        side = sides_of(fracture)[0]
        across = dice.between(0.50, 0.58)
        count = of_severity(fracture, 1, 2, 3)
        target = ZONES[zone_of(fracture)] + dice.between(-0.04, 0.04)
        lift = 0.20 * across - 0.58 * across * across
        first = round((target + lift) / pitch + 1.5 - body.rib0 - (count - 1) / 2)
        for rib in range(count):
            at = across + dice.between(-0.03, 0.03) + 0.02 * rib
            centre = (first + rib - 1.5 + body.rib0) * pitch
            breaks.append((side * at, centre - (0.20 * at - 0.58 * at * at), first + rib))
    phase = back * (1 / pitch) + (1.5 - body.rib0)
    if breaks:
        rank = np.floor(phase + 0.5)
        for bx, _, number in breaks:
            outer = chest.side(1 if bx > 0 else -1) & (ax > abs(bx)) & (rank == number)
            phase = np.where(outer, phase - np.float32(0.33), phase)
    offset = np.abs(phase - np.floor(phase + 0.5)) * pitch
    bone = film.edge(0.034 - offset, 1.6) * 0.8 + film.edge(0.012 - np.abs(offset - 0.028), 1.6) * 0.35
    above = smooth((0.72 - y) * 5) * smooth((y + 0.84) * 8)
    film.extra += bone * inside * above * body.bone
    front = y - 0.55 * (body.width - ax) + 0.25 * ax
    front = front * (1 / (pitch * 1.35)) + body.rib0
    offset = np.abs(front - np.floor(front + 0.5)) * (pitch * 1.35)
    film.extra += film.edge(0.036 - offset, 2) * inside * smooth((ax - 0.24) * 5) * smooth((0.5 - y) * 4) * (body.bone * 0.45)
    for bx, by, _ in breaks:
        side = 1 if bx > 0 else -1
        film.add(film.line([(bx, by - 0.045), (bx + side * 0.012, by + 0.055)], 0.011, 1.2), -0.20)
        film.add(film.cloud(bx - side * 0.035, by - 0.004, 0.038, 0.045), 0.26)
        film.add(film.cloud(bx + side * 0.045, by + 0.036, 0.038, 0.045), 0.26)


def _opacity(film, chest, finding):
    """A hazy patch without an edge that vessels shine through."""
    for side in sides_of(finding):
        cx, cy = chest.spot(film.dice, side, zone_of(finding))
        r = of_severity(finding, 0.22, 0.26, 0.31) * film.dice.between(0.95, 1.1)
        film.fill(film.cloud(cx, cy, r, r * film.dice.between(0.85, 1.1)), of_severity(finding, 0.44, 0.54, 0.66))


def _lesion(film, chest, finding):
    """A round shadow with a sharp edge."""
    dice = film.dice
    cx, cy = chest.spot(dice, sides_of(finding)[0], zone_of(finding), 1.2)
    r = of_severity(finding, 0.062, 0.095, 0.14) * dice.between(0.94, 1.08)
    film.fill(film.disc(cx, cy, r, r * dice.between(0.9, 1.1), dice.between(-0.1, 0.1), 1.6), 0.85)


def _edema(film, chest, finding):
    """Haze spreading from both hila like wings, mottled, with septal (Kerley B) lines at the lower walls."""
    dice = film.dice
    strength = of_severity(finding, 0.34, 0.50, 0.68)
    for side in (-1, 1):
        where, wing = film.cloud(side * 0.28, dice.between(-0.06, 0.02), 0.34, 0.42)
        film.fill((where, wing * (0.85 + 0.6 * film.clouds(24)[where])), strength)
        for number in range(of_severity(finding, 4, 6, 7)):
            edge = chest.body.width - dice.between(0.03, 0.05)
            height = 0.06 + 0.07 * number + dice.between(-0.015, 0.015)
            film.fill(film.line([(side * edge, height), (side * (edge - dice.between(0.10, 0.16)), height - 0.012)], 0.008), 0.6)


def _consolidation(film, chest, finding):
    """A dense lobe, straight where a fissure bounds it, with dark bronchi branching in from the hilum."""
    dice, zone = film.dice, zone_of(finding)
    for side in sides_of(finding):
        cx, cy = chest.spot(dice, side, zone, 0.6)
        r = of_severity(finding, 0.17, 0.225, 0.285) * dice.between(0.95, 1.06)
        where, q = film.ellipse(cx, cy, r * 1.15, r)
        mask = film.edge((1 - q) * r, 3.5)
        cut = {"upper": 1, "mid": -1, "lower": -1}[zone]
        line = cy + cut * r * 0.55 + side * dice.between(-0.05, 0.15) * (film.x[where] - cx)
        mask = mask * film.edge(cut * (line - film.y[where]), 1.6) * (0.93 + 0.12 * film.clouds(24)[where])
        root = (cx - side * r * 0.75, cy - 0.02)
        bronchi = np.zeros_like(mask)
        for turn in (-0.55, -0.08, 0.40):
            turn += dice.between(-0.1, 0.1)
            points = [root, (cx - side * r * 0.1, cy + turn * r * 0.55), (cx + side * r * 0.6, cy + turn * r)]
            area, tube = film.line(points, (0.021, 0.012), 1.6)
            whole = np.zeros_like(film.water)
            whole[area] = tube
            bronchi = np.maximum(bronchi, whole[where])
        film.fill((where, mask * (1 - 0.75 * bronchi)), 0.92)


def _pneumonia(film, chest, finding):
    """A cluster of patches that run together here and there."""
    dice = film.dice
    for side in sides_of(finding):
        cx, cy = chest.spot(dice, side, zone_of(finding), 0.8)
        spread = of_severity(finding, 0.14, 0.18, 0.22)
        places = [(0, 0), (-1, -0.3), (0.9, -0.5), (0.3, 0.95), (-0.7, 0.75), (-0.25, -1.0), (1.0, 0.45), (0.45, -1.2), (-1.1, 1.3)]
        for dx, dy in places[:of_severity(finding, 6, 7, 9)]:
            r = dice.between(0.052, 0.075)
            px, py = cx + spread * (dx + dice.between(-0.2, 0.2)), cy + spread * (dy + dice.between(-0.2, 0.2))
            film.fill(film.cloud(px, py, r, r * dice.between(0.8, 1.2), dice.between(-0.4, 0.4)), dice.between(0.72, 0.9))


def _atelectasis(film, chest, finding):
    """Flat bands of airless lung, nearly level; in the lower zones the diaphragm comes up (drawn with the chest)."""
    dice = film.dice
    for side in sides_of(finding):
        cx, cy = chest.spot(dice, side, zone_of(finding), 0.6)
        tilt = dice.between(-0.10, 0.22)
        for number in range(of_severity(finding, 1, 2, 3)):
            y0 = cy + 0.095 * (number - 0.5) + dice.between(-0.01, 0.01)
            half, thick = dice.between(0.19, 0.25), dice.between(0.019, 0.026)
            film.fill(film.line([(cx - side * half, y0 - tilt * half), (cx, y0 - 0.01), (cx + side * half * 0.85, y0 + tilt * half)],
                                (thick, thick * 0.8), 1.6), 0.85)


def _gap(film, chest, finding):
    """How far the lung has come off the wall, at every pixel: most at the apex, little at the base."""
    depth = of_severity(finding, 0.15, 0.23, 0.34)
    return depth * (1 - of_severity(finding, 1.0, 0.75, 0.45) * smooth((film.y + 0.62) * 1.1))


def _pneumothorax(film, chest, finding):
    """Air without vessels between the lung and the wall; the lung beneath denser the more it has collapsed."""
    side = chest.side(sides_of(finding)[0])
    gap = _gap(film, chest, finding)
    free = film.edge(gap - chest.wall, 1.2) * side
    film.water *= 1 - free
    film.fill(((slice(None), slice(None)), side * (1 - free)), of_severity(finding, 0.0, 0.08, 0.2))


def _pleural_line(film, chest, finding, lung):
    if finding:
        away = np.abs(chest.wall - _gap(film, chest, finding))
        side = chest.side(sides_of(finding)[0])
        deep = smooth((_gap(film, chest, finding) - 0.03) * 30)
        film.extra += film.edge(0.011 - away, 1.2) * side * lung * deep * 0.24
        film.extra -= film.edge(_gap(film, chest, finding) - chest.wall, 1.2) * side * lung * 0.05


def _effusion(film, chest, finding):
    """Fluid that fills the angle and climbs the wall: level in the middle, a meniscus at the side."""
    ax = np.abs(film.x)
    for side in sides_of(finding):
        dome = chest.domes[side]
        lateral = dome + of_severity(finding, 0.00, -0.20, -0.50) + film.dice.between(-0.02, 0.02)
        medial = dome + of_severity(finding, 0.13, 0.05, -0.16)
        s = clip((ax - 0.12) * (1 / (chest.body.width - 0.12)))
        surface = medial + (lateral - medial) * s * s
        film.fill(((slice(None), slice(None)), film.edge(film.y - surface, 4) * chest.side(side)), 0.94)


def _plaques(film, chest, finding):
    """Pleural thickening: a white rind inside the chest wall, with calcified plaques in it."""
    if not finding:
        return
    dice = film.dice
    thick = of_severity(finding, 0.055, 0.075, 0.10)
    top, bottom = (-0.80, -0.30) if "upper" in finding.location else (-0.35, 0.38)
    for side in sides_of(finding):
        wave = thick * (1 + 0.35 * film.clouds(16))
        span = smooth((film.y - top) * 8) * smooth((bottom - film.y) * 8)
        rind = film.edge(wave * span - chest.wall, 1.4) * film.edge(chest.wall + 0.01, 1.4) * chest.side(side)
        film.water += rind * 0.9 * (1 - film.water)
        lime = film.edge(wave * span * 0.75 - chest.wall, 1.4) * film.edge(chest.wall - 0.006, 1.2) * chest.side(side)
        film.extra += lime * smooth(film.clouds(22) * 2.2 + 0.75) * 0.26


_IN_LUNG = {
    "Edema": _edema, "Lung Opacity": _opacity, "Lung Lesion": _lesion, "Consolidation": _consolidation,
    "Pneumonia": _pneumonia, "Atelectasis": _atelectasis, "Pleural Effusion": _effusion, "Pneumothorax": _pneumothorax,
}


def _device(film, finding, chest, middle, heart_x):
    dice, side = film.dice, sides_of(finding)[0]
    if finding.kind == "tube":
        tip = dice.between(-0.42, -0.38)
        film.add(film.line([(middle - 0.01, -0.98), (middle, -0.7), (middle + 0.005, tip)], 0.016), 0.34)
    elif finding.kind == "feeding tube":
        end = chest.domes[1] + dice.between(0.16, 0.2)
        film.add(film.line([(middle + 0.02, -0.98), (middle + 0.03, -0.2), (middle + 0.06, 0.3), (0.16, chest.domes[1]),
                            (0.30, end)], 0.012), 0.36)
    elif finding.kind == "catheter":
        y0 = dice.between(-0.62, -0.56)
        film.add(film.line([(side * 0.72, y0 + 0.02), (side * 0.42, y0 - 0.03), (side * 0.16, y0 + 0.09), (middle - 0.075, y0 + 0.24),
                            (middle - 0.085, -0.02 + dice.between(-0.05, 0.05))], 0.013), 0.36)
    elif finding.kind == "pacemaker":
        px, py = side * dice.between(0.54, 0.60), dice.between(-0.44, -0.39)
        film.add(film.disc(px, py, 0.115, 0.085, 0.1, 1.4), 0.42)
        film.add(film.disc(px - side * 0.02, py + 0.03, 0.05, 0.03, 0, 1.4), 0.08)
        film.add(film.line([(px, py - 0.07), (side * 0.30, -0.57), (middle - 0.07, -0.42), (middle - 0.10, 0.05),
                            (heart_x * 0.4, 0.36), (heart_x + 0.16, 0.40)], 0.011), 0.34)
    elif finding.kind == "wires":
        for number in range(5):
            y0 = -0.40 + 0.145 * number + dice.between(-0.015, 0.015)
            ring = [(middle - 0.045, y0), (middle, y0 - 0.022), (middle + 0.045, y0), (middle, y0 + 0.024), (middle - 0.045, y0)]
            film.add(film.line(ring, 0.009), 0.32)
    elif finding.kind == "drain":
        y0 = dice.between(0.22, 0.30)
        film.add(film.line([(side * 0.86, y0 + 0.04), (side * 0.64, y0 - 0.04), (side * 0.55, -0.2), (side * 0.40, -0.52)], 0.020), 0.30)
        film.add(film.line([(side * 0.64, y0 - 0.04), (side * 0.55, -0.2), (side * 0.40, -0.52)], 0.005), 0.14)
