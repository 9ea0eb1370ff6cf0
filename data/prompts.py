"""The prompts that name diseases: the clue prompts of stage 2, and the prompt pairs of zero-shot recognition.

§2.2 gives the template "Clue: <severity> <disease> at <location>", but no lists of severities and locations. Choice:
every disease has its own hand-written lists, like GLoRIA's prompt bank (which has only five diseases, no "Clue:" and
hardly any locations). The first severity and the first location are the most general, so that the only prompt of
`prompts_per_disease=1`, the paper's literal form, names no side that the picture may contradict.
"""

from collections import Counter

from data.reports import LABELS, PRESENT

READ = 20_000       # number of distinct sentences to label, the most frequent ones; rarer ones are hardly typical

_SIZE = ("", "small", "moderate", "large")
_GRADE = ("", "mild", "moderate", "severe")
_SIDES = ("the right lung", "the left lung", "both lungs")
_ZONES = tuple(f"the {side} {zone} lung zone" for zone in ("lower", "mid", "upper") for side in ("right", "left"))

# disease → (its words in the prompt, severities, locations); an empty severity is left out of the prompt
CLUES = {
    "Enlarged Cardiomediastinum": ("enlarged cardiomediastinum", _GRADE, ("the mediastinum",)),
    "Cardiomegaly": ("cardiomegaly", _GRADE, ("the heart",)),
    "Lung Opacity": ("lung opacity", _GRADE, ("the lungs", *_ZONES)),
    "Lung Lesion": ("lung nodule", _SIZE, ("the lungs", *_ZONES)),
    "Edema": ("pulmonary edema", _GRADE, ("both lungs",)),
    "Consolidation": ("consolidation", _GRADE, ("the lungs", *_ZONES)),
    "Pneumonia": ("pneumonia", _GRADE, ("the lungs", *_ZONES)),
    "Atelectasis": ("atelectasis", _GRADE, ("the lungs", *_ZONES, "the bilateral lower lung zones")),
    "Pneumothorax": ("pneumothorax", _SIZE, ("the pleural space", "the right apex", "the left apex")),
    "Pleural Effusion": ("pleural effusion", _SIZE, ("the lung bases", "the right lung base", "the left lung base",
                                                     "both lung bases")),
    "Pleural Other": ("pleural thickening", _GRADE, ("the pleura", "the right chest wall", "the left chest wall")),
    "Fracture": ("rib fracture", ("", "subtle", "moderately displaced", "severely displaced"),
                 ("the ribs", *(f"the {side} {zone} ribs"
                                for zone in ("lower", "mid", "upper") for side in ("right", "left")))),
    "Support Devices": ("support device", ("", "central venous catheter", "endotracheal tube", "pacemaker"),
                        ("the chest",)),
    "No Finding": ("no finding", ("",), ("the chest",)),
}


def clue_prompt(severity, words, location):
    """"Clue: <severity> <disease> at <location>" (§2.2). "No Finding" and "Support Devices" have their own form."""
    if words == "no finding":
        return "Clue: no finding, the lungs are clear and the heart is normal"
    if words == "support device":
        return f"Clue: {severity or words} in place"
    return " ".join(f"Clue: {severity} {words} at {location}".split())


def clue_prompts(prompts_per_disease=None):
    """[[prompt, …] per disease], in CheXbert's order and without repetitions.

    A list has at most `prompts_per_disease` prompts: 1 is the paper's literal form, None or 0 means all. The first
    prompt is the general one; the others name a severity and a location, if the disease has any.
    """
    bank = []
    for disease in LABELS:
        words, severities, locations = CLUES[disease]
        specific = [clue_prompt(severity, words, location) for location in locations[1:] or locations
                    for severity in severities[1:] or severities]
        general = clue_prompt(severities[0], words, locations[0])
        bank.append(list(dict.fromkeys([general, *specific]))[:prompts_per_disease or None])
    return bank


def flattened(bank):
    """[[prompt, …] per disease] → ([prompt, …] of all diseases, [number of each prompt's disease])."""
    pairs = [(text, disease) for disease, texts in enumerate(bank) for text in texts]
    return [text for text, _ in pairs], [disease for _, disease in pairs]


def clue_sentences(reports, label, most=64):
    """Sentences of the reports as clue prompts: [[sentence, …] per disease], in CheXbert's order, like `clue_prompts`.

    reports: one list of sentences per report. label(texts) → 14 labels per text, in CheXbert's coding. A disease gets
    the sentences that name it as present, the most frequent first, at most `most`. "No Finding" gets only sentences
    that name no other disease, neither as present nor as absent. A disease that no sentence names as present keeps the
    prompts of `clue_prompts`.
    """
    counts = Counter(sentence for report in reports for sentence in report)
    texts = sorted(counts, key=counts.get, reverse=True)[:READ]                     # equal counts: in order of reading
    bank = [[] for _ in LABELS]
    for text, labels in zip(texts, label(texts)):
        named = [i for i, value in enumerate(labels) if value]
        for i in named:
            if labels[i] == PRESENT and (LABELS[i] != "No Finding" or len(named) == 1) and len(bank[i]) < most:
                bank[i].append(text)
    return [sentences or prompts for sentences, prompts in zip(bank, clue_prompts())]


def zero_shot_pairs():
    """[(positive, negative) prompt per disease]: "{disease}" and "no {disease}", as in CheXzero.

    Trap: "no finding" has a pair of its own; with "no no finding" its AUROC would be inverted.
    """
    pairs = [(CLUES[disease][0], f"no {CLUES[disease][0]}") for disease in LABELS]
    pairs[LABELS.index("No Finding")] = ("no finding", "abnormal")
    return pairs
