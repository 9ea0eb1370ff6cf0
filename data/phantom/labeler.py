"""Extracts findings from texts in the phantom's language: labels, severity, side and zone.

The labeler has rules and no trained model, so that a report gets the same labels everywhere. It searches each sentence
for mentions of findings. The words in a mention's scope decide whether it is present, absent or uncertain, as in NegEx:
a negation applies up to the next "but", "there is" or new noun phrase; "… is not seen" applies to the words before it.
If a report has several mentions of a finding, present is stronger than uncertain, and uncertain is stronger than
absent, as in the CheXpert labeler.
"""

import re
from typing import NamedTuple

from data.reports import ABSENT, BLANK, LABELS, PRESENT, UNCERTAIN

ZONED = {"Lung Opacity", "Lung Lesion", "Consolidation", "Pneumonia", "Atelectasis", "Fracture", "Pleural Other"}
UNPLACED = {"Enlarged Cardiomediastinum", "Cardiomegaly"}


def _words(*alternatives):
    """A pattern that matches any of the alternatives (regular expressions) as whole words."""
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b")


# Words that name a finding. Longer names come first, since words that a match has used are not matched again.
MENTIONS = (
    ("Support Devices", _words(
        r"support devices?", r"(?:pacemaker|pacing) (?:leads?|wires?)", r"pacemakers?", r"pacer", r"defibrillator",
        r"(?:central )?(?:venous )?catheters?", r"central (?:venous )?lines?", r"picc(?: lines?)?",
        r"lines?(?= (?:and|or) (?:tubes?|catheters?|devices?))",
        r"(?:endotracheal|tracheostomy|nasogastric|orogastric|feeding|enteric|ng|et|chest|drainage) tubes?",
        r"tubes?", r"ett", r"drains?", r"(?:median )?(?:sternotomy|sternal)(?: cerclage)? wires", r"wires",
        r"sternotomy")),
    ("Pleural Other", _words(
        r"pleural thickening", r"thickening of the (?:\w+ ){0,3}pleura", r"(?:calcified )?(?:pleural )?plaques?",
        r"apical caps?", r"pleural calcifications?", r"(?:thickened|calcified) (?:\w+ )?pleura")),
    ("Edema", _words(
        r"o?edema", r"(?:pulmonary |vascular |venous )+congestion", r"(?:heart|cardiac) failure",
        r"(?:kerley(?: b)?|septal) lines")),
    ("Pleural Effusion", _words(r"(?<!pericardial )(?:pleural )?effusions?", r"pleural fluid", r"hydrothorax")),
    ("Pneumothorax", _words(r"(?:hydro)?pneumothora(?:x|ces)", r"ptx")),
    ("Consolidation", _words(r"consolidations?", r"consolidated", r"air bronchograms?")),
    ("Pneumonia", _words(r"(?:broncho)?pneumonias?")),
    ("Atelectasis", _words(r"atelecta(?:sis|ses|tic)", r"volume loss")),
    ("Lung Lesion", _words(
        r"(?<!bone )(?<!osseous )(?<!bony )(?<!rib )(?<!skin )"
        r"(?:nodules?|mass(?:es)?(?! effect)|lesions?|tumou?rs?|neoplasms?)")),
    ("Fracture", _words(r"fractures?", r"fractured", r"broken ribs?")),
    ("Lung Opacity", _words(
        r"opacit(?:y|ies)", r"opacifications?", r"opacified", r"infiltrates?", r"airspace disease", r"haziness",
        r"ground glass")),
    ("Cardiomegaly", _words(r"cardiomegaly")),
    ("Enlarged Cardiomediastinum", _words(
        r"enlarged cardiomediastin\w+", r"(?:cardio)?mediastinal (?:widening|enlargement)")),
)

