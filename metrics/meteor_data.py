"""What METEOR knows of English: where its data files are, how they are read, and the two short word lists it needs.

The full metric needs files of the METEOR 1.5 release, which the package pycocoevalcap ships and this project does not:

    meteor-1.5.jar            a zip; in it synonym/english.synsets and synonym/english.exceptions (WordNet 3.0 licence)
    data/paraphrase-en.gz     5.3 million phrase pairs (LGPL 2.1)

A folder that holds both is found by `find_data`. The jar is read with zipfile, the table as a stream of which only
phrases made of words in the scored texts are kept: that changes no score and keeps a few per cent of it.
"""

import gzip
import re
import sys
import zipfile
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from data.files import UserError

# METEOR counts these as function words: the most frequent ones, by relative frequency in its authors' corpora
# (Denkowski and Lavie 2014, section 3); the list has 93 entries, of which some are punctuation.
FUNCTION_WORDS = frozenset("""the , . to of and a in that for " is on 's it with was as said at he by be from have has
    are his but an this not i will \u2019 they ) -rrb- ( -lrb- who their had we which were been more or s its would
    about new one after you : also up when there than $ all out her people she year two - can if last first \u201c over
    other \u201d into some what so -- no time years could ? 't \u2014 '""".split())

# Words whose dot does not end a sentence when it ends the token (case counts); the second list only before a digit.
NONBREAKING = frozenset("""A B C D E F G H I J K L M N O P Q R S T U V W X Y Z Adj Adm Adv Asst Bart Bldg Brig Bros Capt
    Cmdr Col Comdr Con Corp Cpl DR Dr Drs Ens Gen Gov Hon Hr Hosp Insp Lt MM MR MRS MS Maj Messrs Mlle Mme Mr Mrs Ms
    Msgr Op Ord Pfc Ph Prof Pvt Rep Reps Res Rev Rt Sen Sens Sfc Sgt Sr St Supt Surg v vs i.e rev e.g Nos Nr""".split())
NONBREAKING_BEFORE_DIGIT = frozenset("No Art pp".split())

# How METEOR's normaliser reads characters: what else is set off by blanks.
_ALNUM = "0-9A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f\u0400-\u052f"
_STEPS = [(re.compile(pattern), instead) for pattern, instead in [
    (rf"([^{_ALNUM} .'`,\-\u2018\u2019\u201c\u201d])", r" \1 "),
    (r"(\.{2,})", r" \1 "),
    (r"(?<![0-9]),|,(?![0-9])", " , "),
    (r"[`\u2018\u2019]", "'"), (r"''|[\u201c\u201d]", ' " '), (r"\u2013", "-"), (r"--", "-"),
    (rf"([{_ALNUM}]|[{_ALNUM}]\.|\.)-(\.?[{_ALNUM}])", r"\1 \2"),
    (r"([\W\d_])'([\W\d_])", r"\1 ' \2"), (r"([\W_])'([^\W\d_])", r"\1 ' \2"), (r"([^\W\d_])'([\W\d_])", r"\1 ' \2"),
    (r"([^\W\d_])'([^\W\d_])", r"\1 '\2"), (r"([0-9])'(s)", r"\1 '\2"),
]]


def normalize(text):
    """METEOR's words of one text: punctuation set apart, hyphens between letters dissolved, lower case.

    pycocoevalcap deletes the jar's separator "|||" from a hypothesis and lets one in a reference break the run; here it
    is deleted from both.
    """
    text = " " + re.sub(r"[\x00-\x20\x7f]", " ", text.replace("|||", "")) + " "
    for pattern, instead in _STEPS:
        text = pattern.sub(instead, text)
    if "." not in text:
        return text.lower().split()
    words = re.findall("[^ ]+", text)
    out = []
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else ""
        before = word[:-1]
        if word[-1] != "." or not before.strip("."):
            out.append(word)
        elif "." in before and any(map(str.isalpha, before)):
            out.append(word.replace(".", ""))
        elif (before in NONBREAKING or "a" <= after[:1] <= "z"
              or before in NONBREAKING_BEFORE_DIGIT and after[:1].isdigit()):
            out.append(word)
        else:
            out += [before, "."]
    return " ".join(out).lower().split()


# WordNet's rules of detachment, tried in this order.
_SUFFIXES = [("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
             ("ies", "y"),
             ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""), ("est", ""),
             ("er", "e"), ("est", "e")]

JAR, TABLE = "meteor-1.5.jar", "data/paraphrase-en.gz"
LONGEST_PHRASE = 7
BLOCK = 1 << 22  # bytes of the unpacked table at a time


