"""The phantom's reports: a sentence for every finding, and true statements of some absent findings.

Every sentence can be understood alone, since stage 1 pairs single sentences with pictures. A finding is named only in
the words of its own label, so that "consolidation" never implies "opacity". Which absent findings are stated changes
from report to report. Labels have CheXbert's codes: 1 named as present, 2 named as absent, 0 not named; none is
uncertain.
"""

from data.reports import LABELS

ADVERB = {"mild": "mildly", "moderate": "moderately", "severe": "severely"}
SIZE = {"mild": "small", "moderate": "moderate", "severe": "large"}
CRACK = {"mild": "subtle", "moderate": "moderately displaced", "severe": "severely displaced"}

# {degree} is the severity; {adverb}, {size} and {crack} are other words for the severity. {place} ("right lower lung
# zone"), {side} ("right") and {zone} ("lower") come from the location. A sentence begins with its finding, as in
# dictated and structured reports. With "There is a" at its beginning, a small language model would choose a group of
# findings before the finding itself. The last form has the words of a clue prompt, but a dash instead of a colon: with
# colons only in such sentences, the colon of "Clue:" would mean illness to the model.
FINDINGS = {
    "Enlarged Cardiomediastinum": (
        "Enlarged cardiomediastinum, {degree}.",
        "Mediastinal widening is present, the mediastinum is {adverb} enlarged.",
        "Widening - {degree} enlarged cardiomediastinum.",
    ),
    "Cardiomegaly": (
        "Cardiomegaly, {degree}.",
        "Cardiomegaly is present, the heart is {adverb} enlarged.",
        "Cardiomegaly - {degree} cardiomegaly.",
    ),
    "Lung Opacity": (
        "Opacity in the {place}, {degree} and hazy.",
        "Opacity is seen in the {place}, {degree} in degree.",
        "Opacity - {degree} lung opacity at the {place}.",
    ),
    "Lung Lesion": (
        "Nodule in the {place}, {size} and round.",
        "Nodule is seen in the {place}, {size} in size.",
        "Nodule - {size} lung nodule at the {place}.",
    ),
    "Edema": (
        "Pulmonary edema in both lungs, {degree}.",
        "Pulmonary edema is present in both lungs, {degree} in degree.",
        "Edema - {degree} pulmonary edema at both lungs.",
    ),
    "Consolidation": (
        "Consolidation in the {place}, {degree} and dense.",
        "Consolidation is seen in the {place}, {degree} in degree.",
        "Consolidation - {degree} consolidation at the {place}.",
    ),
    "Pneumonia": (
        "Pneumonia in the {place}, {degree} and patchy.",
        "Pneumonia is seen in the {place}, {degree} in degree.",
        "Pneumonia - {degree} pneumonia at the {place}.",
    ),
    "Atelectasis": (
        "Atelectasis in the {place}, {degree} and linear.",
        "Atelectasis is seen in the {place}, {degree} in degree.",
        "Atelectasis - {degree} atelectasis at the {place}.",
    ),
    "Pneumothorax": (
        "Pneumothorax on the {side}, {size}.",
        "Pneumothorax is present at the {side} apex, {size} in size.",
        "Pneumothorax - {size} pneumothorax at the {side} apex.",
    ),
    "Pleural Effusion": (
        "Pleural effusion on the {side}, {size}.",
        "Pleural effusion is present at the {side} lung base, {size} in size.",
        "Effusion - {size} pleural effusion at the {side} lung base.",
    ),
    "Pleural Other": (
        "Pleural thickening along the {side} chest wall, {degree}.",
        "Pleural thickening with calcified plaque is present at the {side} chest wall, {degree} in degree.",
        "Thickening - {degree} pleural thickening at the {side} chest wall.",
    ),
    "Fracture": (
        "Rib fracture in the {side} {zone} ribs, {crack}.",
        "Rib fracture is seen in the {side} {zone} ribs and is {crack}.",
        "Fracture - {crack} rib fracture at the {side} {zone} ribs.",
    ),
}
EFFUSIONS = (
    "Pleural effusions on both sides, {size}.",
    "Pleural effusions are present at both lung bases, {size} in size.",
    "Effusions - {size} pleural effusions at both lung bases.",
)
APICAL = (
    "Pleural thickening at the {side} apex, {degree}.",
    "Pleural thickening with calcified plaque is present at the {side} apex, {degree} in degree.",
    "Thickening - {degree} pleural thickening at the {side} apex.",
)
DEVICES = {
    "tube": ("An endotracheal tube is in place.", "The endotracheal tube ends above the carina."),
    "feeding tube": ("A nasogastric tube is in place.", "A nasogastric tube ends in the stomach."),
    "catheter": ("A {side} central venous catheter is in place.",
                 "A {side} central venous catheter ends in the vena cava."),
    "pacemaker": ("A {side} chest pacemaker is in place.", "A {side} pacemaker with leads over the heart is in place."),
    "wires": ("Median sternotomy wires are in place.", "Sternal wires are seen in the midline."),
    "drain": ("A {side} chest tube is in place.", "A {side} sided chest tube is seen."),
}

