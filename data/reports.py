"""Text of reports: the order of the labels, cleaning, and splitting into sentences.

`studies.jsonl` keeps every report as in its source; reports are cleaned when they are used, in training and scoring.
`clean_report` is this project's cleaning. `clean_r2gen_iu`, `clean_r2gen_mimic` and `clean_r2gengpt_mimic` repeat the
published preprocessing of R2Gen and R2GenGPT, with its mistakes, only to compare scores with published ones.
"""

import re

# CheXbert's order (stanfordmlgroup/CheXbert, src/constants.py). MIMIC-CXR-JPG's csv files are alphabetical instead.
LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)
BLANK, PRESENT, ABSENT, UNCERTAIN = range(4)               # CheXbert's codes of a label

# De-identification marks: runs of underscores (MIMIC-CXR) and of capital X (Open-i), with a possessive ending.
MARK = re.compile(r"(?:_{2,}|X{4,})+(?:'[a-z]\b)?")
X_RAY = re.compile(r"\b([xX])-X{4,}")  # Open-i masks the second half of "x-ray"
TITLED_MARK = re.compile(r"\b(?:Drs?|Mrs?|Ms|Prof)\.?\s+(?=_{2,}|X{4,})", re.IGNORECASE)

# "1. Lucency", and "1.Lucency" with a missing blank; never "1.4 cm".
LIST_NUMBER = re.compile(r"(?<![\w.,/])(\d{1,2})[.)],?(?:\s+|(?=[A-Z][a-z]))(?=\S)")
# After these words a number is part of the sentence: "grade 2. Stable", "the right rib 4. The heart".
NUMBERED = re.compile(
    r"\b(?:ribs?|grade|stage|type|level|class|segment|zone|number|image|[CLST]|and|or|to|of|than|the)$", re.IGNORECASE)

# Abbreviations: a stop after NEVER_LAST never ends a sentence, a stop after LAST_BEFORE_CAPITAL only before a capital.
NEVER_LAST = {"dr", "drs", "mr", "mrs", "ms", "prof", "vs", "e.g", "i.e", "eg", "ie", "approx", "st", "fig", "cf"}
LAST_BEFORE_CAPITAL = {"a.m", "p.m", "am", "pm", "cm", "mm", "ml", "cc", "hr", "hrs", "min", "sec", "yr", "yrs", "etc"}
# A stop ends a sentence before white space, at the end of the text, and with a missing blank ("effusion.No edema"), but
# never inside a number.
STOP = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)|(?<=[a-z]{2})[.!?](?=[A-Z][a-z])")


def clean_report(text):
    """The report as one line, with case and punctuation kept: the text for training.

    White space becomes one blank; a paragraph without a stop at its end gets one. List numbers and bullets are removed.
    De-identification marks (`___`, `XXXX`) are removed, together with a title before and a hyphen or slash beside them;
    `x-XXXX` becomes `x-ray`. Choice: a mark says nothing about the picture, and a model that learns marks would write
    them into reports. 43 % of Open-i's findings have a mark, so dropping such sentences would lose too much text.
    """
    paragraphs, last = [], 0
    for paragraph in re.split(r"\n[ \t\r]*\n|\n(?=[ \t]*[-*•][ \t])", text.replace("\r\n", "\n")):
        paragraph = re.sub(r"(?m)^\s*[-*•]+\s+(?=\S)", "", paragraph)
        paragraph, last = _without_list_numbers(paragraph, last)
        paragraph = _without_marks(" ".join(paragraph.split()))
        if re.search(r"[^\W_]", paragraph):
            paragraphs.append(paragraph)
    ended = [p if p[-1] in ".!?:;," else p + "." for p in paragraphs[:-1]]
    return " ".join(ended + paragraphs[-1:])


def sentences(text):
    """The sentences of a report, in order, cleaned by `clean_report`. Stage 1 aligns pictures with these sentences.

    Decimals, abbreviations ("Dr.", "a.m.") and list numbers do not end a sentence. Pieces without a letter (stray
    numbers, marks, single stops) are dropped. Short sentences are kept: "Lungs clear.", "Cardiomegaly.".
    """
    text = clean_report(text)
    pieces, start = [], 0
    for stop in STOP.finditer(text):
        rest = text[stop.end():].lstrip()
        word = re.search(r"([\w.]*)$", text[start:stop.start()]).group(1).lower()
        if rest and (word in NEVER_LAST or (word in LAST_BEFORE_CAPITAL and not rest[0].isupper())):
            continue
        pieces.append(text[start:stop.end()].strip())
        start = stop.end()
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if re.search(r"[^\W\d_]", piece)]