# Structures that both normal and abnormal reports name: (labels, names of the structure, words for abnormal, words for
# normal). If the structure is called abnormal, the first label is present; if normal, all labels are absent.
SUBJECTS = (
    (("Enlarged Cardiomediastinum", "Cardiomegaly"), _words(r"cardiomediastin\w+(?: (?:silhouette|contours?|shadow))?"),
     _words("enlarged|enlargement|widened|widening|wide|prominent|broad"), _words("normal|unremarkable")),
    (("Cardiomegaly",), _words(r"hearts?(?: size)?|cardiac (?:silhouette|shadow|contours?|size)"),
     _words("enlarged|enlargement|large|big|dilated|increased"), _words("normal|unremarkable")),
    (("Enlarged Cardiomediastinum",), _words(r"mediastin(?:um|al(?: \w+)?)"),
     _words("enlarged|enlargement|widened|widening|wide|broad|prominent"), _words("normal|unremarkable|narrow")),
    (("Pleural Effusion",), _words(r"(?:costophrenic|cp) (?:angles?|sulc(?:us|i))"),
     _words("blunts?|blunted|blunting|obliterated|obscured"), _words("sharp|clear|normal|preserved|unremarkable")),
    (("Edema",), _words(r"(?:pulmonary|lung) (?:vascularity|vasculature|vessels)"),
     _words("congested|engorged|cephalized|indistinct"), _words("normal|unremarkable|clear")),
    (("Fracture",), _words(r"bones|osseous structures|bony (?:structures|thorax)|ribs?|ribcage|skeleton"),
     _words("broken"), _words("intact|normal|unremarkable")),
    (("Pleural Other",), _words(r"pleura|pleural (?:surfaces?|lining)"),
     _words("thickening|thickened|thick|calcified"), _words("smooth|normal|thin|unremarkable")),
    (("Lung Opacity",), _words(r"(?<!right )(?<!left )(?<!rest of the )lungs|(?:right and left|left and right) lungs?"),
     _words("hazy"), _words("clear(?! of)|normal|unremarkable")),
)

SEVERITY = (
    ("severe", _words("severe|severely|large|larger|marked|markedly|massive|extensive|gross|grossly|substantial|huge")),
    ("moderate", _words("moderate|moderately|medium")),
    ("mild", _words("mild|mildly|minimal|minimally|small|tiny|slight|slightly|subtle|trace|minor|faint")),
)
BOTH = _words("bilateral|bilaterally|both|bibasilar|bibasal|biapical|either side",
              "right and (?:the )?left|left and (?:the )?right")
SIDES = (("right", _words("right")), ("left", _words("left(?! in place)")))
# Words that contain a side, but do not locate a finding: "in the right ventricle".
NO_SIDE = _words(
    r"(?:right|left) (?:and left |and right )?"
    r"(?:heart|cardiac|ventric\w+|atri\w+|hilum|hilar|hemidiaphragm|mediastinal)"
    r"(?: border| side)?", r"(?:right|left) side of the heart")
ZONES = (("upper", _words("upper|apex|apices|apical|biapical")), ("mid", _words("mid|middle")),
         ("lower", _words("lower|bases?|basal|basilar|bibasilar|bibasal")))

# BREAKS: where a new statement begins, and the scope of a negation or a doubt ends.
_GRADE = (r"(?:small|tiny|mild|mildly|minimal|slight|moderate|moderately|large|severe|severely|marked|markedly|new"
          r"|right|left|bilateral)")
_THING = (r"(?:heart|cardiac|cardiomediastin\w+|mediastin\w+|lungs|(?:right|left) lung|bones|ribs|costophrenic"
          r"|pleural surfaces|pulmonary vess\w+|chest|trachea)")
BREAKS = re.compile("|".join((
    r"\b(?:but|however|although|though|except|apart from|other than|aside from|while|whereas|yet|despite)\b",
    r"\bthere (?:is|are|was|were|has)\b",
    rf"\b(?:with|and)\s+(?=(?:an?|the|there)\b|{_GRADE}\b)",
    # ", small …" begins a new statement, except within a list: "no pneumothorax, small effusion, or mass".
    rf",\s*(?:and\s+)?(?=(?:an?|the|there)\b)|,\s*(?={_GRADE}\b(?![^,]*,?\s*\b(?:or|nor)\b))",
    rf"(?:,|\band|\bor)\s+(?=(?:the )?{_THING}\b(?: \w+){{0,2}} (?:is|are|appears?|remains?)\b)",
    rf"\s(?=(?:the|both) {_THING}\b(?: \w+){{0,2}} (?:is|are|appears?|shows?|remains?)\b)")))
