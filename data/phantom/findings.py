"""Draws findings as their radiographic signs, in both views; the class `Chest` of each view gives the positions.

A chest has
    body                              the `Body`
    wall                              distance to the chest wall at every pixel, positive inside
    over                              share of a pixel's shadow that one side of the body contributes
    sides(finding)                    the finding's sides as signs of x (lateral view: one, since the sides overlap)
    half(side)                        mask of the pixels of a side
    spot(luck, side, finding, loose)  a random point (x, y) in the finding's zone
    rind(finding)                     distance, as `wall`, to the wall on which pleural thickening lies
Lengths are in the body's coordinates; three values are for mild, moderate and severe.
"""

import numpy as np

from data.phantom.film import EVERYWHERE, of_severity, smooth, zone_of


def opacity(film, chest, finding):
    """A hazy patch without a sharp edge; vessels remain visible in it."""
    luck = film.luck
    for side in chest.sides(finding):
        cx, cy = chest.spot(luck, side, finding)
        r = of_severity(finding, 0.23, 0.27, 0.31) * luck.between(0.95, 1.1)
        film.fill(film.cloud(cx, cy, r, r * luck.between(0.85, 1.1)), of_severity(finding, 0.62, 0.74, 0.86))


def lesion(film, chest, finding):
    """A round shadow with a sharp edge."""
    luck = film.luck
    for side in chest.sides(finding):
        cx, cy = chest.spot(luck, side, finding, 1.5)
        r = of_severity(finding, 0.105, 0.140, 0.180) * luck.between(0.94, 1.08)
        film.fill(film.disc(cx, cy, r, r * luck.between(0.9, 1.1), luck.between(-0.1, 0.1), 1.6), 0.98)


def consolidation(film, chest, finding):
    """A dense lobe with a straight border at the fissure, and dark bronchi that branch from the hilum."""
    luck = film.luck
    for side in chest.sides(finding):
        cx, cy = chest.spot(luck, side, finding, 0.6)
        r = of_severity(finding, 0.17, 0.22, 0.28) * luck.between(0.95, 1.06)
        where, q = film.ellipse(cx, cy, r * 1.15, r)
        cut = 1 if zone_of(finding) == "upper" else -1
        fissure = cy + cut * r * 0.55 + side * luck.between(-0.05, 0.15) * (film.x[where] - cx)
        lobe = film.edge((1 - q) * r, 3.5) * film.edge(cut * (fissure - film.y[where]), 1.6)
        bronchi = np.zeros_like(film.water)
        for turn in (-0.55, -0.08, 0.40):
            turn += luck.between(-0.1, 0.1)
            branch = [(cx - side * r * 0.75, cy - 0.02), (cx - side * r * 0.1, cy + turn * r * 0.55),
                      (cx + side * r * 0.6, cy + turn * r)]
            area, tube = film.line(branch, (0.021, 0.012), 1.6)
            bronchi[area] = np.maximum(bronchi[area], tube)
        uneven = 0.93 + 0.12 * film.clouds(24, luck)[where]
        film.fill((where, lobe * uneven * (1 - 0.75 * bronchi[where])), 0.92)


_PATCHES = ((0, 0), (-1, -0.3), (0.9, -0.5), (0.3, 0.95), (-0.7, 0.75), (-0.25, -1.0), (1.0, 0.45), (0.45, -1.2),
            (-1.1, 1.3))


def pneumonia(film, chest, finding):
    """A cluster of patches, some of which merge."""
    luck = film.luck
    for side in chest.sides(finding):
        cx, cy = chest.spot(luck, side, finding, 0.8)
        spread = of_severity(finding, 0.12, 0.15, 0.18)
        film.fill(film.cloud(cx, cy, spread * 1.7, spread * 1.7), 0.25)
        for dx, dy in _PATCHES[:of_severity(finding, 6, 7, 9)]:
            px, py = cx + spread * (dx + luck.between(-0.2, 0.2)), cy + spread * (dy + luck.between(-0.2, 0.2))
            r = of_severity(finding, 0.074, 0.081, 0.088) * luck.between(0.85, 1.15)
            patch = film.cloud(px, py, r, r * luck.between(0.8, 1.2), luck.between(-0.4, 0.4))
            film.fill(patch, luck.between(0.82, 0.96))


def atelectasis(film, chest, finding):
    """Flat, nearly horizontal bands of airless lung. In the lower zones `Chest` also draws the diaphragm higher."""
    luck = film.luck
    for side in chest.sides(finding):
        cx, cy = chest.spot(luck, side, finding, 0.6)
        tilt = luck.between(-0.10, 0.22)
        for number in range(of_severity(finding, 1, 2, 3)):
            height = cy + 0.095 * (number - 0.5) + luck.between(-0.01, 0.01)
            half, thick = luck.between(0.19, 0.25), luck.between(0.026, 0.033)
            band = [(cx - side * half, height - tilt * half), (cx, height - 0.01),
                    (cx + side * half * 0.85, height + tilt * half)]
            film.fill(film.line(band, (thick, thick * 0.8), 1.6), 0.88)


