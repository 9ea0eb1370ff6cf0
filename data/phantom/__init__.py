"""The phantom: studies whose truth is known, with one or two drawn views and a report in radiologists' wording.

`studies` deals out findings and writes the reports (no picture is drawn yet), `draw` turns a study's `pictures` into
pixels, `label` reads findings back from any text. A study depends on (seed, split, number) alone, never on how many
others there are, and a picture on its own spec alone, so any number of workers makes the same bytes.
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
    """A finding as drawn: mild, moderate or severe ("" of devices), location as `label` gives it, kind of device."""

    finding: str
    severity: str = ""
    location: str = ""
    kind: str = ""


class Picture(NamedTuple):
    """Everything a view is drawn from: "frontal" or "lateral", the integers all its chance comes from, the findings."""

    view: str
    key: tuple
    findings: tuple


def draw(picture, size):
    """A `Picture` as a uint8 array (size, size): the same bytes on any machine."""
    body = Body(Dice(*picture.key, 0))
    view = VIEWS.index(picture.view)
    dice, luck = Dice(*picture.key, 1, view), Dice(*picture.key, 2, view)
    if picture.view == "frontal":
        return draw_frontal(Film(size, dice, luck), body, picture.findings)
    return draw_lateral(Film(size, dice, luck), body, picture.findings)


def easy(finding=None, severity="severe", location="", kind="", view="frontal", key=(7,)):
    """A `Picture` with one clear finding, placed by hand; `finding` None is a normal chest.

    Without a location, the right side (lower zone) is taken where the finding has one; without a kind, a pacemaker.
    """
    if finding is None:
        return Picture(view, tuple(key), ())
    if finding == "Support Devices":
        return Picture(view, tuple(key), (Finding(finding, "", location or "left", kind or "pacemaker"),))
    if not location and finding not in ("Cardiomegaly", "Enlarged Cardiomediastinum"):
        location = "bilateral" if finding == "Edema" else "right lower zone" if finding in ZONED else "right"
    return Picture(view, tuple(key), (Finding(finding, severity, location),))


def studies(counts=(2000, 300, 500), seed=0):
    """The phantom's studies, train then val then test, as `Study`s whose `pictures` are `Picture`s for `draw`.

    `extra` holds the truth: "labels" (14 values, CheXbert's order and coding, what the report says), "findings"
    ([{"finding", "severity", "location"}]) and "view_names".
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


# How often a finding opens a study, and what it brings along: the pairs that come together in practice.
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
# Shares of the studies: without a finding; of the others, with a further one that came by itself; with a lateral view
_NORMAL, _FURTHER, _LATERAL = 0.30, 0.55, 0.4


def _deal(dice):
    """The findings of one study, 0 to 4 and perhaps devices; none lies where another would hide it."""
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

    # What takes the most room is placed first
    room = _Room(dice)
    order = ["Pneumothorax", "Pleural Effusion", "Cardiomegaly", "Edema"]
    chosen.sort(key=lambda name: order.index(name) if name in order else len(order))
    findings = [finding for finding in (room.place(name) for name in chosen) if finding]
    return findings + _devices(dice, findings)


class _Room:
    """Where there is still space in a chest, by side and zone."""

    def __init__(self, dice):
        self.dice = dice
        self.free = [(side, zone) for side in ("right", "left") for zone in ("upper", "mid", "lower")]
        self.walls = ["right", "left"]

    def place(self, name):
        """The finding with a severity and a location, or None where nothing of its kind would be seen any more."""
        dice = self.dice
        severity = dice.pick(SEVERITIES, (0.24, 0.38, 0.38))

        # The middle of the chest: a large heart hides what lies behind it
        if name in ("Cardiomegaly", "Enlarged Cardiomediastinum"):
            if name == "Cardiomegaly" and severity == "severe":
                self._take("left", "lower")
            return Finding(name, severity, "")

        # The air spaces and the pleura take zones away from what would be hidden there, or hide it
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

        # Chest walls and ribs: a plaque beside a pneumothorax would not be told from the pleural line
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
    """No device, one, or two of which at most one has a side."""
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
