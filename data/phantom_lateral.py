"""The phantom's lateral view: the front of the body on the left, both sides over each other."""

import numpy as np

from data.phantom_film import WATER, of_severity, smooth, zone_of, sides_of

SPOTS = {"upper": (0.04, -0.40), "mid": (0.12, -0.06), "lower": (0.26, 0.26)}


def draw_lateral(film, body, findings):
    """The side-on film, in the same order as the frontal one: lungs, their findings, heart, bones, devices."""
    dice, x, y = film.dice, film.x, film.y
    found = {finding.finding: finding for finding in findings}
    depth = (body.width - 0.75) * 0.8

    # The chest: a sloping breastbone in front, the back's curve behind, the two domes below.
    front = x - (-0.44 - depth) + 0.30 * (y - 0.1) + 0.35 * smooth((-0.45 - y) * 2) * (-0.45 - y)
    bow = y - 0.10
    back = 0.63 + depth - 0.42 * bow * bow - x
    top = y + 0.76 + 0.5 * (x - 0.05) * (x - 0.05)
    wall = np.minimum(np.minimum(front, back), top)
    up = 0.0
    if "Atelectasis" in found and "lower" in found["Atelectasis"].location:
        up = of_severity(found["Atelectasis"], 0.03, 0.08, 0.14)
    floors = []
    for lift in (up, -dice.between(0.03, 0.07)):
        bulge = x + 0.16
        floors.append(body.dome - 0.06 - lift + np.where(bulge > 0, bulge * bulge * 0.50, bulge * bulge * 0.9) - y)
    floor = np.minimum(*floors)
    lung = film.edge(wall, 2) * film.edge(np.maximum(*floors), 2) * (1 - 0.45 * film.edge(-floor, 2))
    chest = wall, front, back, floor

    film.water += 0.13 + film.clouds(14) * 0.03 + film.clouds(30) * 0.025
    _hilum(film, 1.5 if "Edema" in found else 1.0)
    for finding in findings:
        if finding.finding in _IN_LUNG:
            _IN_LUNG[finding.finding](film, body, chest, finding)

    # The heart lies on the diaphragm behind the breastbone, the great vessels above it.
    size = 0.0
    if "Cardiomegaly" in found:
        size = of_severity(found["Cardiomegaly"], 0.075, 0.13, 0.19) + dice.between(-0.01, 0.015)
    size += (body.ratio - 0.44) * 0.5
    where, heart = film.disc(-0.24 + size * 0.75, 0.24 - size * 0.45, 0.23 + size, 0.25 + size * 0.75, -dice.between(0.1, 0.3), 3)
    shadow = np.zeros_like(film.water)
    shadow[where] = heart * 0.85
    wide = 0.0
    if "Enlarged Cardiomediastinum" in found:
        wide = of_severity(found["Enlarged Cardiomediastinum"], 0.10, 0.16, 0.23)
    where, vessels = film.disc(-0.06 - wide * 0.2, -0.26, 0.12 + wide, 0.30 + wide * 0.4, -0.15, 6)
    shadow[where] = np.maximum(shadow[where], vessels * (0.42 + 1.7 * wide))
    film.water[...] = 1 - lung * (1 - film.water) * (1 - shadow)

    below = film.edge(-floor, 3)
    shoulder = smooth((-0.42 - y) * 2.5) * smooth((x + 0.1) * 2)
    level = WATER + 0.05 * body.fat + 0.08 * shadow + 0.12 * below + film.clouds(5) * 0.02 - 0.14 * smooth((0.02 - wall) * 2.6)
    film.water += shoulder * 0.40 * (1 - film.water)
    film.add(film.line([(0.02, -0.98), (0.08, -0.55), (0.12, -0.20)], 0.042, 2.4), -0.13)
    if body.bubble:
        film.add(film.disc(dice.between(-0.02, 0.1), body.dome + dice.between(0.14, 0.18), 0.10, 0.055, 0, 2), -0.20)
    _bones(film, body, chest, found.get("Fracture"))
    _plaques(film, chest, found.get("Pleural Other"))
    _pleural_line(film, chest, found.get("Pneumothorax"), lung)
    for finding in findings:
        if finding.finding == "Support Devices":
            _device(film, finding, body, back)

    outline = np.minimum(x + 0.70 + 0.06 * body.fat + 0.25 * (y + 0.1) * _front_slope(y), 0.90 + 0.05 * body.fat - x)
    return film.develop(level, film.edge(outline, 3) * np.float32(0.98))


