"""CIDEr: cosine of tf-idf n-gram vectors, n = 1..4: in truth CIDEr-D times 10, without stemming.

Vedantam et al. 2015, in the form of pycocoevalcap 1.2. A vector's entry is count · idf,
idf = ln N - ln max(1, df), df = the number of items of those being scored whose reference set has the n-gram.

    sim_n = Σ min(h, r) · r / (|h| |r|) · exp(-(difference of lengths)² / (2 · 6²))

meaned over n and references, times 10.

Traps
- The length in the penalty is the number of bigrams.
- One item alone has idf 0 and scores 0. A copy of four or more words scores 10, of one word 2.5.
- The value depends on the whole set: shards, subsets and bootstrap samples have other document frequencies. The
  intervals of this project keep those of the full set and resample the items' values.
- R2Gen reports no CIDEr.
"""

from collections import Counter
from math import exp, log, sqrt

import numpy as np

from metrics.bleu import ORDERS, ngrams

SIGMA = 6.0


def cider(hypotheses, references):
    """(list of token strings, list of lists of token strings) → (corpus value, item values)."""
    cooked = [[ngrams(reference.split()) for reference in several] for several in references]
    frequency = [Counter() for _ in range(ORDERS)]
    for several in cooked:
        for n, counter in enumerate(frequency):
            counter.update(set().union(*(grams[n] for grams in several)))
    top = log(len(hypotheses)) if hypotheses else 0.0
    idf = [{gram: top - log(count) for gram, count in counter.items()} for counter in frequency]

    def norms(grams):
        return [sqrt(sum([(count * idf[n].get(gram, top)) ** 2 for gram, count in grams[n].items()]))
                for n in range(ORDERS)]

    values = []
    for hypothesis, several in zip(hypotheses, cooked, strict=True):
        own = ngrams(hypothesis.split())
        own_norm, own_length = norms(own), own[1].total()
        total = 0.0
        for other in several:
            other_norm, delta = norms(other), own_length - other[1].total()
            similarity = 0.0
            for n in range(ORDERS):
                if own_norm[n] and other_norm[n]:
                    h, r, weight = own[n], other[n], idf[n]
                    dot = sum([min(h[gram], r[gram]) * r[gram] * weight[gram] ** 2 for gram in h.keys() & r.keys()])
                    similarity += dot / (own_norm[n] * other_norm[n])
            total += similarity * exp(-delta**2 / (2 * SIGMA**2)) / ORDERS
        values.append(10 * total / len(several))
    return float(np.mean(values)) if values else 0.0, values
