"""METEOR 1.5: words aligned as exact, stem, synonym or paraphrase matches, scored by precision, recall and chunk order.

Denkowski and Lavie 2014, as the jar in pycocoevalcap 1.2 computes it (`-l en -norm`, task "rank"). Written from its
described and observed behaviour. With P and R the weighted shares of matched words (modules 1, .6, .8, .6; content
words .75, function words .25) and `chunks` the number of runs matched in the same order on both sides:

    Fmean = 1 / ((1 - α) / P + α / R),  fragmentation = chunks / mean number of matched words,
    METEOR = Fmean · (1 - γ · fragmentation^β),  α = .85, β = .2, γ = .6;  all matched in one chunk: no penalty

Without the data files the modules are exact and stem only: the jar's `-m "exact stem"`. That score is called
"METEOR (exact+stem)" everywhere, because it is another number: 1 % to 10 % lower.

What has to be copied to get the jar's numbers
- Words are compared by Java's 32-bit hash, in which some radiology tokens collide ("t8" = "rv", "c5" = "as").
- The beam search (40 paths, stable sort) counts matches in integers: a one-word stem, synonym or paraphrase match
  adds nothing.
- A chosen match's distance is added to the path it was copied from, so that later copies and the skip carry it.
- The corpus value comes from summed statistics and is not the mean of the items. The chunk of an item that is wholly
  matched in one chunk is not added.
- With several references the one with the best item score counts, the first on a tie.
"""

from collections import defaultdict
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from metrics.meteor_data import LONGEST_PHRASE, find_data, read_lexicon
from metrics.meteor_words import FUNCTION_WORDS, java_hash, normalize
from metrics.stemmer import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MODULE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
BEAM = 40
# Paths are ordered by more matched words, then fewer chunks, then smaller distance: three fields of one integer.
CHUNK, MATCHED = 1 << 32, 1 << 52


class Match(NamedTuple):
    """Words of the reference that stand for words of the hypothesis: start and number of both, and how they match."""

    start: int
    length: int
    hypothesis_start: int
    hypothesis_length: int
    module: int


@lru_cache(maxsize=1 << 17)
def _codes(word):
    return java_hash(word), java_hash(stem(word))


def _places(keys):
    places = defaultdict(list)
    for i, key in enumerate(keys):
        places[key].append(i)
    return places


def _exact_matches(hypothesis_codes, reference_codes):
    places = _places(code for code, _ in hypothesis_codes)
    return [[Match(j, 1, i, 1, EXACT) for i in places.get(code, ())] for j, (code, _) in enumerate(reference_codes)]


def _stem_matches(hypothesis_codes, reference_codes):
    places = _places(stem_code for _, stem_code in hypothesis_codes)
    return [[Match(j, 1, i, 1, STEM) for i in places.get(stem_code, ()) if hypothesis_codes[i][0] != code]
            for j, (code, stem_code) in enumerate(reference_codes)]


def _synonym_matches(hypothesis, hypothesis_codes, reference, reference_codes, lexicon):
    places = _places(hypothesis)
    lexicon.add_words(places)
    lexicon.add_words(reference)
    matches = []
    for j, (word, (code, _)) in enumerate(zip(reference, reference_codes)):
        near = sorted(i for other in lexicon.synonyms[word] if other in places for i in places[other])
        matches.append([Match(j, 1, i, 1, SYNONYM) for i in near if hypothesis_codes[i][0] != code])
    return matches


def _paraphrases(source, target, lexicon):
    """Yields (start, length, start in the target, length there) of the table's rows with their phrase in the source.

    Ordered by the place of the phrase, its length, the table's order of its paraphrases, and their places.
    """
    places = _places(target)
    for start, phrase in enumerate(source):
        for length in range(1, LONGEST_PHRASE + 1):
            if phrase in lexicon.phrases:
                rows = lexicon.paraphrases(phrase)
                for _, words in sorted(row for first in rows.keys() & places.keys() for row in rows[first]):
                    for place in places[words[0]]:
                        if target[place : place + len(words)] == words:
                            yield start, length, place, len(words)
            if phrase not in lexicon.beginnings or start + length == len(source):
                break
            phrase = f"{phrase} {source[start + length]}"


