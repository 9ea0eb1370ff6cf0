"""METEOR's data files: where they are found, and the synonyms and paraphrases in them.

The full metric needs files of the METEOR 1.5 release. The package pycocoevalcap contains them; this project does not:

    meteor-1.5.jar            a zip; in it synonym/english.synsets and synonym/english.exceptions (WordNet 3.0 licence)
    data/paraphrase-en.gz     5.3 million phrase pairs (LGPL 2.1)

`find_data` finds a folder with both files. They are read once per process, which takes 3 seconds and 0.2 GB.
"""

import gzip
import sys
import zipfile
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from data.files import UserError

JAR, TABLE = "meteor-1.5.jar", "data/paraphrase-en.gz"
LONGEST_PHRASE = 7
BLOCK = 1 << 22  # bytes of the unpacked table at a time

# WordNet's rules of detachment, tried in this order.
_SUFFIXES = [("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
             ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""),
             ("est", ""), ("er", "e"), ("est", "e")]


def find_data(folder=None):
    """The folder with METEOR's jar and paraphrase table, in `folder` or else in an installed pycocoevalcap; or None.

    pycocoevalcap is not imported. Raises UserError if `folder` is given and incomplete.
    """
    if folder is not None:
        folder = Path(folder)
        for place in (folder, folder / "meteor", folder / "pycocoevalcap" / "meteor"):
            if (place / JAR).is_file() and (place / TABLE).is_file():
                return place
        raise UserError(f"{folder}: lacks {JAR} or {TABLE}; give pycocoevalcap's folder 'meteor'")
    for entry in sys.path:
        place = Path(entry or ".") / "pycocoevalcap" / "meteor"
        if (place / JAR).is_file() and (place / TABLE).is_file():
            return place
    return None


class Lexicon:
    """Synonyms of words and paraphrases of phrases, from METEOR's two files. Raises UserError, naming the file."""

    def __init__(self, jar, table):
        self._sets, self._bases = _read_synsets(jar)
        self._rows = _read_paraphrases(table)
        self.phrases = self._rows.keys()  # all phrases with paraphrases
        # The first words of longer phrases.
        self.beginnings = {" ".join(words[:n]) for words in map(str.split, self.phrases) for n in range(1, len(words))}
        self.synonyms = {}  # added word → the added words that share a synset with it
        self._members = defaultdict(set)  # synset → the added words in it

    def add_words(self, words):
        """Adds a text's words to `synonyms`, which grows with the vocabulary of the texts."""
        for word in words:
            if word not in self.synonyms:
                synsets = self._synsets(word)
                self.synonyms[word] = set().union(*(self._members[synset] for synset in synsets))
                for other in self.synonyms[word]:
                    self.synonyms[other].add(word)
                for synset in synsets:
                    self._members[synset].add(word)

    def _synsets(self, word):
        """The WordNet synsets of a word and of its base forms, as a set of numbers.

        Irregular base forms are in the exceptions file; a regular one is the result of the first suffix rule of WordNet
        that gives a word with an entry.
        """
        forms = [word, *self._bases.get(word, (self._regular_base(word),))]
        return {number for form in forms for number in self._sets.get(form, "").split()}

    def _regular_base(self, word):
        if word.endswith("ss") or len(word) <= 2:
            return word
        for suffix, instead in _SUFFIXES:
            base = word.removesuffix(suffix) + instead
            if word.endswith(suffix) and base in self._sets:
                return base
        return word

    def paraphrases(self, phrase):
        """The paraphrases of one of `phrases`: {first word: [(rank in the table, list of words), …]}."""
        return _by_first_word(self._rows[phrase])


@lru_cache(maxsize=1 << 16)
def _by_first_word(rows):
    by_first = defaultdict(list)
    for rank, phrase in enumerate(dict.fromkeys(rows.decode("utf-8", "replace").split("\n"))):
        words = phrase.split(" ")
        by_first[words[0]].append((rank, words))
    return dict(by_first)


@lru_cache(maxsize=1)
def _lexicon(folder):
    return Lexicon(folder / JAR, folder / TABLE)


def read_lexicon(folder):
    """The Lexicon of METEOR's `folder`, read once per process; None if the folder is None. Raises UserError."""
    return None if folder is None else _lexicon(Path(folder).resolve())


def _read_synsets(jar):
    """The jar's two word lists: ({word: numbers of its synsets, as one text}, {irregular form: [base forms]})."""
    def alternating(text):
        lines = text.split("\n")
        return zip(lines[0::2], lines[1::2])

    try:
        with zipfile.ZipFile(jar) as archive:
            sets = dict(alternating(archive.read("synonym/english.synsets").decode()))
            bases = defaultdict(list)
            for base, forms in alternating(archive.read("synonym/english.exceptions").decode()):
                for form in forms.split():
                    bases[form].append(base)
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise UserError(f"{jar}: not METEOR's jar ({error}); use the jar that pycocoevalcap installs") from error
    return sets, dict(bases)


def _read_paraphrases(table):
    """{phrase: its paraphrases, one per line, as bytes}. As bytes, 5 million phrases take 0.2 GB, as strings 1 GB.

    The table holds three lines per row: probability, phrase, paraphrase. Rows of one phrase are mostly adjacent.
    """
    paraphrases = {}

    def keep(phrases, others):
        starts = [0, *(i for i in range(1, len(phrases)) if phrases[i] != phrases[i - 1]), len(phrases)]
        for start, end in zip(starts, starts[1:]):
            phrase, rows = phrases[start].decode("utf-8", "replace"), b"\n".join(others[start:end])
            paraphrases[phrase] = paraphrases[phrase] + b"\n" + rows if phrase in paraphrases else rows

    try:
        # A second thread unpacks the next block while this thread sorts the current one.
        with gzip.open(table) as stream, ThreadPoolExecutor(1) as ahead:
            rest, coming = b"", ahead.submit(stream.read, BLOCK)
            while block := coming.result():
                coming = ahead.submit(stream.read, BLOCK)
                lines = (rest + block).split(b"\n")
                whole = (len(lines) - 1) // 3 * 3
                rest = b"\n".join(lines[whole:])
                if whole:
                    keep(lines[1:whole:3], lines[2:whole:3])
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{table}: cannot be read as METEOR's paraphrase table ({error}); copy it again") from error
    return paraphrases
