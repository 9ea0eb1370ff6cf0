"""Reads findings back from any text in the phantom's language: labels, severity, side and zone.

Rules, not a model, so that a report is scored the same way everywhere. A sentence is searched for mentions; each is
present, absent or uncertain by the words in its own scope, after the way of NegEx: a negation reaches forward to the
next "but", "there is", or new noun phrase, and back from "… is not seen". Over a report present beats uncertain beats
absent, as in the CheXpert labeler.
"""

import re

from data.reports import LABELS

PRESENT, ABSENT, UNCERTAIN = 1, 2, 3
ZONED = {"Lung Opacity", "Lung Lesion", "Consolidation", "Pneumonia", "Atelectasis", "Fracture", "Pleural Other"}
UNPLACED = {"Enlarged Cardiomediastinum", "Cardiomegaly"}

# Words that name a finding. Longer ones first: the earlier match keeps its words.
MENTIONS = [(label, re.compile(rf"\b(?:{words})\b")) for label, words in (
    ("Support Devices", r"support devices?|pacemakers?|pacer|defibrillator|(?:pacemaker|pacing) (?:leads?|wires?)"
                        r"|(?:central )?(?:venous )?(?:catheters?|lines?(?= (?:and|or) (?:tubes?|catheters?|devices?)))|central (?:venous )?lines?"
                        r"|picc(?: lines?)?|(?:endotracheal|tracheostomy|nasogastric|orogastric|feeding|enteric|ng|et|chest|drainage) tubes?"
                        r"|tubes?|ett|drains?|(?:median )?(?:sternotomy|sternal|sternum)(?: cerclage)? wires|wires|sternotomy"),
    ("Pleural Other", r"pleural thickening|thickening of the (?:\w+ ){0,3}pleura|(?:calcified )?(?:pleural )?plaques?"
                      r"|apical caps?|pleural calcifications?|(?:thickened|calcified) (?:\w+ )?pleura"),
    ("Edema", r"(?:o?edema)|(?:pulmonary |vascular |venous )+congestion|(?:heart|cardiac) failure|kerley(?: b)? lines|septal lines"),
    ("Pleural Effusion", r"(?<!pericardial )(?:pleural )?effusions?|pleural fluid|hydrothorax"),
    ("Pneumothorax", r"(?:hydro)?pneumothora(?:x|ces)|ptx"),
    ("Consolidation", r"consolidations?|consolidated|air bronchograms?"),
    ("Pneumonia", r"(?:broncho)?pneumonias?"),
    ("Atelectasis", r"atelecta(?:sis|ses|tic)|volume loss"),
    ("Lung Lesion", r"(?<!bone )(?<!osseous )(?<!bony )(?<!rib )(?<!skin )(?:nodules?|mass(?:es)?(?! effect)|lesions?|tumou?rs?|neoplasms?)"),
    ("Fracture", r"fractures?|fractured|broken ribs?"),
    ("Lung Opacity", r"opacit(?:y|ies)|opacifications?|opacified|infiltrates?|airspace disease|haziness|ground glass"),
    ("Cardiomegaly", r"cardiomegaly"),
    ("Enlarged Cardiomediastinum", r"enlarged cardiomediastin\w+|(?:cardio)?mediastinal (?:widening|enlargement)"),
)]