RESTART = re.compile(rf"\s(?:an? |{_GRADE}\b)")

HYPOTHETICAL = _words(
    "(?:evaluate|evaluation|assess|assessment|look|looking|check|checking|indication|history|risk) (?:for|of)",
    "rule out", "prophylaxis")
NOT_NEGATION = _words(
    "(?:no|without|not)(?: (?:a|any|significant|interval|appreciable|substantial|real|much))* (?:change|changes"
    "|increase|decrease|improvement|worsening|difference|doubt|clearing|resolution|changed|improved|increased"
    "|decreased)"
    "(?: (?:in|of|that|to|about))?",
    "not only", r"not(?: \w+)? (?:resolved|cleared|disappeared|removed)", "unresolved")
CANNOT_EXCLUDE = _words(
    r"(?:can not|could not|not|difficult to|hard to|unable to|never)(?: \w+){0,3} "
    r"(?:excluded?|rule out|ruled out|dismiss)")
_NORMAL_LIMIT = "top normal|upper limits? (?:of )?normal|borderline"
DOUBT_BEFORE = re.compile(_words(
    "possibl[ey]|probabl[ey]|likely|may|might|could|perhaps|maybe|presumed|versus|vs|unlikely|equivocal",
    "suspected|suspicion (?:of|for)|suspicious for|questionable|question of|concern(?:ing)? for",
    "suggest(?:s|ing|ive of|ed)?", _NORMAL_LIMIT).pattern + r"|\?")
DOUBT_AFTER = re.compile(_words(
    "(?:is|are|remains?|be) (?:also |less |more |most |very )?(?:possible|probable|likely|suspected|questionable"
    "|equivocal|uncertain|unlikely|a possibility)", "versus|vs", _NORMAL_LIMIT).pattern + r"|\?")
NO_BEFORE = re.compile(_words(
    "no|not|without|nor|neither|none|non|never|free (?:of|from)|clear of|negative for|absence of|lacks?|lacking",
    "(?:resolution|clearing|disappearance|removal) of|excludes?|rather than|instead of|denies").pattern
    + r"|(?<!is )(?<!are )(?<!has )(?<!have )\b(?:absent|resolved|excluded|ruled out)(?: \w+){0,4}$")
NO_AFTER = re.compile(
    r"^(?:[\w ]*?\b)?(?:not|no longer|never|absent|excluded|resolved|ruled out|none|removed|cleared|disappeared"
    r"|negative|gone|nowhere)\b")
VERB = _words("is|are|was|were|has|have|shows?|in|on|at|of|over|with")
PART = _words("otherwise|remaining|remainder|rest|elsewhere|partly|partially|mostly|largely|almost|nearly")
_OR, _NOT, _LIMIT = _words("or|versus|vs"), _words("not|no longer|never"), _words(_NORMAL_LIMIT)
DELIMITER = re.compile(r",|\b(?:and|with|or|but|while|plus|as well as)\b")
HEALTH = re.compile(r"(?<!not )(?<!not a )(?<!no longer )\b(?:normal|unremarkable|clear)\b"
                    r"|\bno (?:\w+ ){0,3}(?:findings?|abnormalit(?:y|ies)|disease|process)\b")
DISEASE = re.compile(r"(?<!no )(?<!not )(?<!nothing )\babnormal\b")