def _paraphrase_matches(hypothesis, reference, lexicon):
    """The matches of the table's rows: first those with their phrase in the reference, then in the hypothesis."""
    matches = [[] for _ in reference]
    for j, n, i, m in _paraphrases(reference, hypothesis, lexicon):
        matches[j].append(Match(j, n, i, m, PARAPHRASE))
    for i, m, j, n in _paraphrases(hypothesis, reference, lexicon):
        matches[j].append(Match(j, n, i, m, PARAPHRASE))
    return matches


def _matches(hypothesis, reference, lexicon):
    """Per word of the reference the matches that start there, in the order of the modules."""
    codes, reference_codes = [_codes(word) for word in hypothesis], [_codes(word) for word in reference]
    modules = [_exact_matches(codes, reference_codes)]
    if [code for code, _ in codes] != [code for code, _ in reference_codes]:  # equal texts have exact matches alone
        modules.append(_stem_matches(codes, reference_codes))
        if lexicon:
            modules.append(_synonym_matches(hypothesis, codes, reference, reference_codes, lexicon))
            modules.append(_paraphrase_matches(hypothesis, reference, lexicon))
    return [sum(of_word, []) for of_word in zip(*modules)]


def _fixed(matches, hypothesis_length):
    """Per word of the reference the match that needs no search: the only one there, of words no other match touches."""
    touched, touched_in_hypothesis = [0] * len(matches), [0] * hypothesis_length
    for of_word in matches:
        for j, n, i, m, _ in of_word:
            for place in range(j, j + n):
                touched[place] += 1
            for place in range(i, i + m):
                touched_in_hypothesis[place] += 1

    def alone(match):
        j, n, i, m, _ = match
        return all(count == 1 for count in touched[j : j + n] + touched_in_hypothesis[i : i + m])

    return [of_word[0] if len(of_word) == 1 and alone(of_word[0]) else None for of_word in matches]