# Things that are named in health and in disease alike: what is said of them decides.
SUBJECTS = [(labels, re.compile(rf"\b(?:{noun})\b"), re.compile(rf"\b(?:{ill})\b"), re.compile(rf"\b(?:{well})\b"))
            for labels, noun, ill, well in (
    (("Enlarged Cardiomediastinum", "Cardiomegaly"), r"cardiomediastin\w+(?: (?:silhouette|contours?|shadow))?",
     r"enlarged|enlargement|widened|widening|wide|prominent|broad", r"normal|unremarkable"),
    (("Cardiomegaly",), r"hearts?(?: size)?|cardiac (?:silhouette|shadow|contours?|size)",
     r"enlarged|enlargement|large|big|dilated|increased", r"normal|unremarkable"),
    (("Enlarged Cardiomediastinum",), r"mediastin(?:um|al(?: \w+)?)",
     r"enlarged|enlargement|widened|widening|wide|broad|broadened|prominent", r"normal|unremarkable|narrow"),
    (("Pleural Effusion",), r"(?:costophrenic|cp) (?:angles?|sulc(?:us|i))",
     r"blunts?|blunted|blunting|obliterated|obscured", r"sharp|clear|normal|preserved|unremarkable"),
    (("Edema",), r"(?:pulmonary|lung) (?:vascularity|vasculature|vessels)",
     r"congested|engorged|cephalized|indistinct", r"normal|unremarkable|clear"),
    (("Fracture",), r"(?:bones|osseous structures|bony (?:structures|thorax)|ribs?|ribcage|skeleton)",
     r"broken", r"intact|normal|unremarkable"),
    (("Pleural Other",), r"pleura|pleural (?:surfaces?|lining)",
     r"thickening|thickened|thick|calcified", r"smooth|normal|thin|unremarkable"),
    (("Lung Opacity",), r"(?<!right )(?<!left )(?<!rest of the )lungs|(?:right and left|left and right) lungs?",
     r"hazy", r"clear(?! of)|normal|unremarkable"),
)]

SEVERITY = [(name, re.compile(rf"\b(?:{words})\b")) for name, words in (
    ("severe", r"severe|severely|large|larger|marked|markedly|massive|extensive|gross|grossly|substantial|huge"),
    ("moderate", r"moderate|moderately|medium"),
    ("mild", r"mild|mildly|minimal|minimally|small|tiny|slight|slightly|subtle|trace|minor|faint"),
)]
BOTH = re.compile(r"\b(?:bilateral|bilaterally|both|bibasilar|bibasal|biapical|either side|right and (?:the )?left|left and (?:the )?right)\b")
SIDES = (("right", re.compile(r"\bright\b")), ("left", re.compile(r"\bleft\b(?! in place)")))
NO_SIDE = re.compile(r"\b(?:right|left) (?:and left |and right )?(?:heart|cardiac|ventric\w+|atri\w+|hilum|hilar|hemidiaphragm|mediastinal)(?: border| side)?"
                     r"|\b(?:right|left) side of the heart")
ZONES = (("upper", re.compile(r"\b(?:upper|apex|apices|apical|biapical)\b")), ("mid", re.compile(r"\b(?:mid|middle)\b")),
         ("lower", re.compile(r"\b(?:lower|bases?|basal|basilar|bibasilar|bibasal)\b")))

_GRADE = r"(?:small|tiny|mild|mildly|minimal|slight|moderate|moderately|large|severe|severely|marked|markedly|new|right|left|bilateral)"
_THING = (r"(?:heart|cardiac|cardiomediastin\w+|mediastin\w+|lungs|(?:right|left) lung|bones|ribs|costophrenic|pleural surfaces|pulmonary vess\w+|"
          r"chest|trachea)")
BREAKS = re.compile(
    r"\b(?:but|however|although|though|except|apart from|other than|aside from|while|whereas|yet|nevertheless|despite)\b"
    r"|\bthere (?:is|are|was|were|has)\b"
    rf"|\b(?:with|and)\s+(?=(?:an?|the|there)\b|{_GRADE}\b)"
    rf"|,\s*(?:and\s+)?(?=(?:an?|the|there)\b)|,\s*(?={_GRADE}\b(?![^,]*,?\s*\b(?:or|nor)\b))"
    rf"|(?:,|\band|\bor)\s+(?=(?:the )?{_THING}\b(?: \w+){{0,2}} (?:is|are|appears?|remains?)\b)"
    rf"|\s(?=(?:the|both) {_THING}\b(?: \w+){{0,2}} (?:is|are|appears?|shows?|remains?)\b)")

RESTART = re.compile(rf"\s(?:an? |{_GRADE}\b)")