# Statements of absence, by topic: (sentence, the labels that it names as absent). A sentence is used only if none of
# these labels is present.
HEART = (
    ("The heart is normal in size.", ("Cardiomegaly",)),
    ("Normal heart size.", ("Cardiomegaly",)),
    ("The heart is not enlarged.", ("Cardiomegaly",)),
    ("No cardiomegaly.", ("Cardiomegaly",)),
)
MEDIASTINUM = (
    ("The mediastinum is not widened.", ("Enlarged Cardiomediastinum",)),
    ("The mediastinal contour is normal.", ("Enlarged Cardiomediastinum",)),
    ("The mediastinum is normal in width.", ("Enlarged Cardiomediastinum",)),
    ("No enlarged cardiomediastinum.", ("Enlarged Cardiomediastinum",)),
)
SILHOUETTE = (
    ("The cardiomediastinal silhouette is normal.", ("Enlarged Cardiomediastinum", "Cardiomegaly")),
    ("The heart and mediastinum are normal.", ("Enlarged Cardiomediastinum", "Cardiomegaly")),
)
BONES = (
    ("The bones are intact.", ("Fracture",)),
    ("No rib fracture is seen.", ("Fracture",)),
    ("The ribs are intact.", ("Fracture",)),
    ("There is no rib fracture.", ("Fracture",)),
)
PLEURA = (
    ("The pleural surfaces are smooth.", ("Pleural Other",)),
    ("There is no pleural thickening.", ("Pleural Other",)),
    ("No pleural thickening or plaque.", ("Pleural Other",)),
)
ANGLES = (
    ("The costophrenic angles are sharp.", ("Pleural Effusion",)),
    ("No pleural effusion.", ("Pleural Effusion",)),
    ("There is no pleural effusion.", ("Pleural Effusion",)),
)
VESSELS = (
    ("The pulmonary vessels are normal.", ("Edema",)),
    ("No pulmonary edema.", ("Edema",)),
    ("No vascular congestion or edema.", ("Edema",)),
)
NO_DEVICE = (
    ("No support device is seen.", ("Support Devices",)),
    ("No lines or tubes are present.", ("Support Devices",)),
)
CLEAR = ("The lungs are clear.", "Both lungs are clear.", "The lungs are normal and clear.")
NORMAL = ("No acute finding.", "No acute abnormality is seen.", "No finding.", "This is a normal chest.")
ABNORMAL = ("This is an abnormal chest.", "The chest is abnormal.")
TOPICS = (HEART, MEDIASTINUM, SILHOUETTE, BONES, PLEURA, ANGLES, VESSELS, NO_DEVICE)
IN_LUNG = ("Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")
NAMES = {
    "Lung Opacity": "lung opacity", "Lung Lesion": "lung nodule", "Edema": "pulmonary edema",
    "Consolidation": "consolidation", "Pneumonia": "pneumonia", "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax", "Pleural Effusion": "pleural effusion", "Pleural Other": "pleural thickening",
    "Fracture": "rib fracture",
}
LISTS = ("No {0}.", "There is no {0}.", "No evidence of {0}.")


