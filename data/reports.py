"""What is done to a report's text: the labels' order, cleaning, and sentences.

`studies.jsonl` keeps every report as its source wrote it; nothing here runs before training or scoring.
`clean_report` is this project's rule. The three others repeat the published preprocessing of R2Gen and R2GenGPT, slips
included, and exist only so that scores can stand beside rows that were computed on such text.
"""

import re

# CheXbert's order (stanfordmlgroup/CheXbert, src/constants.py). MIMIC-CXR-JPG's csv files are alphabetical instead.
LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)
BLANK, PRESENT, ABSENT, UNCERTAIN = range(4)               # CheXbert's coding of a label

# De-identification marks: runs of underscores (MIMIC-CXR) and of capital X (Open-i), with a possessive glued to them.
MARK = re.compile(r"(?:_{2,}|X{4,})+(?:'[a-z]\b)?")
X_RAY = re.compile(r"\b([xX])-X{4,}")  # Open-i masks the second half of "x-ray"
TITLED_MARK = re.compile(r"\b(?:Drs?|Mrs?|Ms|Prof)\.?\s+(?=_{2,}|X{4,})", re.IGNORECASE)

# "1. Lucency", and "1.Lucency" where the blank was forgotten; never "1.4 cm".
LIST_NUMBER = re.compile(r"(?<![\w.,/])(\d{1,2})[.)],?(?:\s+|(?=[A-Z][a-z]))(?=\S)")
# After these words a number belongs to the sentence: "grade 2. Stable", "the right rib 4. The heart".
NUMBERED = re.compile(
    r"\b(?:ribs?|grade|stage|type|level|class|segment|zone|number|image|[CLST]|and|or|to|of|than|the)$", re.IGNORECASE)

# Abbreviations: the stop after these ends no sentence, and after those only before a capital.
NEVER_LAST = {"dr", "drs", "mr", "mrs", "ms", "prof", "vs", "e.g", "i.e", "eg", "ie", "approx", "st", "fig", "cf"}
LAST_BEFORE_CAPITAL = {"a.m", "p.m", "am", "pm", "cm", "mm", "ml", "cc", "hr", "hrs", "min", "sec", "yr", "yrs", "etc"}
# A stop ends a sentence before white space or the end, and where the blank was forgotten ("effusion.No edema"): never
# inside a number.
STOP = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)|(?<=[a-z]{2})[.!?](?=[A-Z][a-z])")


def clean_report(text):
    """The report as one line of prose, case and punctuation kept: the text to learn from.

    White space becomes one blank; a paragraph that lacks its stop gets one. List numbers and bullets go.
    De-identification marks (`___`, `XXXX`) go, with a title before and the hyphen or slash that tied them to a word,
    and `x-XXXX` becomes `x-ray`. Choice: a mark states nothing about the picture, and a model that has learnt to write
    one invents a redaction. 43 % of Open-i's findings hold a mark, so dropping the whole sentence would cost too much.
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
    """The sentences of a report in order, each cleaned and as written: what stage 1 pairs with a picture.

    Decimals, abbreviations ("Dr.", "a.m.") and list numbers never break or make one. Pieces without a letter (stray
    numbers, marks, lone stops) are dropped. Two-word and one-word sentences stay: "Lungs clear.", "Cardiomegaly.".
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
    """(text without "1." and "2)", the last number dropped).

    A number is one of a list where a sentence may begin, if a capital follows or it goes on counting. Where the stop
    before it was forgotten it must go on counting, on a new line or before a capital; then it leaves a stop behind.
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

    # The stop that takes a dropped number's place is glued to the word before it.
    return re.sub(r"\s+\. ", ". ", LIST_NUMBER.sub(drop, text)), last


def _without_marks(text):
    text = MARK.sub("\0", TITLED_MARK.sub("", X_RAY.sub(r"\1-ray", text)))
    text = re.sub(r"[-/<>]*\0[-/<>]*(?:(?:[aA]-)?\0[-/<>]*)*", "\0", text)  # "XXXX-A-XXXX" was "Port-A-Cath"
    # A sentence that began with a mark begins with what followed it: with a capital, so that "cm." before it ends.
    text = re.sub(r"(^|[.!?]\s+)(\0\s*)+([a-z])", lambda match: match.group(1) + match.group(3).upper(), text)
    text = re.sub(r"\(\W*\0\W*?\)", " ", text).replace("\0", " ")
    text = re.sub(r"\s+(?=[.,;:!?)])", "", " ".join(text.split()))
    text = re.sub(r"([,;:])[,;:]+", r"\1", text)
    text = re.sub(r"[,;:]*([.!?])(?:\s*[.,;])*(?=\s|$)", r"\1", text)
    return re.sub(r"^[.,;:!?)\s]+(?=\D)", "", text).strip()


def clean_r2gen_iu(text):
    """R2Gen's (and R2GenGPT's) text for IU X-Ray, letter for letter: cuhksz-nlp/R2Gen, modules/tokenizers.py.

    Its slips are kept: "T11. No" becomes "t1no", "4.1 cm" "41 cm", "right/left" "rightleft", "" " .".
    """
    return _r2gen_sentences(_r2gen_numbers(_repeat(text, "..", ".", 3)), R2GEN_DELETED)


def clean_r2gen_mimic(text):
    """R2Gen's text for MIMIC-CXR, letter for letter: cuhksz-nlp/R2Gen, modules/tokenizers.py."""
    return _r2gen_sentences(_r2gen_numbers(_r2gen_unwrap(text)), R2GEN_DELETED)


def clean_r2gengpt_mimic(text):
    """R2GenGPT's text for MIMIC-CXR, letter for letter: wang-zhanyu/R2GenGPT, dataset/data_helper.py.

    It differs from R2Gen's in the colon, which becomes a token of its own, and in keeping - < = > @.
    """
    return _r2gen_sentences(_r2gen_numbers(_r2gen_unwrap(text)).replace(":", " :"), R2GENGPT_DELETED)


# In R2Gen's character class ":-\[" is a range: it deletes : ; < = > ? @ A-Z [ and keeps the hyphen.
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
    # The originals mean to drop empty sentences but compare a string with []: they stay.
    pieces = [deleted.sub("", re.sub(r"[\"/\\']", "", piece).strip()) for piece in text.strip().lower().split(". ")]
    return " . ".join(pieces) + " ."
