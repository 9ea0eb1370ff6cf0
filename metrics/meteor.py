"""METEOR 1.5: words aligned as exact, stem, synonym or paraphrase matches, scored by precision, recall and chunk order.

Denkowski and Lavie 2014, as the jar in pycocoevalcap 1.2 computes it (`-l en -norm`, task "rank"). Written from the
jar's described and observed behaviour. P and R are the weighted shares of matched words (weights: the four kinds of
match, called modules, 1, .6, .8, .6; content words .75, function words .25). `chunks` is the number of runs of matched
words that are contiguous and in the same order on both sides:

    Fmean = 1 / ((1 - α) / P + α / R),  fragmentation = chunks / mean number of matched words,
    METEOR = Fmean · (1 - γ · fragmentation^β),  α = .85, β = .2, γ = .6;  all matched in one chunk: no penalty

Without the data files only exact and stem matches are found, as with the jar's `-m "exact stem"`. This score is called
"METEOR (exact+stem)" everywhere, because it is a different number: 1 % to 10 % lower.

What has to be copied to get the jar's numbers
- Words are compared by Java's 32-bit hash, in which some radiology tokens collide ("t8" = "rv", "c5" = "as").
- The beam search (40 paths, stable sort) counts matches in integers: a one-word stem, synonym or paraphrase match
  adds nothing.
- A match's distance is also added to the path that was extended by the match, so later extensions of the path, and the
  path without a match, include the distance.
- The corpus value comes from summed statistics; it is not the mean of the items' values. If an item is matched
  completely in one chunk, this chunk is not counted.
- Of several references, the one with the best item score counts, the first on a tie.
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
    """A run of words in the reference and its match in the hypothesis: starts, lengths, and the kind of match."""

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
    """Yields (start, length, start in the target, length there) of phrases in `source` with a paraphrase in `target`.

    Ordered by the phrase's place and length, the paraphrase's rank in the table, and the paraphrase's place.
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
    """Paraphrase matches: first of phrases in the reference, then of phrases in the hypothesis."""
    matches = [[] for _ in reference]
    for j, n, i, m in _paraphrases(reference, hypothesis, lexicon):
        matches[j].append(Match(j, n, i, m, PARAPHRASE))
    for i, m, j, n in _paraphrases(hypothesis, reference, lexicon):
        matches[j].append(Match(j, n, i, m, PARAPHRASE))
    return matches


def _matches(hypothesis, reference, lexicon):
    """For each word of the reference, the matches that start there, in the order of the modules."""
    codes, reference_codes = [_codes(word) for word in hypothesis], [_codes(word) for word in reference]
    modules = [_exact_matches(codes, reference_codes)]
    if [code for code, _ in codes] != [code for code, _ in reference_codes]:  # equal texts have exact matches only
        modules.append(_stem_matches(codes, reference_codes))
        if lexicon:
            modules.append(_synonym_matches(hypothesis, codes, reference, reference_codes, lexicon))
            modules.append(_paraphrase_matches(hypothesis, reference, lexicon))
    return [sum(of_word, []) for of_word in zip(*modules)]


def _fixed(matches, hypothesis_length):
    """For each word of the reference, its match if no other match contains any of the match's words; else None."""
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
    """A match's (negative) contribution to a path's order. Both lengths are halved as integers: half a word is 0."""
    _, n, _, m, module = match
    return -MATCHED * (n + m if module == EXACT else n // 2 + m // 2)


# A path is an alignment up to some word of the reference; a plain tuple, because a text has about a thousand paths:
#   order           the smaller, the better
#   used            matched words of the hypothesis, as bits
#   end             end of the last match in the reference
#   hypothesis_end  end of the last match in the hypothesis; -1 if its chunk is closed
#   chain           (the chain of the earlier matches, the last match), or None
START = (0, 0, 0, -1, None)


def _align(matches, hypothesis_length):
    """The best path's matches, by a beam search from left to right over the words of the reference."""
    paths = [START]
    for j, (of_word, fixed) in enumerate(zip(matches, _fixed(matches, hypothesis_length))):
        # The beam: a stable sort, so that equal paths keep the order they have in METEOR.
        paths.sort(key=itemgetter(0))
        del paths[BEAM:]
        if fixed:
            paths = _follow(paths, fixed)
        elif of_word:
            paths = _branch(paths, j, of_word)
        else:
            paths = [(order + CHUNK, used, end, -1, chain) if hypothesis_end >= 0 and end <= j else path
                     for path in paths for order, used, end, hypothesis_end, chain in (path,)]

    # The paths of the last step are cut to the beam as well, before their open chunks are counted.
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
    """All paths, each extended by the same match."""
    j, n, i, m, _ = match
    step = _gain(match) + abs(j - i)
    return [(order + step + (CHUNK if hypothesis_end >= 0 and hypothesis_end != i else 0), used, j + n, i + m,
             (chain, match)) for order, used, _, hypothesis_end, chain in paths]


def _branch(paths, j, of_word):
    """Each path extended by each match at word j of the reference whose words are free, and each path without one."""
    steps = [(((1 << m) - 1) << i, _gain(match), abs(j - i), i, i + m, j + n, match)
             for match in of_word for _, n, i, m, _ in (match,)]
    best_gain = min(gain for _, gain, *_ in steps)
    limit, grown = None, []
    for path in paths:
        order, used, end, hypothesis_end, chain = path
        if end > j:  # inside its last match
            grown.append(path)
            continue

        # Orders only grow below: as soon as 40 paths are better than all that can still come, the rest cannot survive.
        if len(grown) >= 2 * BEAM:
            grown.sort(key=itemgetter(0))
            del grown[BEAM:]
            limit = grown[-1][0]

        # The trap: a match's distance is also added to the path that is extended, so later extensions and the path
        # without a match include the distance.
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


# Columns of the statistics, each for hypothesis and reference: words; function words; per module, matched content words
# and matched function words. Then chunks, and matched words for hypothesis and reference.
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

        # A match that continues the previous one on both sides is in the same chunk.
        chunks += last != (j, i)
        matched = [matched[0] + m, matched[1] + n]
        last = j + n, i + m

    if chunks == 1 and matched == lengths:
        chunks = 0
    return [*lengths, sum(function), sum(function_in_reference), *sum(by_module, []), chunks, *matched]


def meteor_from(summed):
    """Summed statistics (..., 23) → METEOR (...)."""
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
    """(N, 23): the statistics of each item against its best reference, whose sums give the corpus value.

    `lexicon`: the result of read_lexicon; None: exact and stem matches only.
    """
    rows = []
    for hypothesis, of_item in zip(hypotheses, references, strict=True):
        words = normalize(hypothesis)
        against = [_pair_statistics(words, normalize(reference), lexicon) for reference in of_item]
        rows.append(against[int(np.argmax(meteor_from(against)))] if len(against) > 1 else against[0])
    return np.array(rows, dtype=np.float64).reshape(-1, COLUMNS)


def meteor(hypotheses, references, data=None):
    """(list of token strings, list of lists of token strings) → (corpus value, item values).

    `data`: METEOR's folder (see metrics/meteor_data.py); None looks for an installed pycocoevalcap, False does without.
    Without data the value must be called "METEOR (exact+stem)". Raises UserError for an incomplete folder.
    """
    lexicon = read_lexicon(None if data is False else find_data(data))
    statistics = meteor_statistics(hypotheses, references, lexicon)
    return float(meteor_from(statistics.sum(0))), meteor_from(statistics).tolist()