def labels_of(findings, negated):
    """The 14 labels (CheXbert's order and codes) of a report that names `findings` as present, `negated` as absent.

    As in CheXbert, "No Finding" is 1 if nothing but devices is present, and never 2.
    """
    present = {finding.finding for finding in findings}
    labels = [1 if name in present else 2 if name in negated else 0 for name in LABELS]
    labels[LABELS.index("No Finding")] = int(not present - {"Support Devices"})
    return labels


def write_report(findings, dice):
    """(report, set of the labels that it names as absent). The report has about 3 to 6 sentences, in random order:
    first those of `findings`, then the statements of absence.
    """
    present = {finding.finding for finding in findings}
    absent = [name for name in LABELS[:-1] if name not in present]
    positive = [_sentence(finding, dice) for finding in findings]
    statements = []

    def state(text, names=()):
        statements.append(text)
        negated.update(names)

    negated = set()
    abnormal = present - {"Support Devices"}
    if not abnormal and dice.chance(0.6):
        state(dice.pick(NORMAL[:2] if present else NORMAL))
    if abnormal and dice.chance(0.1):
        state(dice.pick(ABNORMAL))
    if not present & {*IN_LUNG, "Pleural Effusion"} and dice.chance(0.75):
        state(dice.pick(CLEAR), ("Lung Opacity",))
    elif dice.chance(0.5):
        sound = _sound_side(findings)
        if sound:
            state(f"The {sound} lung is clear.")
    wanted = max(3 + dice.below(2) - len(positive), 1)
    topics = [[option for option in topic if set(option[1]) <= set(absent)] for topic in TOPICS]
    topics = [topic for topic in dice.shuffled(topics) if topic]
    lists = 1
    while len(statements) < wanted and (topics or lists):
        if lists:
            lists -= 1
            names = [name for name in dice.shuffled(NAMES) if name in absent and name not in negated]
            names = names[:1 + dice.below(2)]
            if names:
                state(dice.pick(LISTS).format(" or ".join(NAMES[name] for name in names)), names)
        else:
            text, names = dice.pick(topics.pop())
            if not set(names) & negated:
                state(text, names)
    return " ".join(dice.shuffled(positive) + dice.shuffled(statements)), negated      # present findings come first


def _sound_side(findings):
    """The side without findings, if all findings are on the other side; else ""."""
    sides = {finding.location.split(" ")[0] for finding in findings
             if finding.finding not in ("Cardiomegaly", "Enlarged Cardiomediastinum", "Support Devices")}
    return {("right",): "left", ("left",): "right"}.get(tuple(sides), "")


def _sentence(finding, dice):
    side, _, zone = finding.location.partition(" ")
    zone = zone.split(" ")[0]
    if finding.finding == "Support Devices":
        text = dice.pick(DEVICES[finding.kind]).format(side=side)
        return text[0].upper() + text[1:]
    options = FINDINGS[finding.finding]
    if finding.finding == "Pleural Effusion" and side == "bilateral":
        options = EFFUSIONS
    if finding.finding == "Pleural Other" and zone:
        options = APICAL
    text = dice.pick(options).format(
        degree=finding.severity, adverb=ADVERB[finding.severity], size=SIZE[finding.severity],
        crack=CRACK[finding.severity], side=side, zone=zone, place=_place(side, zone))
    return text[0].upper() + text[1:]


def _place(side, zone):
    return "bilateral lower lung zones" if side == "bilateral" else f"{side} {zone} lung zone"
