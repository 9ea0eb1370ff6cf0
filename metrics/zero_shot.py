"""The scores of stage 1: zero-shot recognition (AUROC per finding) and image ↔ sentence retrieval (R@K).

AUROC is the probability that a random positive study scores above a random negative one, ties counting half
(Mann–Whitney). R@K is the share of queries with at least one right answer among their K best. Short sentences repeat,
so a query may have many right answers; R@K is therefore given together with its value for a random order ("chance").
"""

from math import lgamma

import numpy as np

from metrics.intervals import DRAWS, SEED, Measured, drawn_counts, interval, with_intervals

AT = (1, 5, 10)


def auroc(scores, positive, counts=None):
    """(N,) scores and (N,) bools → AUROC; NaN if there is no positive or no negative study.

    counts (draws, N): how often each study was drawn; then one value per draw, (draws,). None: every study once.
    """
    positive = np.asarray(positive, bool)
    once = counts is None
    counts = np.ones((1, len(positive))) if once else counts
    if not len(positive):
        return float("nan") if once else np.full(len(counts), np.nan)

    # For each distinct score, from the lowest: the number of positives and of negatives with this score.
    order = np.argsort(scores, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(np.asarray(scores)[order])) + 1)
    positives, negatives = (np.add.reduceat(counts[:, order] * kind[order], starts, axis=1)
                            for kind in (positive, ~positive))

    # Pairs of a positive and a negative in the right order, ties as halves. Sums of whole and half numbers are exact.
    below = np.cumsum(negatives, axis=1) - negatives
    right = (positives * (below + negatives / 2)).sum(1)
    pairs = positives.sum(1) * negatives.sum(1)
    values = np.divide(right, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return float(values[0]) if once else values


def roc_curve(scores, positive):
    """(N,) scores and (N,) bools → (false positive rates, true positive rates), from (0, 0) to (1, 1).

    One point per distinct score, and (0, 0).
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits, misses = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.append(0, misses / max(1, misses[-1])), np.append(0, hits / max(1, hits[-1]))


def zero_shot_scores(scores, labels, names, draws=DRAWS, seed=SEED):
    """scores (N, m), labels (N, m) in CheXbert's coding → {"macro": figure, "per_finding": {name: figure}}.

    Label 1 is positive, 0 (blank) and 2 are negative; studies with an uncertain finding (3) are left out of its AUROC.
    A finding without positives or without negatives has no AUROC (None) and is left out of the macro mean. A figure is
    {"value", "low", "high"}; that of a finding also has "positives" and "negatives", their numbers.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)

    def per_finding(counts):
        certain = labels != 3
        return np.stack([auroc(scores[rows, i], labels[rows, i] == 1, counts[:, rows])
                         for i, rows in enumerate(certain.T)], axis=1)

    value = per_finding(np.ones((1, len(scores))))
    drawn = np.concatenate([per_finding(counts) for counts in drawn_counts(len(scores), draws, seed)])

    result = {"macro": interval(nanmean(value)[0], nanmean(drawn)), "per_finding": {}}
    for i, name in enumerate(names):
        result["per_finding"][name] = {**interval(value[0, i], drawn[:, i]),
                                       "positives": int((labels[:, i] == 1).sum()),
                                       "negatives": int(np.isin(labels[:, i], (0, 2)).sum())}
    return result


def nanmean(rows):
    """Mean of each row's values other than NaN; NaN if a row has no other values."""
    certain = ~np.isnan(rows)
    return np.where(certain.any(-1), np.where(certain, rows, 0).sum(-1) / np.maximum(1, certain.sum(-1)), np.nan)


def retrieval(similarity, right, draws=DRAWS, seed=SEED):
    """similarity (Q, G) and right (Q, G) bool → {"R@1": {"value", "low", "high", "chance"}, …}.

    Similarities and right answers of Q queries and a gallery of G. Every query must have a right answer. Of a wrong and
    a right answer with the same similarity, the wrong one ranks first.
    """
    similarity, right = np.asarray(similarity), np.asarray(right, bool)
    best = np.where(right, similarity, -np.inf).max(-1)
    ahead = ((similarity >= best[:, None]) & ~right).sum(-1)                 # wrong answers before the first right one
    hits = np.stack([*(ahead < k for k in AT), np.ones(len(ahead))], axis=1)
    figures = with_intervals(Measured(hits, lambda summed: {(f"R@{k}",): summed[..., i] / summed[..., -1]
                                                            for i, k in enumerate(AT)}), draws, seed)

    gallery = similarity.shape[1]
    return {f"R@{k}": {**figures[f"R@{k}"],
                       "chance": float(np.mean([1 - no_hit(gallery, answers, k) for answers in right.sum(-1)]))}
            for k in AT}


def no_hit(gallery, answers, k):
    """Probability that k random items of a gallery include no right answer: C(G - a, k) / C(G, k)."""
    if k > gallery - answers:
        return 0.0

    def log_choose(n):
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    return float(np.exp(log_choose(gallery - answers) - log_choose(gallery)))
