"""ROUGE-L: F-measure of the longest common subsequence, recall weighted by beta = 1.2.

Lin 2004, in the form of pycocoevalcap 1.2:  P = LCS / |hypothesis|, R = LCS / |reference|,
F = (1 + beta²) P R / (R + beta² P), 0 if P or R is 0. With several references, the best P and the best R are taken
separately. The corpus value is the mean of the items' values.

Traps
- Tokens come from split(" "): a double or a leading blank gives an empty token, which counts and matches, so "" against
  "" scores 1. Text cleaned by R2Gen's function has such blanks.
- Google's rouge-score and RadEval use beta = 1, their own tokenizer and a stemmer: other numbers under the same name.
"""

import numpy as np

BETA = 1.2


def common_length(a, b):
    """Length of the longest common subsequence of two token lists, bit-parallel (Hyyrö 2004)."""
    places = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        hit = row & places.get(token, 0)
        row = (row + hit | row - hit) & full
    return len(a) - row.bit_count()


def rouge_l(hypotheses, references):
    """(list of token strings, list of lists of token strings) → (corpus value, item values)."""
    values = []
    for hypothesis, item_references in zip(hypotheses, references, strict=True):
        words, references_words = hypothesis.split(" "), [reference.split(" ") for reference in item_references]
        common = [common_length(words, reference_words) for reference_words in references_words]
        precision = max(common) / len(words)
        recall = max(length / len(reference_words) for length, reference_words in zip(common, references_words))
        values.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
                      if precision and recall else 0.0)
    return float(np.mean(values)), values