def edema(film, chest, finding, wings, septa):
    """Mottled haze around the hila, in the ellipses `wings` [(x, y, rx, ry)], and septal (Kerley B) lines, which start
    at `septa` [(x, y, direction in x)].
    """
    luck = film.luck
    for wing in wings:
        where, haze = film.cloud(*wing)
        film.fill((where, haze * (0.85 + 0.6 * film.clouds(24, luck)[where])), of_severity(finding, 0.36, 0.52, 0.70))
    for x, y, sign in septa:
        for number in range(of_severity(finding, 4, 6, 7)):
            height = y + 0.072 * number + luck.between(-0.012, 0.012)
            line = [(x, height), (x + sign * luck.between(0.10, 0.16), height - 0.012)]
            film.fill(film.line(line, 0.009), 0.65)


def effusion(film, chest, finding, side, lateral, medial, climb):
    """Fluid below a surface: its height y is `medial` where the field `climb` is 0, and `lateral` where it is 1."""
    surface = medial + (lateral - medial) * climb
    strength = 0.94 if finding.location.startswith("bilateral") else 0.94 * chest.over
    film.fill((EVERYWHERE, film.edge(film.y - surface, 4) * chest.half(side)), strength)


def _gap(film, finding):
    """The width of the gap between lung and chest wall at every pixel: large at the apex, small at the base."""
    closing = of_severity(finding, 1.0, 0.75, 0.45) * smooth((film.y + 0.62) * 1.1)
    return of_severity(finding, 0.18, 0.26, 0.36) * (1 - closing)


def pneumothorax(film, chest, finding):
    """Air without vessels between lung and chest wall. The more the lung has collapsed, the denser it is drawn."""
    half = chest.half(chest.sides(finding)[0])
    free = film.edge(_gap(film, finding) - chest.wall, 1.2) * half
    film.water *= 1 - chest.over * free
    film.fill((EVERYWHERE, half * (1 - free)), of_severity(finding, 0.0, 0.08, 0.2))


def pleural_line(film, chest, finding, lung):
    """The edge of the lung in a pneumothorax: a thin white line with a darker rim outside. lung: mask of the lungs."""
    gap, half = _gap(film, finding), chest.half(chest.sides(finding)[0]) * lung
    film.extra += film.edge(0.012 - np.abs(chest.wall - gap), 1.2) * half * smooth((gap - 0.03) * 30) * 0.24
    film.extra -= film.edge(gap - chest.wall, 1.2) * half * 0.05


def plaques(film, chest, finding):
    """Pleural thickening: a white layer inside the chest wall, with calcified plaques in it."""
    luck = film.luck
    top, bottom = (-0.80, -0.32) if zone_of(finding) == "upper" else (-0.34, 0.39)
    span = smooth((film.y - top) * 8) * smooth((bottom - film.y) * 8)
    for side in chest.sides(finding):
        wall, half = chest.rind(finding), chest.half(side)
        thick = of_severity(finding, 0.10, 0.135, 0.17) * (1 + 0.35 * film.clouds(16, luck)) * span
        rind = film.edge(thick - wall, 1.4) * film.edge(wall + 0.01, 1.4) * half
        film.water += rind * 0.9 * (1 - film.water)
        lime = film.edge(thick * 0.75 - wall, 1.4) * film.edge(wall - 0.006, 1.2) * half
        film.extra += lime * smooth(film.clouds(22, luck) * 2.2 + 0.75) * 0.42


def fracture_sites(film, finding, body, spot_x, spot_y, pitch, bend):
    """[(x, y, number of the rib)] of the breaks in one, two or three neighbouring ribs.

    A rib is the curve y + bend(x) = (number - 1.5 + rib0) * pitch. The middle break is near (spot_x, spot_y).
    """
    luck, count = film.luck, of_severity(finding, 1, 2, 3)
    first = round((spot_y + bend(spot_x)) / pitch + 1.5 - body.rib0 - (count - 1) / 2)
    sites = []
    for number in range(first, first + count):
        x = spot_x + luck.between(-0.03, 0.03)
        sites.append((x, (number - 1.5 + body.rib0) * pitch - bend(x), number))
    return sites


def step_ribs(phase, sites, outside):
    """The ribs' phase (y in units of the pitch, whole numbers at the ribs), with a step down in every broken rib.

    `outside(x)` is the mask of the pixels beyond a break at x, where the rib lies lower.
    """
    rank = np.floor(phase + 0.5)
    for x, _, number in sites:
        phase = np.where(outside(x) & (rank == number), phase - np.float32(0.33), phase)
    return phase


def callus(film, sites, outward):
    """Draws every break as a dark gap between two knobs of new bone, of which the outer one lies lower."""
    for x, y, _ in sites:
        film.add(film.line([(x, y - 0.045), (x + outward * 0.012, y + 0.06)], 0.016, 1.2), -0.26)
        film.add(film.cloud(x - outward * 0.046, y - 0.004, 0.070, 0.067), 0.42)
        film.add(film.cloud(x + outward * 0.056, y + 0.042, 0.070, 0.067), 0.42)


IN_LUNG = {
    "Lung Opacity": opacity, "Lung Lesion": lesion, "Consolidation": consolidation, "Pneumonia": pneumonia,
    "Atelectasis": atelectasis, "Pneumothorax": pneumothorax,
}
