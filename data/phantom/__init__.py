"""The phantom: artificial studies with known findings. A study has one or two drawn views and a report in radiologists'
wording.

`studies` draws the findings at random and writes the reports, but no pictures. `draw` draws one picture of a study.
`label` extracts findings from any text. A study depends on (seed, split, number) alone, not on the number of studies; a
picture depends on its `Picture` alone. So any number of workers makes the same bytes.
"""

from typing import NamedTuple

from data.phantom.film import Body, Dice, Film
from data.phantom.frontal import draw_frontal
from data.phantom.labeler import label
from data.phantom.lateral import draw_lateral
from data.phantom.text import labels_of, write_report
from data.reports import LABELS
from data.source import SPLITS, Study

__all__ = ["LABELS", "Finding", "Picture", "draw", "easy", "label", "studies"]

VIEWS = ("frontal", "lateral")
SEVERITIES = ("mild", "moderate", "severe")
ZONED = ("Lung Opacity", "Lung Lesion", "Consolidation", "Pneumonia", "Atelectasis", "Fracture")
DEVICES = ("tube", "feeding tube", "catheter", "pacemaker", "wires", "drain")


class Finding(NamedTuple):
    """A finding to draw: its label, severity (mild, moderate, severe; "" for devices), location (in the form of
    `label`), and for devices the kind, one of DEVICES.
    """

    finding: str
    severity: str = ""
    location: str = ""
    kind: str = ""


class Picture(NamedTuple):
    """All that determines a drawn view: "frontal" or "lateral", the integers that seed its random numbers, and the
    findings.
    """

    view: str
    key: tuple
    findings: tuple


def draw(picture, size):
    """Draws a `Picture` → (size, size) uint8; the same bytes on any machine."""
    body = Body(Dice(*picture.key, 0))
    view = VIEWS.index(picture.view)
    dice, luck = Dice(*picture.key, 1, view), Dice(*picture.key, 2, view)
    if picture.view == "frontal":
        return draw_frontal(Film(size, dice, luck), body, picture.findings)
    return draw_lateral(Film(size, dice, luck), body, picture.findings)


def easy(finding=None, severity="severe", location="", kind="", view="frontal", key=(7,)):
    """A `Picture` with one clear finding, given by its label; with `finding` None, of a normal chest.

    The default location is the right side, or the right lower zone (edema: bilateral, devices: left), if the finding
    has a location. The default kind of device is a pacemaker.
    """
    if finding is None:
        return Picture(view, tuple(key), ())
    if finding == "Support Devices":
        return Picture(view, tuple(key), (Finding(finding, "", location or "left", kind or "pacemaker"),))
    if not location and finding not in ("Cardiomegaly", "Enlarged Cardiomediastinum"):
        location = "bilateral" if finding == "Edema" else "right lower zone" if finding in ZONED else "right"
    return Picture(view, tuple(key), (Finding(finding, severity, location),))


def studies(counts=(2000, 300, 500), seed=0):
    """[`Study`, …] of the phantom: train, then val, then test, `counts` of each; `pictures` are `Picture`s for `draw`.

    `extra` holds "labels" (14 values in CheXbert's order and coding, as the report states them), "findings"
    ([{"finding", "severity", "location"}], the truth) and "view_names".
    """
    return [_study(seed, number_of_split, number)
            for number_of_split, count in enumerate(counts) for number in range(count)]


def _study(seed, split, number):
    key = (seed, split, number)
    findings = _deal(Dice(*key, 3))
    report, negated = write_report(findings, Dice(*key, 4))
    devices = [finding for finding in findings if finding.finding == "Support Devices"]
    truth = [finding for finding in findings if finding.finding != "Support Devices"]
    if devices:
        truth.append(Finding("Support Devices", "", next((d.location for d in devices if d.location), "")))
    truth.sort(key=lambda finding: LABELS.index(finding.finding))
    views = VIEWS[:1 + Dice(*key, 5).chance(_LATERAL)]
    extra = {"labels": labels_of(truth, negated), "view_names": list(views), "findings": [
        {"finding": f.finding, "severity": f.severity, "location": f.location} for f in truth]}
    pictures = [Picture(view, key, tuple(findings)) for view in views]
    return Study(f"phantom-{SPLITS[split]}-{number:05d}", SPLITS[split], report, pictures, extra)


# _OPENS: weights of a study's first finding. _BRINGS: probabilities of further findings that often occur with it.
_OPENS = {
    "Enlarged Cardiomediastinum": 1.2, "Cardiomegaly": 0.7, "Lung Opacity": 1.1, "Lung Lesion": 1.3, "Edema": 1.3,
    "Consolidation": 1.2, "Pneumonia": 1.3, "Atelectasis": 1.2, "Pneumothorax": 1.2, "Pleural Effusion": 0.8,
    "Pleural Other": 1.3, "Fracture": 1.1,
}
_BRINGS = {
    "Edema": {"Cardiomegaly": 0.5, "Pleural Effusion": 0.4},
    "Cardiomegaly": {"Edema": 0.15, "Pleural Effusion": 0.2},
    "Pleural Effusion": {"Atelectasis": 0.3, "Cardiomegaly": 0.15},
    "Consolidation": {"Pleural Effusion": 0.2},
    "Pneumonia": {"Pleural Effusion": 0.2},
    "Pneumothorax": {"Fracture": 0.25},
    "Fracture": {"Pneumothorax": 0.2, "Pleural Other": 0.1},
    "Lung Lesion": {"Enlarged Cardiomediastinum": 0.15, "Lung Opacity": 0.1},
    "Enlarged Cardiomediastinum": {"Cardiomegaly": 0.15},
    "Atelectasis": {"Pleural Effusion": 0.2},
}
# Shares: normal studies; of the other studies, those with a further finding unrelated to the first; studies with a
# lateral view
_NORMAL, _FURTHER, _LATERAL = 0.30, 0.55, 0.4


