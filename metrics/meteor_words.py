"""METEOR 1.5's reading of a text: how it is split into words, the function words, and the hash that compares words."""

import re

# METEOR's function words: the most frequent words of its authors' corpora (Denkowski and Lavie 2014, section 3). The
# list has 93 entries, some of them punctuation.
FUNCTION_WORDS = frozenset("""the , . to of and a in that for " is on 's it with was as said at he by be from have has
    are his but an this not i will \u2019 they ) -rrb- ( -lrb- who their had we which were been more or s its would
    about new one after you : also up when there than $ all out her people she year two - can if last first \u201c over
    other \u201d into some what so -- no time years could ? 't \u2014 '""".split())

# Abbreviations, whose final dot does not end a sentence (case-sensitive); those of the second list only before a digit.
NONBREAKING = frozenset("""A B C D E F G H I J K L M N O P Q R S T U V W X Y Z Adj Adm Adv Asst Bart Bldg Brig Bros Capt
    Cmdr Col Comdr Con Corp Cpl DR Dr Drs Ens Gen Gov Hon Hr Hosp Insp Lt MM MR MRS MS Maj Messrs Mlle Mme Mr Mrs Ms
    Msgr Op Ord Pfc Ph Prof Pvt Rep Reps Res Rev Rt Sen Sens Sfc Sgt Sr St Supt Surg v vs i.e rev e.g Nos Nr""".split())
NONBREAKING_BEFORE_DIGIT = frozenset("No Art pp".split())

# The steps by which METEOR's normaliser separates words. _ALNUM: the characters that it treats as letters and digits.
_ALNUM = "0-9A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f\u0400-\u052f"
_STEPS = [(re.compile(pattern), instead) for pattern, instead in [
    (rf"([^{_ALNUM} .'`,\-\u2018\u2019\u201c\u201d])", r" \1 "),         # a/b → a / b
    (r"(\.{2,})", r" \1 "),                                              # a... → a ...
    (r"(?<![0-9]),|,(?![0-9])", " , "),                                  # a,b → a , b, but 3,4
    (r"[`\u2018\u2019]", "'"), (r"''|[\u201c\u201d]", ' " '),            # one kind of quotation marks
    (r"\u2013", "-"), (r"--", "-"),                                      # and of dashes
    (rf"([{_ALNUM}]|[{_ALNUM}]\.|\.)-(\.?[{_ALNUM}])", r"\1 \2"),        # t8-t9 → t8 t9
    (r"([\W\d_])'([\W\d_])", r"\1 ' \2"),                                # 5' . → 5 ' .
    (r"([\W_])'([^\W\d_])", r"\1 ' \2"),                                 # 's → ' s
    (r"([^\W\d_])'([\W\d_])", r"\1 ' \2"),                               # ribs' → ribs '
    (r"([^\W\d_])'([^\W\d_])", r"\1 '\2"),                               # don't → don 't
    (r"([0-9])'(s)", r"\1 '\2"),                                         # 1990's → 1990 's
]]


def normalize(text):
    """One text → the list of METEOR's words: punctuation separated, hyphens between letters removed, lower case.

    pycocoevalcap deletes the jar's separator "|||" from a hypothesis only, and fails if a reference contains it; here
    it is deleted from both.
    """
    text = " " + re.sub(r"[\x00-\x20\x7f]", " ", text.replace("|||", "")) + " "
    for pattern, instead in _STEPS:
        text = pattern.sub(instead, text)
    if "." not in text:
        return text.lower().split()

    # A final dot is a word of its own, unless it belongs to an abbreviation or the sentence continues.
    words = re.findall("[^ ]+", text)
    parted = []
    for word, after in zip(words, [*words[1:], ""]):
        before = word[:-1]
        if word[-1] != "." or not before.strip("."):
            parted.append(word)
        elif "." in before and any(map(str.isalpha, before)):
            parted.append(word.replace(".", ""))                             # u.s. → us
        elif (before in NONBREAKING or "a" <= after[:1] <= "z"
              or before in NONBREAKING_BEFORE_DIGIT and after[:1].isdigit()):
            parted.append(word)
        else:
            parted += [before, "."]
    return " ".join(parted).lower().split()


def java_hash(word):
    """Java's 32-bit String.hashCode. METEOR compares words by this hash, so "t8" equals "rv" and "c5" equals "as"."""
    value = 0
    for unit in memoryview(word.encode("utf-16-le", "surrogatepass")).cast("H"):
        value = (31 * value + unit) & 0xFFFFFFFF
    return value
