"""What the phantom's reports say: a sentence for every finding, and true statements of what is absent.

Every sentence stands alone: stage 1 pairs single sentences with the picture. A finding is named in the words of its own
label only, so that "consolidation" never implies "opacity"; what is absent is said in a subset that changes from
report to report. Labels follow CheXbert: 1 named as present, 2 named as absent, 0 not named; nothing is uncertain.
"""

from data.reports import LABELS

DEGREE = {"mild": "mild", "moderate": "moderate", "severe": "severe"}
SIZE = {"mild": "small", "moderate": "moderate", "severe": "large"}
ADVERB = {"mild": "mildly", "moderate": "moderately", "severe": "severely"}
CRACK = {"mild": "subtle", "moderate": "moderately displaced", "severe": "severely displaced"}

# {degree} {size} {adverb} {crack} come from the severity; {place} "right lower lung zone", {side} "right",
# {zone} "lower" from the location.
FINDINGS = {
    "Enlarged Cardiomediastinum": (
        "There is {degree} widening of the mediastinum.",
        "The mediastinum is {adverb} widened.",
        "Mediastinum: {degree} enlarged cardiomediastinum.",
    ),
    "Cardiomegaly": (
        "There is {degree} cardiomegaly.",
        "The heart is {adverb} enlarged.",
        "Heart: {degree} cardiomegaly.",
    ),
    "Lung Opacity": (
        "There is a {degree} hazy opacity in the {place}.",
        "{degree} hazy lung opacity is seen in the {place}.",
        "Lungs: {degree} lung opacity at the {place}.",
    ),
    "Lung Lesion": (
        "There is a {size} round nodule in the {place}.",
        "A {size} lung nodule is seen in the {place}.",
        "Lungs: {size} lung nodule at the {place}.",
    ),
    "Edema": (
        "There is {degree} pulmonary edema in both lungs.",
        "{degree} bilateral pulmonary edema is present.",
        "Lungs: {degree} pulmonary edema at both lungs.",
    ),
    "Consolidation": (
        "There is {degree} consolidation in the {place}.",
        "{degree} consolidation is seen in the {place}.",
        "Lungs: {degree} consolidation at the {place}.",
    ),
    "Pneumonia": (
        "There is {degree} pneumonia in the {place}.",
        "{degree} patchy pneumonia is seen in the {place}.",
        "Lungs: {degree} pneumonia at the {place}.",
    ),
    "Atelectasis": (
        "There is {degree} atelectasis in the {place}.",
        "{degree} linear atelectasis is seen in the {place}.",
        "Lungs: {degree} atelectasis at the {place}.",
    ),
    "Pneumothorax": (
        "There is a {size} {side} pneumothorax.",
        "A {size} {side} apical pneumothorax is present.",
        "Pleura: {size} pneumothorax at the {side} apex.",
    ),
    "Pleural Effusion": (
        "There is a {size} {side} pleural effusion.",
        "A {size} {side} pleural effusion is present.",
        "Pleura: {size} pleural effusion at the {side} lung base.",
    ),
    "Pleural Other": (
        "There is {degree} pleural thickening along the {side} chest wall.",
        "{degree} {side} pleural thickening with calcified plaque is present.",
        "Pleura: {degree} pleural thickening at the {side} chest wall.",
    ),
    "Fracture": (
        "There is a {crack} {side} {zone} rib fracture.",
        "A {crack} {side} {zone} rib fracture is seen.",
        "Bones: {crack} rib fracture at the {side} {zone} ribs.",
    ),
}
EFFUSIONS = (
    "There are {size} bilateral pleural effusions.",
    "{size} bilateral pleural effusions are present.",
    "Pleura: {size} pleural effusions at both lung bases.",
)
APICAL = (
    "There is {degree} {side} apical pleural thickening.",
    "{degree} {side} apical pleural thickening with calcified plaque is present.",
    "Pleura: {degree} pleural thickening at the {side} apex.",
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

# Statements of absence, by topic: (sentence, the labels it names as absent). None is written where one of its labels
# is present.
HEART = (
    ("The heart is normal in size.", ("Cardiomegaly",)),
    ("Heart: normal in size.", ("Cardiomegaly",)),
    ("The heart is not enlarged.", ("Cardiomegaly",)),
    ("Heart: no cardiomegaly.", ("Cardiomegaly",)),
)
MEDIASTINUM = (
    ("The mediastinum is not widened.", ("Enlarged Cardiomediastinum",)),
    ("The mediastinal contour is normal.", ("Enlarged Cardiomediastinum",)),
    ("The mediastinum is normal in width.", ("Enlarged Cardiomediastinum",)),
    ("Mediastinum: no enlarged cardiomediastinum.", ("Enlarged Cardiomediastinum",)),
)
SILHOUETTE = (
    ("The cardiomediastinal silhouette is normal.", ("Enlarged Cardiomediastinum", "Cardiomegaly")),
    ("The heart and mediastinum are normal.", ("Enlarged Cardiomediastinum", "Cardiomegaly")),
)
BONES = (
    ("The bones are intact.", ("Fracture",)),
    ("No rib fracture is seen.", ("Fracture",)),
    ("The ribs are intact.", ("Fracture",)),
    ("Bones: no rib fracture.", ("Fracture",)),
)
PLEURA = (
    ("The pleural surfaces are smooth.", ("Pleural Other",)),
    ("Pleura: no pleural thickening.", ("Pleural Other",)),
    ("No pleural thickening or plaque.", ("Pleural Other",)),
)
ANGLES = (
    ("The costophrenic angles are sharp.", ("Pleural Effusion",)),
    ("No pleural effusion.", ("Pleural Effusion",)),
    ("Pleura: no pleural effusion.", ("Pleural Effusion",)),
)
VESSELS = (
    ("The pulmonary vessels are normal.", ("Edema",)),
    ("Lungs: no pulmonary edema.", ("Edema",)),
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
    """The 14 labels of a report that names `findings` as present and the labels in `negated` as absent.

    "No Finding" is 1 where nothing but devices is present, and never 2, as in CheXbert.
    """
    present = {finding.finding for finding in findings}
    labels = [1 if name in present else 2 if name in negated else 0 for name in LABELS]
    labels[LABELS.index("No Finding")] = int(not present - {"Support Devices"})
    return labels


def write_report(findings, dice):
    """(report, labels it names as absent) for findings as drawn; about 3 to 6 sentences, in an order that changes."""
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
    return " ".join(dice.shuffled(positive) + dice.shuffled(statements)), negated      # what is there comes first


def _sound_side(findings):
    """The side on which nothing lies, where everything lies on the other; else ""."""
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
        degree=DEGREE[finding.severity], size=SIZE[finding.severity], adverb=ADVERB[finding.severity],
        crack=CRACK[finding.severity], side=side, zone=zone, place=_place(side, zone))
    return text[0].upper() + text[1:]


def _place(side, zone):
    return "bilateral lower lung zones" if side == "bilateral" else f"{side} {zone} lung zone"
