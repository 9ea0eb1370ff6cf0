"""The English Snowball stemmer ("Porter2"), in the version that METEOR 1.5 contains: word → stem.

Written from the published description of the algorithm (M. Porter, snowballstem.org/algorithms/english), in its form
before the 2023 revision. Gives the stems of snowballstemmer 2.2 "english". Its versions from 3.0 on, nltk's stemmer and
the first Porter stemmer differ on ordinary medical words (radiologist, adding, cardiologist).
"""

from functools import lru_cache

_VOWELS = frozenset("aeiouy")
_DOUBLES = frozenset("bb dd ff gg mm nn pp rr tt".split())
_LI = frozenset("cdeghkmnrt")
_EXCEPTIONS = {
    "skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "idly": "idl", "gently": "gentl",
    "ugly": "ugli", "early": "earli", "only": "onli", "singly": "singl", "sky": "sky", "news": "news", "howe": "howe",
    "atlas": "atlas", "cosmos": "cosmos", "bias": "bias", "andes": "andes",
}
_LEFT_ALONE_AFTER_1A = frozenset("inning outing canning herring earring proceed exceed succeed".split())
_STEP_2 = {
    "tional": "tion", "enci": "ence", "anci": "ance", "abli": "able", "entli": "ent", "izer": "ize", "ization": "ize",
    "ational": "ate", "ation": "ate", "ator": "ate", "alism": "al", "aliti": "al", "alli": "al", "fulness": "ful",
    "ousli": "ous", "ousness": "ous", "iveness": "ive", "iviti": "ive", "biliti": "ble", "bli": "ble", "ogi": "og",
    "fulli": "ful", "lessli": "less", "li": "",
}
_STEP_3 = {
    "tional": "tion", "ational": "ate", "alize": "al", "icate": "ic", "iciti": "ic", "ical": "ic", "ful": "",
    "ness": "", "ative": "",
}
_STEP_4 = "al ance ence er ic able ible ant ement ment ent ism ate iti ous ive ize ion".split()


def _longest(word, endings):
    """The longest of `endings` that the word ends in, of at most seven letters; None if there is none."""
    for length in range(min(7, len(word)), 0, -1):
        if word[-length:] in endings:
            return word[-length:]
    return None


def _region(word, start):
    """The index after the first non-vowel that follows a vowel, searched from `start` on."""
    for i in range(start + 1, len(word)):
        if word[i] not in _VOWELS and word[i - 1] in _VOWELS:
            return i + 1
    return len(word)


def _ends_in_short_syllable(word):
    if len(word) == 2:
        return word[0] in _VOWELS and word[1] not in _VOWELS
    return (len(word) > 2 and word[-1] not in _VOWELS and word[-1] not in "wxY" and word[-2] in _VOWELS
            and word[-3] not in _VOWELS)


def _step_1a(word):
    ending = _longest(word, ("sses", "ied", "ies", "us", "ss", "s"))
    if ending == "sses":
        return word[:-2]
    if ending in ("ied", "ies"):
        return word[:-2] if len(word) > 4 else word[:-1]
    if ending == "s" and any(letter in _VOWELS for letter in word[:-2]):
        return word[:-1]
    return word


def _step_1b(word, r1):
    ending = _longest(word, ("eed", "eedly", "ed", "edly", "ing", "ingly"))
    if ending in ("eed", "eedly"):
        return word[: -len(ending)] + "ee" if len(word) - len(ending) >= r1 else word
    if ending is None or not any(letter in _VOWELS for letter in word[: -len(ending)]):
        return word
    word = word[: -len(ending)]
    if word[-2:] in ("at", "bl", "iz"):
        return word + "e"
    if word[-2:] in _DOUBLES:
        return word[:-1]
    return word + "e" if len(word) <= r1 and _ends_in_short_syllable(word) else word


def _step_2(word, r1):
    ending = _longest(word, _STEP_2)
    if ending is None or len(word) - len(ending) < r1:
        return word
    before = word[: -len(ending)]
    if ending == "ogi" and before[-1:] != "l" or ending == "li" and before[-1:] not in _LI:
        return word
    return before + _STEP_2[ending]


def _step_3(word, r1, r2):
    ending = _longest(word, _STEP_3)
    if ending is None or len(word) - len(ending) < (r2 if ending == "ative" else r1):
        return word
    return word[: -len(ending)] + _STEP_3[ending]


def _step_4(word, r2):
    ending = _longest(word, _STEP_4)
    if ending is None or len(word) - len(ending) < r2 or ending == "ion" and word[-4:-3] not in ("s", "t"):
        return word
    return word[: -len(ending)]


def _step_5(word, r1, r2):
    last = len(word) - 1
    if word[-1:] == "e" and (last >= r2 or last >= r1 and not _ends_in_short_syllable(word[:-1])):
        return word[:-1]
    return word[:-1] if word[-2:] == "ll" and last >= r2 else word


@lru_cache(maxsize=1 << 17)
def stem(word):
    """The stem of one lower-case word."""
    if word in _EXCEPTIONS:
        return _EXCEPTIONS[word]
    if len(word) <= 2:
        return word
    word = word.removeprefix("'")

    # A y that is a consonant, at the start or after a vowel, is written Y.
    letters = list(word)
    for i, letter in enumerate(letters):
        if letter == "y" and (i == 0 or letters[i - 1] in _VOWELS):
            letters[i] = "Y"
    word = "".join(letters)

    # The regions in which an ending must lie to be removed: r1 begins after the first syllable, r2 after the second.
    r1 = next((len(start) for start in ("gener", "commun", "arsen") if word.startswith(start)), None)
    r1 = _region(word, 0) if r1 is None else r1
    r2 = _region(word, r1)

    # Step 0, the possessive; then the other steps in order, which end after step 1a for a few words.
    for ending in ("'s'", "'s", "'"):
        if word.endswith(ending):
            word = word[: -len(ending)]
            break
    word = _step_1a(word)
    if word in _LEFT_ALONE_AFTER_1A:
        return word.replace("Y", "y")
    word = _step_1b(word, r1)

    # Step 1c: a final y after a consonant that is not the first letter.
    if len(word) > 2 and word[-1] in "yY" and word[-2] not in _VOWELS:
        word = word[:-1] + "i"
    word = _step_2(word, r1)
    word = _step_3(word, r1, r2)
    word = _step_4(word, r2)
    return _step_5(word, r1, r2).replace("Y", "y")