def _front_slope(y):
    return np.where(y < -0.1, np.float32(1), np.float32(0.25))


def _spot(film, finding, loose=1.0):
    cx, cy = SPOTS[zone_of(finding)]
    return cx + loose * film.dice.between(-0.07, 0.07), cy + loose * film.dice.between(-0.06, 0.05)


def _hilum(film, swell):
    dice = film.dice
    hx, hy = 0.10, dice.between(-0.12, -0.06)
    film.fill(film.cloud(hx, hy, 0.10, 0.13), 0.55)
    for dx, dy in [(-0.18, -0.36), (0.02, -0.46), (0.20, -0.36), (0.32, -0.12), (0.34, 0.14), (0.24, 0.36), (0.06, 0.40), (-0.24, -0.18)]:
        dx, dy = dx + dice.between(-0.06, 0.06), dy + dice.between(-0.06, 0.06)
        thick = (0.014 if dy > 0 else 0.011 * swell) * dice.between(0.8, 1.2)
        fork = (hx + dx * 0.5 + 0.06 * dy, hy + dy * 0.5 - 0.06 * dx)
        film.fill(film.line([(hx, hy), fork, (hx + dx, hy + dy)], (thick, 0.004), 1.6), 0.36)


def _bones(film, body, chest, fracture):
    """Vertebrae along the back, ribs running down and forward, the breastbone; a broken rib steps behind."""
    wall, front, back, _ = chest
    x, y, dice = film.x, film.y, film.dice
    phase = (y + 1.2) * (1 / 0.15)
    phase = phase - np.floor(phase)
    disc = smooth(np.abs(phase - 0.5) * 6 - 1.9)
    column = film.edge(0.095 - np.abs(back + 0.02), 2.4)
    film.extra += column * (0.14 - 0.07 * disc) * (1 - 0.55 * smooth((y + 0.3) * 1.1))
    film.extra += film.edge(0.030 - np.abs(front + 0.035), 2) * smooth((y + 0.62) * 5) * smooth((0.35 - y) * 5) * 0.12
    inside = film.edge(wall + 0.03, 2.5)
    pitch = body.spacing * 1.1
    slope = y + 0.50 * (x - 0.1) + 0.25 * (x - 0.1) * (x - 0.1)
    breaks = []
    if fracture:
        count = of_severity(fracture, 1, 2, 3)
        across = 0.30 + dice.between(-0.03, 0.03)
        tilt = 0.50 * (across - 0.1) + 0.25 * (across - 0.1) * (across - 0.1)
        target = SPOTS[zone_of(fracture)][1] + dice.between(-0.04, 0.04)
        first = round((target + tilt) / pitch + 1.5 - body.rib0 - (count - 1) / 2)
        breaks = [(across + 0.015 * rib, (first + rib - 1.5 + body.rib0) * pitch - tilt, first + rib) for rib in range(count)]
    phase = slope * (1 / pitch) + (1.5 - body.rib0)
    rank = np.floor(phase + 0.5)
    for bx, _, number in breaks:
        phase = np.where((x > bx) & (rank == number), phase - np.float32(0.33), phase)
    offset = np.abs(phase - np.floor(phase + 0.5)) * pitch
    bone = film.edge(0.030 - offset, 1.6) * smooth((x + 0.30) * 2.5) * smooth((0.68 - y) * 5) * smooth((y + 0.72) * 8)
    film.extra += bone * inside * (body.bone * 0.75)
    for bx, by, _ in breaks:
        film.add(film.line([(bx, by - 0.045), (bx + 0.012, by + 0.055)], 0.011, 1.2), -0.20)
        film.add(film.cloud(bx - 0.035, by + 0.01, 0.038, 0.045), 0.26)
        film.add(film.cloud(bx + 0.045, by + 0.03, 0.038, 0.045), 0.26)


