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

import numpy as np

from metrics.meteor_data import FUNCTION_WORDS, LONGEST_PHRASE, find_data, java_hash, normalize, read_lexicon
from metrics.stemmer import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MODULE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
BEAM = 40
# Paths are ordered by more matched words, then fewer chunks, then smaller distance: three fields of one integer.
CHUNK, MATCHED = 1 << 32, 1 << 52


@lru_cache(maxsize=1 << 17)
def _code(word):
    return java_hash(word), java_hash(stem(word))


def _places(keys):
    places = defaultdict(list)
    for i, key in enumerate(keys):
        places[key].append(i)
    return places


def _known_phrases(words, lexicon):
    """Phrase → where it starts, for the phrases of a text that stand in the paraphrase table."""
    places = defaultdict(list)
    for start in range(len(words)):
        phrase = None
        for word in words[start : start + LONGEST_PHRASE]:
            phrase = word if phrase is None else f"{phrase} {word}"
            known = lexicon.phrases.get(phrase)
            if known is None:
                break
            if known:
                places[phrase].append(start)
    return places


def _paraphrase_matches(hypothesis, reference, lexicon, found):
    """Appends the matches of the table's rows to `found`: first phrases of the reference, then of the hypothesis."""
    ours, theirs = _known_phrases(hypothesis, lexicon), _known_phrases(reference, lexicon)
    for source, target, turned in ((theirs, ours, False), (ours, theirs, True)):
        hits = []
        for phrase, starts in source.items():
            others = lexicon.paraphrases.get(phrase)
            shared = others.keys() & target.keys() if others else ()
            if shared:
                length = phrase.count(" ") + 1
                hits += [(start, length, others[other], other) for start in starts for other in shared]
        for start, length, _, other in sorted(hits):
            size = other.count(" ") + 1
            for place in target[other]:
                if turned:
                    found[place].append((place, size, start, length, PARAPHRASE))
                else:
                    found[start].append((start, length, place, size, PARAPHRASE))


def _matches(hypothesis, reference, lexicon):
    """Per word of the reference the matches that start there: (start, length, the same in the hypothesis, module)."""
    own, codes = [_code(word) for word in hypothesis], [_code(word) for word in reference]
    by_hash, by_stem = _places(code for code, _ in own), _places(code for _, code in own)
    found = [[(j, 1, i, 1, EXACT) for i in by_hash.get(code, ())] for j, (code, _) in enumerate(codes)]
    if [code for code, _ in own] == [code for code, _ in codes]:
        return found
    own_words = _places(hypothesis) if lexicon else None
    for j, (word, (code, stem_code)) in enumerate(zip(reference, codes)):
        found[j] += [(j, 1, i, 1, STEM) for i in by_stem.get(stem_code, ()) if own[i][0] != code]
        near = lexicon.synonyms.get(word) if lexicon else None
        if near:
            places = sorted(i for other in near & own_words.keys() for i in own_words[other] if own[i][0] != code)
            found[j] += [(j, 1, i, 1, SYNONYM) for i in places]
    if lexicon:
        _paraphrase_matches(hypothesis, reference, lexicon, found)
    return found


def _fixed(found, hypothesis_length):
    """Per word of the reference the match that needs no search: the only one there, of words no other match touches."""
    in_reference, in_hypothesis = [0] * len(found), [0] * hypothesis_length
    for matches in found:
        for j, n, i, m, _ in matches:
            for place in range(j, j + n):
                in_reference[place] += 1
            for place in range(i, i + m):
                in_hypothesis[place] += 1
    return [matches[0] if len(matches) == 1 and all(count == 1 for j, n, i, m, _ in matches
                                                    for count in in_reference[j : j + n] + in_hypothesis[i : i + m])
            else None for matches in found]


