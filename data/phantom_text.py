"""What the phantom's reports say: a sentence for every finding, and true statements of what is absent.

Every sentence stands alone: stage 1 pairs single sentences with the picture. A finding is named in the words of its own
label only, so that "consolidation" never implies "opacity"; what is absent is said in a subset that changes from
report to report. Labels follow CheXbert: 1 named as present, 2 named as absent, 0 not named; nothing is uncertain.
"""

from data.reports import LABELS

DEGREE = {"mild": ("mild", "mild", "minimal"), "moderate": ("moderate",), "severe": ("severe", "severe", "marked")}
SIZE = {"mild": ("small",), "moderate": ("moderate",), "severe": ("large",)}
ADVERB = {"mild": ("mildly", "slightly"), "moderate": ("moderately",), "severe": ("severely", "markedly")}
CRACK = {"mild": ("subtle",), "moderate": ("moderately displaced",), "severe": ("severely displaced",)}
ROUND = {"mild": ("nodule",), "moderate": ("nodule", "lesion"), "severe": ("mass",)}

# {degree} {size} {adverb} {round} {crack} come from the severity; {place} "right lower lung zone", {side} "right",
# {zone} "lower" from the location.
FINDINGS = {
    "Enlarged Cardiomediastinum": (
        "The mediastinum is {adverb} widened.",
        "There is {degree} widening of the mediastinum.",
        "{degree} mediastinal widening is present.",
        "{adverb} enlarged cardiomediastinum with a wide upper mediastinum.",
        "The mediastinal contour is {adverb} widened.",
    ),
    "Cardiomegaly": (
        "The heart is {adverb} enlarged.",
        "There is {degree} cardiomegaly.",
        "{degree} cardiomegaly is present.",
        "The cardiac silhouette is {adverb} enlarged.",
        "There is {degree} enlargement of the heart.",
    ),
    "Lung Opacity": (
        "There is a {degree} hazy opacity in the {place}.",
        "{degree} hazy lung opacity is seen in the {place}.",
        "A {degree} ill-defined opacity projects over the {place}.",
        "The {place} shows a {degree} hazy opacity.",
    ),
    "Lung Lesion": (
        "There is a {size} round {round} in the {place}.",
        "A {size} lung {round} is seen in the {place}.",
        "A {size} well-defined {round} projects over the {place}.",
        "The {place} contains a {size} round {round}.",
    ),
    "Edema": (
        "There is {degree} pulmonary edema in both lungs.",
        "{degree} bilateral pulmonary edema is present.",
        "{degree} bilateral perihilar edema with septal lines.",
        "Both lungs show {degree} interstitial edema.",
    ),
    "Consolidation": (
        "There is {degree} consolidation in the {place}.",
        "{degree} consolidation with air bronchograms is seen in the {place}.",
        "The {place} shows {degree} dense consolidation.",
        "{degree} dense consolidation occupies the {place}.",
    ),
    "Pneumonia": (
        "There is {degree} patchy pneumonia in the {place}.",
        "{degree} multifocal pneumonia is seen in the {place}.",
        "Clustered patches in the {place} represent {degree} pneumonia.",
        "The {place} shows {degree} patchy pneumonia.",
    ),
    "Atelectasis": (
        "There is {degree} linear atelectasis in the {place}.",
        "{degree} plate-like atelectasis is seen in the {place}.",
        "Bands of {degree} atelectasis cross the {place}.",
        "The {place} shows {degree} linear atelectasis.",
    ),
    "Pneumothorax": (
        "There is a {size} {side} pneumothorax.",
        "A {size} {side} pneumothorax is present with a visible pleural line.",
        "A {size} pneumothorax is seen on the {side}.",
        "{size} {side} apical pneumothorax.",
        "There is a {size} pneumothorax at the {side} apex.",
    ),
    "Pleural Effusion": (
        "There is a {size} {side} pleural effusion.",
        "A {size} {side} pleural effusion is present.",
        "A {size} pleural effusion is seen at the {side} lung base.",
        "A {size} {side} pleural effusion blunts the costophrenic angle.",
    ),
    "Pleural Other": (
        "There is {degree} pleural thickening along the {side} chest wall.",
        "{degree} {side} pleural thickening with calcified plaque is present.",
        "{degree} calcified pleural thickening is seen on the {side}.",
        "The {side} pleura shows {degree} thickening.",
    ),
    "Fracture": (
        "There is a {adverb} displaced {side} {zone} rib fracture.",
        "A {crack} {side} {zone} rib fracture is seen.",
        "A {adverb} displaced fracture of the {side} {zone} ribs is seen.",
        "{adverb} displaced rib fracture in the {side} {zone} zone.",
        "The {side} {zone} ribs show a {adverb} displaced fracture.",
    ),
}
EFFUSIONS = (
    "There are {size} bilateral pleural effusions.",
    "{size} bilateral pleural effusions are present.",
    "{size} pleural effusions are seen at both lung bases.",
    "{size} pleural effusions blunt both costophrenic angles.",
)
APICAL = (
    "There is {degree} pleural thickening at the {side} apex.",
    "{degree} {side} apical pleural thickening with calcified plaque is present.",
    "{degree} {side} apical pleural thickening.",
)
DEVICES = {
    "tube": ("An endotracheal tube is in place.", "The endotracheal tube ends above the carina.",
             "Support device: endotracheal tube."),
    "feeding tube": ("A nasogastric tube passes below the diaphragm.", "A nasogastric tube ends in the stomach.",
                     "Support device: nasogastric tube."),
    "catheter": ("A {side} central venous catheter is in place.",
                 "A {side} central venous catheter ends in the vena cava.",
                 "Support device: {side} central venous catheter."),
    "pacemaker": ("A {side} chest pacemaker is in place.", "A {side} sided pacemaker with leads over the heart.",
                  "Support device: {side} pacemaker."),
    "wires": ("Median sternotomy wires are present.", "Sternal wires are seen in the midline.",
              "Support device: sternal wires."),
    "drain": ("A {side} chest tube is in place.", "A {side} sided chest tube is seen.",
              "Support device: {side} chest tube."),
}