def _gain(match):
    """What a match subtracts from a path's order. Added length by length in integers: half a word is nothing."""
    _, n, _, m, module = match
    return -MATCHED * (n + m if module == EXACT else n // 2 + m // 2)


# An alignment up to some word of the reference is a path, a plain tuple, since there are a thousand of them per text:
#   order           the smaller, the better
#   used            words of the hypothesis that it matches, as bits
#   end             of its last match in the reference
#   hypothesis_end  of the same in the hypothesis; -1 when its chunk is closed
#   chain           (the chain of the matches before, the last match), or None
START = (0, 0, 0, -1, None)


def _align(matches, hypothesis_length):
    """The best path's matches, by a beam search from left to right over the words of the reference."""
    paths = [START]
    for j, (of_word, fixed) in enumerate(zip(matches, _fixed(matches, hypothesis_length))):
        # The beam: the stable sort decides between equal paths as METEOR's does.
        paths.sort(key=itemgetter(0))
        del paths[BEAM:]
        if fixed:
            paths = _follow(paths, fixed)
        elif of_word:
            paths = _branch(paths, j, of_word)
        else:
            paths = [(order + CHUNK, used, end, -1, chain) if hypothesis_end >= 0 and end <= j else path
                     for path in paths for order, used, end, hypothesis_end, chain in (path,)]

    # The last step's paths, too, are cut to the beam, and that before their open chunks count.
    paths.sort(key=itemgetter(0))
    del paths[BEAM:]
    *_, chain = min(paths, key=lambda path: path[0] + CHUNK if path[3] >= 0 else path[0])

    # The chain holds the last match first.
    chosen = []
    while chain:
        chain, match = chain
        chosen.append(match)
    return chosen[::-1]


def _follow(paths, match):
    """The paths with a match that is in all of them."""
    j, n, i, m, _ = match
    step = _gain(match) + abs(j - i)
    return [(order + step + (CHUNK if hypothesis_end >= 0 and hypothesis_end != i else 0), used, j + n, i + m,
             (chain, match)) for order, used, _, hypothesis_end, chain in paths]


def _branch(paths, j, of_word):
    """Every path with each of the matches at word j of the reference that it has room for, and without any."""
    steps = [(((1 << m) - 1) << i, _gain(match), abs(j - i), i, i + m, j + n, match)
             for match in of_word for _, n, i, m, _ in (match,)]
    best_gain = min(gain for _, gain, *_ in steps)
    limit, grown = None, []
    for path in paths:
        order, used, end, hypothesis_end, chain = path
        if end > j:  # inside its last match
            grown.append(path)
            continue

        # Orders only grow below: once 40 paths are ahead of all that is still possible here, nothing more can survive.
        if len(grown) >= 2 * BEAM:
            grown.sort(key=itemgetter(0))
            del grown[BEAM:]
            limit = grown[-1][0]

        # The trap: a match's distance is added to the path it is copied from, so that later copies and the path without
        # a match carry it.
        for bits, gain, distance, i, new_hypothesis_end, new_end, match in steps:
            if limit is not None and order + best_gain >= limit:
                break
            if not used & bits:
                chunk = CHUNK if hypothesis_end >= 0 and hypothesis_end != i else 0
                grown.append((order + gain + chunk, used | bits, new_end, new_hypothesis_end, (chain, match)))
                order += distance
        else:
            grown.append((order + CHUNK if hypothesis_end >= 0 else order, used, end, -1, chain))
    return grown


# Columns of the statistics: words and function words of the hypothesis and of the reference, then per module matched
# content and function words of either side, then chunks and matched words of either side.
COLUMNS = 4 + 4 * 4 + 3


def _pair_statistics(hypothesis, reference, lexicon):
    function, function_in_reference = ([word in FUNCTION_WORDS for word in words] for words in (hypothesis, reference))
    lengths = [len(hypothesis), len(reference)]
    by_module = [[0, 0, 0, 0] for _ in MODULE_WEIGHTS]
    chunks, matched, last = 0, [0, 0], None
    for j, n, i, m, module in _align(_matches(hypothesis, reference, lexicon), len(hypothesis)):
        functions = sum(function[i : i + m]), sum(function_in_reference[j : j + n])
        counts = m - functions[0], n - functions[1], *functions
        by_module[module] = [a + b for a, b in zip(by_module[module], counts)]

        # A chunk goes on where both sides go on.
        chunks += last != (j, i)
        matched = [matched[0] + m, matched[1] + n]
        last = j + n, i + m

    if chunks == 1 and matched == lengths:
        chunks = 0
    return [*lengths, sum(function), sum(function_in_reference), *sum(by_module, []), chunks, *matched]


def meteor_from(summed):
    """METEOR (...) of summed statistics (..., 23)."""
    summed = np.asarray(summed, dtype=np.float64)
    words, functions, by_module, chunks, matched = np.split(summed, [2, 4, 20, 21], axis=-1)
    total = DELTA * (words - functions) + (1 - DELTA) * functions
    by_module = by_module.reshape(*summed.shape[:-1], 4, 4)
    weighted = DELTA * by_module[..., :2] + (1 - DELTA) * by_module[..., 2:]
    weighted = (MODULE_WEIGHTS[:, None] * weighted).sum(-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted / total, -1, 0)
        fmean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        fragmentation = chunks[..., 0] / (matched.sum(-1) / 2)
        return np.nan_to_num(fmean * (1 - GAMMA * fragmentation**BETA), nan=0.0)


def meteor_statistics(hypotheses, references, lexicon=None):
    """(N, 23), per item against its best reference. They add up; `lexicon` (None: exact and stem) is read_lexicon's."""
    rows = []
    for hypothesis, of_item in zip(hypotheses, references, strict=True):
        words = normalize(hypothesis)
        against = [_pair_statistics(words, normalize(reference), lexicon) for reference in of_item]
        rows.append(against[int(np.argmax(meteor_from(against)))] if len(against) > 1 else against[0])
    return np.array(rows, dtype=np.float64).reshape(-1, COLUMNS)


def meteor(hypotheses, references, data=None):
    """(list of token strings, list of lists of token strings) → (corpus value, item values).

    `data` is METEOR's folder (see metrics/meteor_data.py), None to look for an installed pycocoevalcap, False for none:
    then, and where nothing is found, the value is the one to be called "METEOR (exact+stem)".
    """
    lexicon = read_lexicon(None if data is False else find_data(data))
    statistics = meteor_statistics(hypotheses, references, lexicon)
    return float(meteor_from(statistics.sum(0))), meteor_from(statistics).tolist()