def _without_list_numbers(text, last):
    """(text without list numbers such as "1." and "2)", the last number removed); `last`: the last one removed before.

    A number at the start of a sentence is a list number if a capital follows, or if it is the next one in the count.
    Elsewhere (the stop before it is missing) it must be 1 or the next one in the count, and must also have a capital
    after it, a new line before it, or be written "2)"; it is then replaced by a stop.
    """

    def drop(match):
        nonlocal last
        number, after, before = int(match.group(1)), text[match.end()], text[:match.start()]
        new_line, before = before.rstrip(" \t").endswith("\n"), before.rstrip()
        opens = not before or before[-1] in ".:;!?"
        counts, capital = number == last + 1, after.isupper() or after == "_"
        if opens and (counts or capital):
            last = number
            return ""
        clear = capital or new_line or ")" in match.group(0)
        if (counts or number == 1) and clear and before[-1:] not in ",-" and not NUMBERED.search(before):
            last = number
            return ". "
        return match.group(0)

    # A stop that replaces a number is joined to the word before it.
    return re.sub(r"\s+\. ", ". ", LIST_NUMBER.sub(drop, text)), last


def _without_marks(text):
    text = MARK.sub("\0", TITLED_MARK.sub("", X_RAY.sub(r"\1-ray", text)))
    text = re.sub(r"[-/<>]*\0[-/<>]*(?:(?:[aA]-)?\0[-/<>]*)*", "\0", text)  # "XXXX-A-XXXX" was "Port-A-Cath"
    # A sentence that began with a mark gets a capital after it, so that a "cm." before it is recognised as an end.
    text = re.sub(r"(^|[.!?]\s+)(\0\s*)+([a-z])", lambda match: match.group(1) + match.group(3).upper(), text)
    text = re.sub(r"\(\W*\0\W*?\)", " ", text).replace("\0", " ")
    text = re.sub(r"\s+(?=[.,;:!?)])", "", " ".join(text.split()))
    text = re.sub(r"([,;:])[,;:]+", r"\1", text)
    text = re.sub(r"[,;:]*([.!?])(?:\s*[.,;])*(?=\s|$)", r"\1", text)
    return re.sub(r"^[.,;:!?)\s]+(?=\D)", "", text).strip()


def clean_r2gen_iu(text):
    """R2Gen's (and R2GenGPT's) text for IU X-Ray, identical letter by letter. Source: cuhksz-nlp/R2Gen,
    modules/tokenizers.py.

    Its mistakes are kept: "T11. No" becomes "t1no", "4.1 cm" becomes "41 cm", "right/left" "rightleft", and "" " .".
    """
    return _r2gen_sentences(_r2gen_numbers(_repeat(text, "..", ".", 3)), R2GEN_DELETED)


def clean_r2gen_mimic(text):
    """R2Gen's text for MIMIC-CXR, identical letter by letter. Source: cuhksz-nlp/R2Gen, modules/tokenizers.py."""
    return _r2gen_sentences(_r2gen_numbers(_r2gen_unwrap(text)), R2GEN_DELETED)


def clean_r2gengpt_mimic(text):
    """R2GenGPT's text for MIMIC-CXR, identical letter by letter. Source: wang-zhanyu/R2GenGPT, dataset/data_helper.py.

    Unlike in R2Gen's text, a colon becomes a token of its own, and < = > @ are kept.
    """
    return _r2gen_sentences(_r2gen_numbers(_r2gen_unwrap(text)).replace(":", " :"), R2GENGPT_DELETED)


# Trap: in R2Gen's character class ":-\[" is a range, which deletes : ; < = > ? @ A-Z [ and keeps the hyphen.
R2GEN_DELETED = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")
R2GENGPT_DELETED = re.compile(r"[.,?;*!%^&_+()\[\]{}]")


def _repeat(text, old, new, times):
    for _ in range(times):
        text = text.replace(old, new)
    return text


def _r2gen_unwrap(text):
    text = _repeat(text.replace("\n", " "), "__", "_", 7)
    return _repeat(_repeat(text, "  ", " ", 6), "..", ".", 8)


def _r2gen_numbers(text):
    text = text.replace("1. ", "")
    for number in (2, 3, 4, 5):
        text = text.replace(f". {number}. ", ". ")
    for number in (2, 3, 4, 5):
        text = text.replace(f" {number}. ", ". ")
    return text


def _r2gen_sentences(text, deleted):
    # The originals keep empty sentences by mistake: they compare a string with [] to drop them.
    pieces = [deleted.sub("", re.sub(r"[\"/\\']", "", piece).strip()) for piece in text.strip().lower().split(". ")]
    return " . ".join(pieces) + " ."