def label(text):
    """(labels, findings) of a text.

    labels: 14 values in CheXbert's order and coding (0 not named, 1 present, 2 absent, 3 uncertain). findings: one
    {"finding", "severity", "location"} for every label that is present, except "No Finding". The severity is mild,
    moderate, severe or ""; the location is "", a side (right, left, bilateral), or side and zone ("right lower zone").
    Choice: "No Finding" is present only if the text calls something normal or a finding absent. A text that says
    nothing is not a normal report.
    """
    states = {name: BLANK for name in LABELS}
    details = {}
    healthy = diseased = False
    for sentence in _sentences(text):
        healthy = healthy or bool(HEALTH.search(sentence))
        diseased = diseased or bool(DISEASE.search(sentence))
        mentions = _mentions(sentence)
        shared = _place(NO_SIDE.sub(" ", sentence))
        for mention in mentions:
            name = mention.label
            states[name] = max(states[name], mention.state, key=(BLANK, ABSENT, UNCERTAIN, PRESENT).index)
            if mention.state == PRESENT:
                severity, place = _modifiers(sentence, mentions, mention)
                details.setdefault(name, []).append((severity, place if any(place) else shared))
    diseased = diseased or any(states[name] in (PRESENT, UNCERTAIN) for name in LABELS if name != "Support Devices")
    if not diseased and (healthy or ABSENT in states.values()):
        states["No Finding"] = PRESENT
    findings = []
    for name in [name for name in LABELS if name in details]:
        severities, places = zip(*details[name])
        severity = "" if name == "Support Devices" else _worst(severities)
        findings.append({"finding": name, "severity": severity, "location": _joined(name, places)})
    return [states[name] for name in LABELS], findings


def _sentences(text):
    text = re.sub(r"(?<=\d)\.(?=\d)", "", str(text).lower())
    text = re.sub(r"n['’]t\b", " not", text).replace("cannot", "can not")
    text = re.sub(r":", " is ", re.sub(r"[-–—_/]+", " ", text.replace("r/o", "rule out")))
    text = re.sub(r"\?", " ? . ", text)
    return [" ".join(part.split()) for part in re.split(r"[.;!\n]+", text) if part.strip()]


class Mention(NamedTuple):
    """A place (start, end) where a sentence names a label, and the label's state there (None: not yet decided)."""

    start: int
    end: int
    label: str
    state: int | None


def _mentions(sentence):
    """The sentence's mentions in order, each with the state present, absent or uncertain."""
    found, taken = [], [False] * len(sentence)

    def free_matches(words):
        for match in words.finditer(sentence):
            if not any(taken[match.start():match.end()]):
                yield match

    def take(match):
        taken[match.start():match.end()] = [True] * (match.end() - match.start())

    for name, words in MENTIONS:
        for match in free_matches(words):
            take(match)
            found.append(Mention(match.start(), match.end(), name, None))
    for names, thing, ill, well in SUBJECTS:
        for match in free_matches(thing):
            verdict = _said_of(sentence, match, ill, well, taken)
            if verdict:
                take(match)
                start, end, sick = verdict
                for name in names[:1] if sick else names:
                    found.append(Mention(start, end, name, None if sick else ABSENT))
    found.sort(key=lambda mention: mention[:2])
    found = [mention._replace(state=mention.state or _state(sentence, mention, found)) for mention in found]
    return [mention for mention in _alternatives(sentence, found) if mention.state]


def _alternatives(sentence, found):
    """Makes alternatives uncertain: "atelectasis or pneumonia at the left base" states neither of them for sure."""
    for number, (one, other) in enumerate(zip(found, found[1:])):
        between = sentence[one.end:other.start]
        if (_OR.search(between) and not VERB.search(between) and one.label != other.label
                and {one.state, other.state} <= {PRESENT, UNCERTAIN}):
            found[number:number + 2] = [one._replace(state=UNCERTAIN), other._replace(state=UNCERTAIN)]
    return found