def _opacity(film, body, chest, finding):
    cx, cy = _spot(film, finding)
    r = of_severity(finding, 0.21, 0.25, 0.29)
    film.fill(film.cloud(cx, cy, r, r), of_severity(finding, 0.42, 0.52, 0.62))


def _lesion(film, body, chest, finding):
    cx, cy = _spot(film, finding, 1.2)
    r = of_severity(finding, 0.062, 0.095, 0.14) * film.dice.between(0.94, 1.08)
    film.fill(film.disc(cx, cy, r, r * film.dice.between(0.9, 1.1), 0, 1.6), 0.85)


def _edema(film, body, chest, finding):
    dice, (_, front, back, _) = film.dice, chest
    where, wing = film.cloud(0.12, -0.02, 0.42, 0.46)
    film.fill((where, wing * (0.85 + 0.6 * film.clouds(24)[where])), of_severity(finding, 0.34, 0.48, 0.64))
    for number in range(of_severity(finding, 4, 6, 7)):
        edge, height = -0.40 + dice.between(-0.02, 0.02), -0.30 + 0.08 * number
        film.fill(film.line([(edge - 0.02, height), (edge + dice.between(0.10, 0.15), height + 0.01)], 0.008), 0.6)


def _consolidation(film, body, chest, finding):
    dice, zone = film.dice, zone_of(finding)
    cx, cy = _spot(film, finding, 0.6)
    r = of_severity(finding, 0.16, 0.21, 0.265)
    where, q = film.ellipse(cx, cy, r * 1.15, r)
    cut = 1 if zone == "upper" else -1
    line = cy + cut * r * 0.55 + 0.25 * (film.x[where] - cx)
    mask = film.edge((1 - q) * r, 3.5) * film.edge(cut * (line - film.y[where]), 1.6) * (0.93 + 0.12 * film.clouds(24)[where])
    bronchi = np.zeros_like(film.water)
    for turn in (-0.55, -0.08, 0.40):
        turn += dice.between(-0.1, 0.1)
        points = [(cx - r * 0.75, cy - 0.02), (cx - r * 0.1, cy + turn * r * 0.55), (cx + r * 0.6, cy + turn * r)]
        area, tube = film.line(points, (0.021, 0.012), 1.6)
        bronchi[area] = np.maximum(bronchi[area], tube)
    film.fill((where, mask * (1 - 0.75 * bronchi[where])), 0.9)


def _pneumonia(film, body, chest, finding):
    dice = film.dice
    cx, cy = _spot(film, finding, 0.8)
    spread = of_severity(finding, 0.13, 0.17, 0.21)
    places = [(0, 0), (-1, -0.3), (0.9, -0.5), (0.3, 0.95), (-0.7, 0.75), (-0.25, -1.0), (1.0, 0.45), (0.45, -1.2), (-1.1, 1.3)]
    for dx, dy in places[:of_severity(finding, 6, 7, 9)]:
        r = dice.between(0.052, 0.075)
        px, py = cx + spread * (dx + dice.between(-0.2, 0.2)), cy + spread * (dy + dice.between(-0.2, 0.2))
        film.fill(film.cloud(px, py, r, r * dice.between(0.8, 1.2), dice.between(-0.4, 0.4)), dice.between(0.72, 0.9))


def _atelectasis(film, body, chest, finding):
    dice = film.dice
    cx, cy = _spot(film, finding, 0.6)
    tilt = dice.between(0.0, 0.25)
    for number in range(of_severity(finding, 1, 2, 3)):
        y0 = cy + 0.095 * (number - 0.5) + dice.between(-0.01, 0.01)
        half, thick = dice.between(0.19, 0.25), dice.between(0.019, 0.026)
        film.fill(film.line([(cx - half, y0 - tilt * half), (cx, y0 - 0.01), (cx + half * 0.85, y0 + tilt * half)], (thick, thick * 0.8), 1.6), 0.85)


def _gap(film, chest, finding):
    depth = of_severity(finding, 0.13, 0.20, 0.30)
    return depth * (1 - of_severity(finding, 1.0, 0.75, 0.45) * smooth((film.y + 0.62) * 1.1))


