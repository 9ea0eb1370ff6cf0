"""CIDEr: cosine of tf-idf n-gram vectors, n = 1..4; strictly speaking CIDEr-D times 10, without stemming.

Vedantam et al. 2015, in the form of pycocoevalcap 1.2. A vector's entry is count · idf with idf = ln N - ln max(1, df),
where N is the number of scored items, and df the number of items with the n-gram in any reference.

    sim_n = Σ min(h, r) · r / (|h| |r|) · exp(-(difference of lengths)² / (2 · 6²))

CIDEr is the mean of sim_n over n and references, times 10.

Traps
- The length in the penalty is the number of bigrams.
- A single item has idf 0, so it scores 0. An exact copy of four or more words scores 10, of one word 2.5.
- The value depends on the whole set: shards, subsets and bootstrap samples have other document frequencies. This
  project's intervals keep the full set's document frequencies and resample the items' values.
- R2Gen reports no CIDEr.
"""

from collections import Counter
from math import exp, log, sqrt

import numpy as np

from metrics.bleu import ORDERS, ngrams

SIGMA = 6.0


def cider(hypotheses, references):
    """(list of token strings, list of lists of token strings) → (corpus value, item values)."""
    counted = [[ngrams(reference.split()) for reference in of_item] for of_item in references]

    # An n-gram counts once per item, however many of its references have it.
    frequency = [Counter() for _ in range(ORDERS)]
    for of_item in counted:
        for n, counter in enumerate(frequency):
            counter.update(set().union(*(grams[n] for grams in of_item)))
    unseen = log(len(hypotheses)) if hypotheses else 0.0
    idf = [{gram: unseen - log(count) for gram, count in counter.items()} for counter in frequency]

    values = []
    for hypothesis, of_item in zip(hypotheses, counted, strict=True):
        grams = ngrams(hypothesis.split())
        similarities = [similarity(grams, reference, idf, unseen) for reference in of_item]
        values.append(10 * sum(similarities) / len(of_item))
    return float(np.mean(values)) if values else 0.0, values


def similarity(hypothesis, reference, idf, unseen):
    """Mean over n of the cosines of two texts' n-gram counters, times the penalty for different lengths.

    idf: one {n-gram: weight} per n; unseen: the weight of an n-gram that is in no reference.
    """
    total = 0.0
    for h, r, weight in zip(hypothesis, reference, idf):
        norms = [sqrt(sum([(count * weight.get(gram, unseen)) ** 2 for gram, count in counts.items()]))
                 for counts in (h, r)]
        if norms[0] and norms[1]:
            # Summed in the hypothesis's order: a set's order differs per run of Python, and so would the last digit.
            dot = sum([min(count, r[gram]) * r[gram] * weight[gram] ** 2 for gram, count in h.items() if gram in r])
            total += dot / (norms[0] * norms[1])
    difference = hypothesis[1].total() - reference[1].total()
    return total * exp(-difference**2 / (2 * SIGMA**2)) / ORDERS