def _said_of(sentence, thing, ill, well, taken):
    """What a sentence says of a structure, the match `thing`: (start, end, whether abnormal), or None for nothing.

    ill, well: patterns of words for abnormal and normal. They are searched directly before the structure, then after
    it, where the nearest one decides. taken: whether a mention has used a character already.
    """
    lead = " ".join(sentence[:thing.start()].split()[-5:])
    for words, sick in ((ill, True), (well, False)):
        before = re.search(rf"(?:{words.pattern})(?: sized?| in size)?(?: (?:of|the|upper|both|all|in|a))*$", lead)
        if before and not PART.search(lead):
            if not sick and _NOT.search(lead):
                return None
            return max(0, thing.start() - 1 - len(before.group())), thing.end(), sick

    rest = sentence[thing.end():]
    # A break before the first verb only continues a list: "the heart and the mediastinum are normal".
    stop = next((stop.start() for stop in BREAKS.finditer(rest) if VERB.search(rest[:stop.start()])), None)
    rest = " ".join(rest[:stop].split(" ")[:10])
    hits = [(match, sick) for words, sick in ((ill, True), (well, False)) for match in words.finditer(rest)]
    if not hits:
        return (thing.start(), thing.end(), True) if _LIMIT.search(rest) else None
    match, sick = min(hits, key=lambda hit: hit[0].start())
    gap = rest[:match.start()]
    if PART.search(gap) or PART.search(rest[match.end():match.end() + 14]):
        return None
    if any(taken[thing.end():thing.end() + match.start()]):
        return None
    if not sick and _LIMIT.search(rest):
        sick = True  # "top normal in size": abnormal, and made uncertain by `_state`
    elif not sick and _NOT.search(gap):
        return None
    return thing.start(), thing.end() + match.end(), sick


def _state(sentence, mention, found):
    """PRESENT, ABSENT or UNCERTAIN, by the words within the mention's scope; 0 if the sentence only asks for it."""
    breaks = list(BREAKS.finditer(sentence))
    begin = max((stop.end() for stop in breaks if stop.end() <= mention.start), default=0)
    # With a missing stop a new statement begins after an earlier mention: "no rib fracture moderate left effusion".
    begin = max([begin] + [m.end for m in found if m.end <= mention.start and RESTART.match(sentence, m.end)])
    finish = min((stop.start() for stop in breaks if stop.start() >= mention.end), default=len(sentence))
    # "… not seen" applies to a list before it ("effusion and edema are not seen"), but not to another statement.
    previous = mention.end
    for other in found:
        if mention.end <= other.start < finish:
            if VERB.search(sentence[previous:other.start]):
                finish = other.start
            previous = other.end
    before, after = sentence[begin:mention.end], sentence[mention.end:finish]

    if CANNOT_EXCLUDE.search(before) or CANNOT_EXCLUDE.search(after):
        return UNCERTAIN
    if HYPOTHETICAL.search(before):
        return 0
    if NO_BEFORE.search(NOT_NEGATION.sub(" ", before)):
        return ABSENT
    if NO_AFTER.search(after.strip()) and not NOT_NEGATION.search(after):
        return ABSENT
    return UNCERTAIN if DOUBT_BEFORE.search(before) or DOUBT_AFTER.search(after) else PRESENT


def _modifiers(sentence, mentions, mention):
    """(severity, (side, zone)) from the words that belong to one mention: those between the words of its neighbours."""
    low, high = 0, len(sentence)
    others = [other for other in mentions if other.label != mention.label]
    previous = max((other.end for other in others if other.end <= mention.start), default=None)
    following = min((other.start for other in others if other.start >= mention.end), default=None)
    if previous is not None:
        low = next((cut.end() for cut in DELIMITER.finditer(sentence, previous, mention.start)), previous)
    if following is not None:
        cuts = [cut.start() for cut in DELIMITER.finditer(sentence, mention.end, following)]
        high = cuts[-1] if cuts else mention.end
    for stop in BREAKS.finditer(sentence):
        if stop.group().strip() not in ("with", "and", ",", ""):
            if low <= stop.start() and stop.end() <= mention.start:
                low = stop.start()
            elif mention.end <= stop.start() < high:
                high = stop.start()
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