def _inner(chest):
    _, front, back, floor = chest
    return front, back


def _pneumothorax(film, body, chest, finding):
    free = film.edge(_gap(film, chest, finding) - chest[0], 1.2)
    film.water *= 1 - 0.85 * free


def _pleural_line(film, chest, finding, lung):
    if finding:
        gap = _gap(film, chest, finding)
        film.extra += film.edge(0.011 - np.abs(chest[0] - gap), 1.2) * lung * smooth((gap - 0.03) * 30) * 0.24
        film.extra -= film.edge(gap - chest[0], 1.2) * lung * 0.05


def _effusion(film, body, chest, finding):
    """Fluid in the posterior angle, climbing the back."""
    lateral = body.dome + of_severity(finding, 0.02, -0.16, -0.42) + film.dice.between(-0.02, 0.02)
    medial = body.dome + of_severity(finding, 0.20, 0.06, -0.08)
    s = smooth((film.x + 0.25) * 1.2)
    strength = 0.94 if finding.location.startswith("bilateral") else 0.85
    film.fill(((slice(None), slice(None)), film.edge(film.y - medial - (lateral - medial) * s, 4)), strength)


def _plaques(film, chest, finding):
    if not finding:
        return
    wall, front, back, _ = chest
    thick = of_severity(finding, 0.055, 0.075, 0.10) * (1 + 0.35 * film.clouds(16))
    top, bottom = (-0.80, -0.34) if "upper" in finding.location else (-0.30, 0.40)
    edge = wall if "upper" in finding.location else back
    thick = thick * smooth((film.y - top) * 8) * smooth((bottom - film.y) * 8)
    rind = film.edge(thick - edge, 1.4) * film.edge(edge + 0.01, 1.4)
    film.water += rind * 0.9 * (1 - film.water)
    lime = film.edge(thick * 0.75 - edge, 1.4) * film.edge(edge - 0.006, 1.2)
    film.extra += lime * smooth(film.clouds(22) * 2.2 + 0.75) * 0.26


_IN_LUNG = {
    "Edema": _edema, "Lung Opacity": _opacity, "Lung Lesion": _lesion, "Consolidation": _consolidation,
    "Pneumonia": _pneumonia, "Atelectasis": _atelectasis, "Pleural Effusion": _effusion, "Pneumothorax": _pneumothorax,
}


def _device(film, finding, body, back):
    dice = film.dice
    if finding.kind == "tube":
        film.add(film.line([(0.02, -0.98), (0.08, -0.55), (0.10, -0.40)], 0.016), 0.34)
    elif finding.kind == "feeding tube":
        film.add(film.line([(0.10, -0.98), (0.20, -0.4), (0.26, 0.2), (0.16, 0.52), (0.02, 0.62)], 0.012), 0.36)
    elif finding.kind == "catheter":
        film.add(film.line([(-0.20, -0.74), (-0.14, -0.55), (-0.04, -0.38), (-0.04, -0.04)], 0.013), 0.36)
    elif finding.kind == "pacemaker":
        px, py = -0.42 + dice.between(-0.03, 0.03), -0.46
        film.add(film.disc(px, py, 0.05, 0.10, -0.35, 1.4), 0.42)
        film.add(film.line([(px, py), (-0.10, -0.58), (-0.02, -0.35), (-0.06, 0.1), (-0.30, 0.36)], 0.011), 0.34)
    elif finding.kind == "wires":
        for number in range(5):
            y0 = -0.40 + 0.145 * number
            x0 = -0.46 - 0.30 * (y0 - 0.1)
            film.add(film.line([(x0 - 0.02, y0 - 0.03), (x0 + 0.01, y0 + 0.03)], 0.014), 0.36)
    elif finding.kind == "drain":
        y0 = dice.between(0.14, 0.24)
        film.add(film.line([(0.58, y0), (0.36, y0 - 0.06), (0.16, -0.22), (0.04, -0.50)], 0.020), 0.30)
        film.add(film.line([(0.36, y0 - 0.06), (0.16, -0.22), (0.04, -0.50)], 0.005), 0.14)