# Statements of absence, by topic: (sentence, the labels it names as absent). None is written where one of its labels
# is present.
HEART = (
    ("The heart is normal in size.", ("Cardiomegaly",)),
    ("Heart size is normal.", ("Cardiomegaly",)),
    ("The heart is not enlarged.", ("Cardiomegaly",)),
    ("There is no cardiomegaly.", ("Cardiomegaly",)),
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
    ("There is no displaced rib fracture.", ("Fracture",)),
)
PLEURA = (
    ("The pleural surfaces are smooth.", ("Pleural Other",)),
    ("There is no pleural thickening.", ("Pleural Other",)),
    ("No pleural thickening or plaque.", ("Pleural Other",)),
)
ANGLES = (
    ("The costophrenic angles are sharp.", ("Pleural Effusion",)),
    ("No pleural effusion.", ("Pleural Effusion",)),
    ("There is no pleural effusion on either side.", ("Pleural Effusion",)),
)
VESSELS = (
    ("The pulmonary vessels are normal.", ("Edema",)),
    ("There is no pulmonary edema.", ("Edema",)),
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
    "Lung Opacity": ("opacity", "lung opacity"), "Lung Lesion": ("nodule", "mass", "lung nodule"), "Edema": ("edema",),
    "Consolidation": ("consolidation", "focal consolidation"), "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis",), "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("pleural effusion", "effusion"),
    "Pleural Other": ("pleural thickening",), "Fracture": ("fracture", "rib fracture"),
}
LISTS = ("No {0}.", "There is no {0}.", "No evidence of {0}.", "No {0} is seen.", "The chest is free of {0}.")


def labels_of(findings, negated):
    """The 14 labels of a report that names `findings` as present and the labels in `negated` as absent.

    "No Finding" is 1 where nothing but devices is present, and never 2, as in CheXbert.
    """
    present = {finding.finding for finding in findings}
    labels = [1 if name in present else 2 if name in negated else 0 for name in LABELS]
    labels[LABELS.index("No Finding")] = int(not present - {"Support Devices"})
    return labels


def write_report(findings, dice):
    """(report, labels it names as absent) for findings as drawn; about 4 to 8 sentences in an order that changes."""
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
    wanted = min(max(5 + dice.below(3) - len(positive), 2 + dice.below(2)), 8 - len(positive))
    topics = [[option for option in topic if set(option[1]) <= set(absent)] for topic in TOPICS]
    topics = [topic for topic in dice.shuffled(topics) if topic]
    lists = 1 + dice.below(2)
    while len(statements) < wanted and (topics or lists):
        if lists:
            lists -= 1
            names = [name for name in dice.shuffled(NAMES) if name in absent and name not in negated]
            names = names[:1 + dice.below(3)]
            if names:
                state(dice.pick(LISTS).format(_either([dice.pick(NAMES[name]) for name in names])), names)
        else:
            text, names = dice.pick(topics.pop())
            if not set(names) & negated:
                state(text, names)
    sentences = dice.shuffled(positive + statements) if dice.chance(0.4) else positive + dice.shuffled(statements)
    return " ".join(sentences), negated


def _either(words):
    if len(words) < 3:
        return " or ".join(words)
    return ", ".join(words[:-1]) + ", or " + words[-1]


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
        degree=dice.pick(DEGREE[finding.severity]), size=dice.pick(SIZE[finding.severity]),
        adverb=dice.pick(ADVERB[finding.severity]), round=dice.pick(ROUND[finding.severity]),
        crack=dice.pick(CRACK[finding.severity]),
        side=side, zone=zone, place=_place(side, zone, dice))
    return text[0].upper() + text[1:]


def _place(side, zone, dice):
    if side == "bilateral":
        return dice.pick(("bilateral lower lung zones", "lung bases on both sides"))
    places = [f"{side} {zone} lung zone", f"{side} {zone} lung zone", f"{side} {zone} lung"]
    if zone == "lower":
        places.append(f"{side} lung base")
    return dice.pick(places)