HYPOTHETICAL = re.compile(r"\b(?:evaluate|evaluation|assess|assessment|look|looking|check|checking|indication|history|risk|screening|screen)"
                          r" (?:is )?(?:for|of)\b|\b(?:to )?rule out\b|\br/o\b|\bprophylaxis\b")
NOT_NEGATION = re.compile(
    r"\b(?:no|without|not)(?: (?:a|any|significant|interval|appreciable|substantial|real|much))* "
    r"(?:change|changes|increase|decrease|improvement|worsening|difference|doubt|clearing|resolution|longer subtle|changed|improved|increased|decreased)"
    r"\b(?: (?:in|of|that|to|about))?|\bnot only\b|\b(?:has|have|is|are)? ?not(?: \w+)? (?:resolved|cleared|disappeared|removed)\b|\bunresolved\b|\bnot small\b")
CANNOT_EXCLUDE = re.compile(
    r"\b(?:cannot|can not|could not|not|difficult to|hard to|unable to|never)(?: \w+){0,3} (?:exclude|excluded|rule out|ruled out|dismiss)\b")
DOUBT_BEFORE = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|likely|may|might|could|perhaps|maybe|suspected|suspicion (?:of|for)|suspicious for|"
    r"question(?:able)?(?: of)?|equivocal|concern(?:ing)? for|suggest(?:s|ing|ive of|ed)?|borderline|presumed|versus|vs|unlikely|"
    r"top normal|upper limits? (?:of )?normal)\b|\?")
DOUBT_AFTER = re.compile(
    r"\b(?:(?:is|are|remains?|be) (?:also |less |more |most |very )?(?:possible|probable|likely|suspected|questionable|equivocal|uncertain|unlikely|a possibility|borderline)"
    r"|versus|vs|(?:top|upper limits?(?: of)?) normal|borderline)\b|\?")
NO_BEFORE = re.compile(
    r"\b(?:no|not|without|nor|neither|none|non|free (?:of|from)|clear of|negative for|absence of|lacks?|lacking|never|"
    r"(?:resolution|clearing|disappearance|removal) of|excludes?|rather than|instead of|denies)\b"
    r"|(?<!is )(?<!are )(?<!has )(?<!have )\b(?:absent|resolved|excluded|ruled out)(?: \w+){0,4}$")
NO_AFTER = re.compile(
    r"^(?:[\w ]*?\b)?(?:not|no longer|never|absent|excluded|resolved|ruled out|none|removed|cleared|disappeared|negative|gone|"
    r"nowhere)\b")
VERB = re.compile(r"\b(?:is|are|was|were|has|have|shows?|in|on|at|of|over|with)\b")
PART = re.compile(r"\b(?:otherwise|remaining|remainder|rest|elsewhere|partly|partially|mostly|largely|almost|nearly)\b")
HEALTH = re.compile(r"\b(?:normal|unremarkable|clear|no (?:\w+ ){0,3}(?:findings?|abnormalit(?:y|ies)|disease|process))\b")
DELIMITER = re.compile(r"[,]|\b(?:and|with|or|but|while|plus|as well as)\b")


def label(text):
    """(labels, findings) of any text.

    labels: 14 values in CheXbert's order and coding (0 not named, 1 present, 2 absent, 3 uncertain). findings: one
    {"finding", "severity", "location"} for every label that is present, "No Finding" aside; severity mild, moderate,
    severe or ""; location "", a side (right, left, bilateral), or a side and zone ("right lower zone").
    Choice: "No Finding" wants a word of health or absence; a text that says nothing at all is not a normal report.
    """
    states = {name: 0 for name in LABELS}
    details = {}
    healthy = False
    for sentence in _sentences(text):
        healthy = healthy or bool(HEALTH.search(sentence)) and not re.search(r"\b(?:not|no longer) (?:a )?normal\b", sentence)
        mentions = _mentions(sentence)
        shared = _place(NO_SIDE.sub(" ", sentence))
        for number, (start, end, name, state) in enumerate(mentions):
            states[name] = max(states[name], state, key=(0, ABSENT, UNCERTAIN, PRESENT).index)
            if state == PRESENT:
                severity, place = _modifiers(sentence, mentions, number)
                details.setdefault(name, []).append((severity, place if any(place) else shared))
    named = [states[name] for name in LABELS[:-1]]
    disease = [states[name] for name in LABELS[:-1] if name != "Support Devices"]
    if PRESENT not in disease and UNCERTAIN not in disease and (healthy or ABSENT in named):
        states["No Finding"] = PRESENT
    findings = [{"finding": name, "severity": _worst([s for s, _ in details[name]]) if name != "Support Devices" else "",
                 "location": _joined(name, [place for _, place in details[name]])} for name in LABELS if name in details]
    return [states[name] for name in LABELS], findings