def find_data(folder=None):
    """The folder with METEOR's jar and paraphrase table: `folder`, or an installed pycocoevalcap's, or None.

    Nothing is imported to find it. Raises UserError where `folder` is given and incomplete.
    """
    if folder is not None:
        folder = Path(folder)
        for place in (folder, folder / "meteor", folder / "pycocoevalcap" / "meteor"):
            if (place / JAR).is_file() and (place / TABLE).is_file():
                return place
        raise UserError(f"{folder}: {JAR} and {TABLE} are not there; name pycocoevalcap's folder 'meteor'")
    for entry in sys.path:
        place = Path(entry or ".") / "pycocoevalcap" / "meteor"
        if (place / JAR).is_file() and (place / TABLE).is_file():
            return place
    return None


def java_hash(word):
    """Java's 32-bit String.hashCode. METEOR compares words by it, so that "t8" equals "rv" and "c5" equals "as"."""
    value = 0
    for unit in memoryview(word.encode("utf-16-le", "surrogatepass")).cast("H"):
        value = (31 * value + unit) & 0xFFFFFFFF
    return value


def _alternating(text):
    lines = text.split("\n")
    return zip(lines[0::2], lines[1::2])


class Lexicon(NamedTuple):
    synonyms: dict  # word → set of words
    paraphrases: dict  # phrase → {paraphrase: its rank in the table}
    phrases: dict  # phrase → whether it stands in the table on either side (False: it only begins one that does)


def _synonyms(jar, vocabulary):
    """Word → the words of `vocabulary` that share a WordNet synset with it, from the jar's files.

    A word's synsets are its own and those of its base form: irregular ones from the exceptions file, otherwise the
    first of WordNet's suffix rules whose result has an entry.
    """
    try:
        with zipfile.ZipFile(jar) as archive:
            synsets = dict(_alternating(archive.read("synonym/english.synsets").decode()))
            bases = defaultdict(list)
            for base, forms in _alternating(archive.read("synonym/english.exceptions").decode()):
                for form in forms.split():
                    bases[form].append(base)
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise UserError(f"{jar}: not METEOR's jar ({error}); take the one that pycocoevalcap installs") from error

    def regular_base(word):
        if word.endswith("ss") or len(word) <= 2:
            return word
        for suffix, instead in _SUFFIXES:
            if word.endswith(suffix) and word[: len(word) - len(suffix)] + instead in synsets:
                return word[: len(word) - len(suffix)] + instead
        return word

    members, own = defaultdict(set), {}
    for word in vocabulary:
        own[word] = {number for form in [word, *(bases[word] if word in bases else [regular_base(word)])]
                     for number in synsets.get(form, "").split()}
        for number in own[word]:
            members[number].add(word)
    return {word: set().union(*(members[number] for number in numbers)) - {word}
            for word, numbers in own.items() if numbers}


def _paraphrases(table, vocabulary):
    """Phrase → {paraphrase: rank} of the table's rows that are made of `vocabulary`'s words alone.

    The table holds three lines a row: probability, phrase, paraphrase.
    """
    known = {word.encode("utf-8", "surrogatepass") for word in vocabulary}      # texts may hold what the table cannot
    kept = defaultdict(dict)

    def made_of_known(phrases):
        return {phrase for phrase in set(phrases) if known.issuperset(phrase.split(b" "))}

    def keep(phrases, others):
        left = made_of_known(phrases)
        rows = [row for row in zip(phrases, others) if row[0] in left]
        right = made_of_known(other for _, other in rows)
        for phrase, other in rows:
            if other in right:
                ranks = kept[phrase.decode()]
                ranks.setdefault(other.decode(), len(ranks))

    try:
        # One thread unpacks the next block while this one sorts out the last.
        with gzip.open(table) as stream, ThreadPoolExecutor(1) as ahead:
            rest, coming = b"", ahead.submit(stream.read, BLOCK)
            while block := coming.result():
                coming = ahead.submit(stream.read, BLOCK)
                lines = (rest + block).split(b"\n")
                whole = (len(lines) - 1) // 3 * 3
                rest = b"\n".join(lines[whole:])
                keep(lines[1:whole:3], lines[2:whole:3])
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{table}: cannot be read as METEOR's paraphrase table ({error}); copy it again") from error
    return dict(kept)


def read_lexicon(folder, texts):
    """The Lexicon for the words of `texts`, read from METEOR's `folder`; None where the folder is None."""
    if folder is None:
        return None
    vocabulary = {word for text in set(texts) for word in normalize(text)}
    table = _paraphrases(folder / TABLE, vocabulary)
    phrases = {}
    for phrase in {*table, *(other for ranks in table.values() for other in ranks)}:
        phrases[phrase] = True
        while " " in phrase:
            phrase = phrase.rpartition(" ")[0]
            phrases.setdefault(phrase, False)
    return Lexicon(_synonyms(folder / JAR, vocabulary), table, phrases)