def _deal(dice):
    """The random findings of one study: 0 to 4, and possibly devices. No finding lies where another one hides it."""
    chosen = []
    if not dice.chance(_NORMAL):
        chosen.append(dice.pick(list(_OPENS), list(_OPENS.values())))
        for other, probability in _BRINGS.get(chosen[0], {}).items():
            if dice.chance(probability):
                chosen.append(other)
        if dice.chance(_FURTHER):
            other = dice.pick(list(_OPENS), list(_OPENS.values()))
            if other not in chosen:
                chosen.append(other)

    # Findings that take the most room are placed first
    room = _Room(dice)
    order = ["Pneumothorax", "Pleural Effusion", "Cardiomegaly", "Edema"]
    chosen.sort(key=lambda name: order.index(name) if name in order else len(order))
    findings = [finding for finding in (room.place(name) for name in chosen) if finding]
    return findings + _devices(dice, findings)


class _Room:
    """The free places in a chest: `free` zones of the lungs, and `walls` for pleural thickening."""

    def __init__(self, dice):
        self.dice = dice
        self.free = [(side, zone) for side in ("right", "left") for zone in ("upper", "mid", "lower")]
        self.walls = ["right", "left"]

    def place(self, name):
        """A `Finding` with a random severity and a free location, or None if no place is left where it can be seen."""
        dice = self.dice
        severity = dice.pick(SEVERITIES, (0.24, 0.38, 0.38))

        # Heart and mediastinum: a large heart hides findings behind it
        if name in ("Cardiomegaly", "Enlarged Cardiomediastinum"):
            if name == "Cardiomegaly" and severity == "severe":
                self._take("left", "lower")
            return Finding(name, severity, "")

        # Findings of whole lungs and of the pleural space: they block the zones where others would be hidden
        if name == "Edema":
            self._take("right", "mid"), self._take("left", "mid")
            return Finding(name, severity, "bilateral")
        if name == "Pneumothorax":
            side = dice.pick(("right", "left"))
            for zone in ("upper", "mid") if severity != "severe" else ("upper", "mid", "lower"):
                self._take(side, zone)
            self.walls.remove(side)
            return Finding(name, severity, side)
        if name == "Pleural Effusion":
            side = dice.pick(("right", "left", "bilateral"), (0.36, 0.36, 0.28))
            for each in ("right", "left") if side == "bilateral" else (side,):
                self._take(each, "lower")
                if severity != "mild":
                    self._take(each, "mid")
            return Finding(name, severity, side)

        # Chest walls and ribs: beside a pneumothorax a plaque could not be distinguished from the pleural line
        if name == "Pleural Other":
            if not self.walls:
                return None
            side = dice.pick(self.walls)
            apical = dice.chance(0.2)
            return Finding(name, severity, f"{side} upper zone" if apical else side)
        if name == "Fracture":
            side, zone = dice.pick(("right", "left")), dice.pick(("upper", "mid", "lower"))
            return Finding(name, severity, f"{side} {zone} zone")
        return self._in_lung(name, severity)

    def _in_lung(self, name, severity):
        dice = self.dice
        cells = self.free
        if name == "Atelectasis":
            if {("right", "lower"), ("left", "lower")} <= set(cells) and dice.chance(0.25):
                self._take("right", "lower"), self._take("left", "lower")
                return Finding(name, severity, "bilateral lower zone")
            cells = [cell for cell in cells if cell[1] != "upper"]
        if name == "Consolidation":
            cells = [cell for cell in cells if cell != ("left", "mid")]
        if not cells:
            return None
        side, zone = dice.pick(cells)
        for near in {"upper": ("upper", "mid"), "mid": ("upper", "mid", "lower"), "lower": ("mid", "lower")}[zone]:
            self._take(side, near)
        return Finding(name, severity, f"{side} {zone} zone")

    def _take(self, side, zone):
        if (side, zone) in self.free:
            self.free.remove((side, zone))


def _devices(dice, findings):
    """A random list of no device, one, or two, of which at most one has a side."""
    names = {finding.finding: finding for finding in findings}
    if not dice.chance(0.36 if names else 0.18):
        return []
    kinds = [dice.pick(DEVICES)]
    if "Pneumothorax" in names and dice.chance(0.35):
        kinds = ["drain"]
    if dice.chance(0.3):
        other = dice.pick(("tube", "feeding tube", "wires"))
        if other not in kinds:
            kinds.append(other)

    devices = []
    for kind in kinds:
        location = ""
        if kind in ("catheter", "pacemaker", "drain"):
            weights = {"catheter": (0.7, 0.3), "pacemaker": (0.3, 0.7), "drain": (0.5, 0.5)}
            location = dice.pick(("right", "left"), weights[kind])
            if kind == "drain" and "Pneumothorax" in names:
                location = names["Pneumothorax"].location
            if kind == "pacemaker" and any(f.location == f"{location} upper zone" for f in findings):
                location = "left" if location == "right" else "right"
        devices.append(Finding("Support Devices", "", location, kind))
    return devices
