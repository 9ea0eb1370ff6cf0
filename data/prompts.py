"""The words by which diseases are asked for: the clue prompts of stage 2 and the prompt pairs of zero-shot recognition.

§2.2 gives the template "Clue: <severity> <disease> at <location>" and no lists. Choice: every disease has its own
hand-written severities and locations, after the idea of GLoRIA's prompt bank (which knows five diseases, and neither
"Clue:" nor a location for most). The first severity and the first location are the most general, so that
`prompts_per_disease=1`, the paper's literal form, names no side that the picture may contradict.
"""

from collections import Counter

from data.reports import LABELS, PRESENT

READ = 20_000       # distinct sentences that a labeler is asked about; rarer ones are no wording of the reports' own

_SIZE = ("", "small", "moderate", "large")
_GRADE = ("", "mild", "moderate", "severe")
_SIDES = ("the right lung", "the left lung", "both lungs")
_ZONES = tuple(f"the {side} {zone} lung zone" for zone in ("lower", "mid", "upper") for side in ("right", "left"))

# disease → (the words in the sentence, severities, locations); an empty word drops out together with its "at".
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
    """"Clue: <severity> <disease> at <location>" (§2.2). "No Finding" and devices have wordings of their own."""
    if words == "no finding":
        return "Clue: no finding, the lungs are clear and the heart is normal"
    if words == "support device":
        return f"Clue: {severity or words} in place"
    return " ".join(f"Clue: {severity} {words} at {location}".split())


def clue_prompts(prompts_per_disease=None):
    """[[distinct prompts] per disease], in CheXbert's order; None and 0 are the whole bank, 1 the paper's form.

    The general prompt stands first; the others name a severity and a location, where the disease has any.
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
    """[[prompt, …] per disease] → all prompts, and the disease that each asks for, by its number."""
    pairs = [(text, disease) for disease, texts in enumerate(bank) for text in texts]
    return [text for text, _ in pairs], [disease for _, disease in pairs]


def clue_sentences(reports, label, most=64):
    """The reports' own sentences as clue prompts: one list per disease, in CheXbert's order, as `clue_prompts` gives.

    reports: lists of sentences. label(texts) → 14 labels per text, in CheXbert's coding. A disease gets the sentences
    that name it as present, the most frequent first, at most `most` of them; "No Finding" those that name nothing else,
    present or absent. A disease that no sentence names keeps its prompts from `clue_prompts`.
    """
    counts = Counter(sentence for report in reports for sentence in report)
    texts = sorted(counts, key=counts.get, reverse=True)[:READ]                     # stable: the first among equals
    bank = [[] for _ in LABELS]
    for text, labels in zip(texts, label(texts)):
        named = [i for i, value in enumerate(labels) if value]
        for i in named:
            if labels[i] == PRESENT and (LABELS[i] != "No Finding" or len(named) == 1) and len(bank[i]) < most:
                bank[i].append(text)
    return [sentences or prompts for sentences, prompts in zip(bank, clue_prompts())]


def zero_shot_pairs():
    """(positive, negative) prompt per disease, "{disease}" / "no {disease}" as CheXzero asks.

    Trap: "no finding" has a pair of its own; "no no finding" would turn its AUROC upside down.
    """
    pairs = [(CLUES[disease][0], f"no {CLUES[disease][0]}") for disease in LABELS]
    pairs[LABELS.index("No Finding")] = ("no finding", "abnormal")
    return pairs