def _sentences(text):
    text = re.sub(r"(?<=\d)\.(?=\d)", "", str(text).lower())
    text = re.sub(r"n['’]t\b", " not", text).replace("cannot", "can not")
    text = re.sub(r":", " is ", re.sub(r"[-–—_/]+", " ", text.replace("r/o", "rule out")))
    text = re.sub(r"\?", " ? . ", text)
    return [" ".join(part.split()) for part in re.split(r"[.;!\n]+", text) if part.strip()]


def _mentions(sentence):
    """[(start, end, label, state)] in order of place."""
    found, taken = [], [False] * len(sentence)
    for name, words in MENTIONS:
        for match in words.finditer(sentence):
            if not any(taken[match.start():match.end()]):
                taken[match.start():match.end()] = [True] * (match.end() - match.start())
                found.append((match.start(), match.end(), name, None))
    for names, noun, ill, well in SUBJECTS:
        for match in noun.finditer(sentence):
            if not any(taken[match.start():match.end()]):
                verdict = _said_of(sentence, match, ill, well, taken)
                if verdict:
                    taken[match.start():match.end()] = [True] * (match.end() - match.start())
                    start, end, sick = verdict
                    for name in names[:1] if sick else names:
                        found.append((start, end, name, None if sick else ABSENT))
    found.sort()
    spans = [(start, end) for start, end, _, _ in found]
    ends = [end for _, end in spans]
    states = [state or _state(sentence, start, end, ends, [s for s in spans if s[0] >= end]) for start, end, _, state in found]
    for number in range(len(found) - 1):
        between = sentence[found[number][1]:found[number + 1][0]]
        pair = states[number:number + 2]
        if re.search(r"\b(?:or|versus|vs)\b", between) and not VERB.search(between.replace("or", "")) and PRESENT in pair \
                and ABSENT not in pair and found[number][2] != found[number + 1][2]:
            states[number:number + 2] = [UNCERTAIN, UNCERTAIN]
    return [(start, end, name, state) for (start, end, name, _), state in zip(found, states) if state]


def _said_of(sentence, noun, ill, well, taken):
    """(start, end, whether ill) of what is said of a subject: the word before it or the nearest after it, else None."""
    lead = " ".join(sentence[:noun.start()].split()[-5:])
    for words, sick in ((ill, True), (well, False)):
        before = re.search(rf"(?:{words.pattern})(?: sized?| in size| appearing)?(?: (?:of|the|upper|both|all|in|a))*$", lead)
        if before and not PART.search(lead):
            start = max(0, noun.start() - 1 - len(before.group(0)))
            if not sick and re.search(r"\b(?:not|no longer)\b", lead):
                return None
            return start, noun.end(), sick
    rest = sentence[noun.end():]
    # "the heart and the mediastinum are normal": a break before any verb only goes on with the list of subjects.
    stop = next((stop.start() for stop in BREAKS.finditer(rest) if VERB.search(rest[:stop.start()])), None)
    rest = " ".join(rest[:stop].split(" ")[:10])
    hits = sorted((match.start(), match.end(), sick) for words, sick in ((ill, True), (well, False))
                  for match in words.finditer(rest))
    for start, end, sick in hits:
        gap = rest[:start]
        if PART.search(gap) or PART.search(rest[end:end + 14]):
            return None
        if any(taken[noun.end() + i] for i in range(start)):
            return None
        if sick:
            return noun.start(), noun.end() + end, True
        if re.search(r"\b(?:not|no longer|never|than|top|limits of)\b", gap):
            return (noun.start(), noun.end() + end, True) if re.search(r"\b(?:top|limits of)\b", gap) else None
        return noun.start(), noun.end() + end, False
    if re.search(r"\bborderline\b|\bupper limits?\b", rest):
        return noun.start(), noun.end(), True
    return None


