"""BLEU-1..4: the geometric mean of clipped n-gram precisions times a brevity penalty.

Papineni et al. 2002, in the form of pycocoevalcap 1.2 (`Bleu(4)`, reference length "closest"):

    p_k    = (Σ matches_k + 1e-15) / (Σ max(0, length - k + 1) + 1e-9)        sums over the items
    ratio  = (Σ length + 1e-15) / (Σ reference length + 1e-9)
    BLEU_k = (p_1 ··· p_k)^(1/k) · min(1, exp(1 - 1 / ratio))

Tokens are separated by blanks. With several references, an n-gram's matches are clipped at its largest count in any
reference, and the reference length is the one closest to the hypothesis's, the shorter one on a tie.

Traps
- An exact copy scores 0.9999999996, not 1; the small terms are the only smoothing. nltk's and sacrebleu's
  values differ.
- The corpus value comes from summed counts: it is not the mean of the items' values.
"""

from collections import Counter

import numpy as np

ORDERS = 4
TINY, SMALL = 1e-15, 1e-9


def ngrams(words):
    """Four counters, of a text's 1-, 2-, 3- and 4-grams; a 1-gram is a word, a longer n-gram a tuple of words."""
    return Counter(words), *(Counter(zip(*(words[i:] for i in range(n)))) for n in range(2, ORDERS + 1))


def bleu_statistics(hypotheses, references):
    """(N, 10), per item: clipped matches of 1..4-grams, possible 1..4-grams, length, closest reference length."""
    rows = np.zeros((len(hypotheses), 2 * ORDERS + 2))
    for row, hypothesis, item_references in zip(rows, hypotheses, references, strict=True):
        words, references_words = hypothesis.split(), [reference.split() for reference in item_references]
        length = len(words)
        references_counts = [ngrams(reference_words) for reference_words in references_words]
        for k, counts in enumerate(ngrams(words)):
            bound = references_counts[0][k]
            for further in references_counts[1:]:
                bound |= further[k]
            row[k] = sum(min(counts[gram], bound[gram]) for gram in counts.keys() & bound.keys())
            row[ORDERS + k] = max(0, length - k)
        row[-2:] = length, min((abs(len(reference) - length), len(reference)) for reference in references_words)[1]
    return rows


def bleu_from(summed):
    """Summed statistics (..., 10) → BLEU-1..4 (..., 4)."""
    matches, possible = summed[..., :ORDERS], summed[..., ORDERS:-2]
    value = np.cumprod((matches + TINY) / (possible + SMALL), axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (summed[..., -2:-1] + TINY) / (summed[..., -1:] + SMALL)
    return value * np.exp(np.minimum(0, 1 - 1 / ratio))


def bleu(hypotheses, references):
    """(list of token strings, list of lists of token strings) → (corpus BLEU-1..4, four lists of item values)."""
    statistics = bleu_statistics(hypotheses, references)
    return bleu_from(statistics.sum(0)).tolist(), bleu_from(statistics).T.tolist()