def _gain(match):
    """What a match subtracts from a path's order key. Added length by length in integers: half a word is nothing."""
    _, n, _, m, module = match
    return -MATCHED * (n + m if module == EXACT else n // 2 + m // 2)


def _align(found, hypothesis_length):
    """The best path's matches, by a beam search from left to right over the reference.

    A path is (order key, used words of the hypothesis as bits, end of its last match in the reference, in the
    hypothesis or -1 when its chunk is closed, (earlier matches, last match)).
    """
    paths = [(0, 0, 0, -1, None)]
    for j, (matches, sure) in enumerate(zip(found, _fixed(found, hypothesis_length))):
        paths.sort(key=itemgetter(0))
        del paths[BEAM:]
        if sure:
            _, n, i, m, _ = sure
            step = _gain(sure) + abs(j - i)
            paths = [(key + step + (CHUNK if end >= 0 and end != i else 0), used, j + n, i + m, (chain, sure))
                     for key, used, _, end, chain in paths]
            continue
        if not matches:
            paths = [path if path[3] < 0 or path[2] > j else (path[0] + CHUNK, path[1], path[2], -1, path[4])
                     for path in paths]
            continue
        steps = [(((1 << m) - 1) << i, _gain(match), abs(j - i), i, i + m, j + n, match)
                 for match in matches for _, n, i, m, _ in (match,)]
        best_gain, limit, grown = min(step[1] for step in steps), None, []
        for path in paths:
            key, used, next_word, end, chain = path
            if next_word > j:
                grown.append(path)
                continue
            # Keys only grow below: once 40 paths are ahead of everything still possible here, nothing more can survive.
            if len(grown) >= 2 * BEAM:
                grown.sort(key=itemgetter(0))
                del grown[BEAM:]
                limit = grown[-1][0]
            for bits, gain, distance, i, hypothesis_end, reference_end, match in steps:
                if limit is not None and key + best_gain >= limit:
                    break
                if not used & bits:
                    grown.append((key + gain + (CHUNK if end >= 0 and end != i else 0), used | bits, reference_end,
                                  hypothesis_end, (chain, match)))
                    key += distance
            else:
                grown.append((key + CHUNK if end >= 0 else key, used, next_word, -1, chain))
        paths = grown
    # The last step's paths, too, are cut to the beam, and that before their open chunks count.
    paths.sort(key=itemgetter(0))
    del paths[BEAM:]
    best = min(paths, key=lambda path: path[0] + CHUNK if path[3] >= 0 else path[0])
    chosen, chain = [], best[4]
    while chain:
        chain, match = chain
        chosen.append(match)
    return chosen[::-1]


# Columns of the statistics: words and function words of the hypothesis and of the reference, then per module matched
# content and function words of either side, then chunks and matched words of either side.
COLUMNS = 4 + 4 * 4 + 3


def _pair_statistics(hypothesis, reference, lexicon):
    row = [0] * COLUMNS
    own, other = ([word in FUNCTION_WORDS for word in words] for words in (hypothesis, reference))
    row[:4] = len(own), len(other), sum(own), sum(other)
    last = None
    for j, n, i, m, module in _align(_matches(hypothesis, reference, lexicon), len(hypothesis)):
        functions_own, functions_other = sum(own[i : i + m]), sum(other[j : j + n])
        at = 4 + 4 * module
        row[at] += m - functions_own
        row[at + 1] += n - functions_other
        row[at + 2] += functions_own
        row[at + 3] += functions_other
        row[-3] += last != (j, i)
        row[-2] += m
        row[-1] += n
        last = j + n, i + m
    if row[-3] == 1 and row[-2:] == row[:2]:
        row[-3] = 0
    return row


def meteor_from(summed):
    """METEOR (...) of summed statistics (..., 23)."""
    summed = np.asarray(summed, dtype=np.float64)
    words, functions = summed[..., 0:2], summed[..., 2:4]
    total = DELTA * (words - functions) + (1 - DELTA) * functions
    by_module = summed[..., 4:20].reshape(*summed.shape[:-1], 4, 4)
    matched = DELTA * by_module[..., 0:2] + (1 - DELTA) * by_module[..., 2:4]
    matched = (MODULE_WEIGHTS[:, None] * matched).sum(-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / total, -1, 0)
        fmean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        fragmentation = summed[..., -3] / ((summed[..., -2] + summed[..., -1]) / 2)
        return np.nan_to_num(fmean * (1 - GAMMA * fragmentation**BETA), nan=0.0)


def meteor_statistics(hypotheses, references, lexicon=None):
    """(N, 23), per item against its best reference. They add up; `lexicon` (None: exact and stem) is read_lexicon's."""
    rows = []
    for hypothesis, several in zip(hypotheses, references, strict=True):
        words = normalize(hypothesis)
        each = [_pair_statistics(words, normalize(reference), lexicon) for reference in several]
        rows.append(each[int(np.argmax(meteor_from(each)))] if len(each) > 1 else each[0])
    return np.array(rows, dtype=np.float64).reshape(-1, COLUMNS)


def meteor(hypotheses, references, data=None):
    """(list of token strings, list of lists of token strings) → (corpus value, item values).

    `data` is METEOR's folder (see metrics/meteor_data.py), None to look for an installed pycocoevalcap, False for none:
    then, and where nothing is found, the value is the one to be called "METEOR (exact+stem)".
    """
    folder = None if data is False else find_data(data)
    lexicon = read_lexicon(folder, [*hypotheses, *(text for several in references for text in several)])
    statistics = meteor_statistics(hypotheses, references, lexicon)
    return float(meteor_from(statistics.sum(0))), meteor_from(statistics).tolist()