def _state(sentence, start, end, ends, later):
    breaks = [match for match in BREAKS.finditer(sentence)]
    begin = max((match.end() for match in breaks if match.end() <= start), default=0)
    # A stop was forgotten: "no rib fracture moderate left effusion" begins anew after the first mention.
    begin = max([begin] + [e for e in ends if e <= start and RESTART.match(sentence, e)])
    finish = min((match.start() for match in breaks if match.start() >= end), default=len(sentence))
    before = sentence[begin:end]
    after = sentence[end:finish]
    previous = end
    for next_start, next_end in later:
        if next_start >= finish:
            break
        if VERB.search(sentence[previous:next_start]):
            after = sentence[end:next_start]
            break
        previous = next_end
    own = after
    if HYPOTHETICAL.search(before) and not CANNOT_EXCLUDE.search(before):
        return 0
    if CANNOT_EXCLUDE.search(before) or CANNOT_EXCLUDE.search(own):
        return UNCERTAIN
    doubted = DOUBT_BEFORE.search(before) or DOUBT_AFTER.search(own)
    before, persists = NOT_NEGATION.sub(" ", before), NOT_NEGATION.search(own)
    if NO_BEFORE.search(before) or (NO_AFTER.search(NOT_NEGATION.sub(" ", own).strip()) and not persists):
        return ABSENT
    return UNCERTAIN if doubted else PRESENT


def _modifiers(sentence, mentions, number):
    """Severity and (side, zone) from the words that belong to one mention: up to the delimiters between its neighbours."""
    start, end, name, _ = mentions[number]
    low, high = 0, len(sentence)
    others = [m for m in mentions if m[2] != name]
    previous = max((m[1] for m in others if m[1] <= start), default=None)
    following = min((m[0] for m in others if m[0] >= end), default=None)
    if previous is not None:
        cuts = [m.end() for m in DELIMITER.finditer(sentence, previous, start)]
        low = cuts[0] if cuts else previous
    if following is not None:
        cuts = [m.start() for m in DELIMITER.finditer(sentence, end, following)]
        high = cuts[-1] if cuts else end
    stops = [m for m in BREAKS.finditer(sentence) if m.group().strip() not in ("with", "and", ",", "")]
    low = max([low] + [m.start() for m in stops if low <= m.start() and m.end() <= start])
    high = min([high] + [m.start() for m in stops if m.start() >= end])
    words = NO_SIDE.sub(" ", sentence[low:high])
    return _worst([grade for grade, pattern in SEVERITY if pattern.search(words)]), _place(words)


def _place(words):
    sides = [side for side, pattern in SIDES if pattern.search(words)]
    side = "bilateral" if BOTH.search(words) or len(sides) == 2 else sides[0] if sides else ""
    zones = [zone for zone, pattern in ZONES if pattern.search(words)]
    return side, zones[0] if len(zones) == 1 else ""


def _worst(severities):
    return next((grade for grade, _ in SEVERITY if grade in severities), "")


def _joined(name, places):
    if name in UNPLACED:
        return ""
    sides = {side for side, _ in places if side}
    side = sides.pop() if len(sides) == 1 else "bilateral" if sides else ""
    zones = {zone for _, zone in places if zone}
    zone = zones.pop() if len(zones) == 1 and name in ZONED else ""
    return f"{side} {zone} zone".strip() if zone else side
