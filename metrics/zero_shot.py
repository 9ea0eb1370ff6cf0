"""What stage 1 is judged by: zero-shot recognition (AUROC a finding) and image ↔ sentence retrieval (R@K).

AUROC is the probability that a random positive study scores above a random negative one, ties counting half
(Mann–Whitney). R@K is the share of queries with at least one right answer among their K best; the share that a random
order would reach stands beside it, since short sentences repeat and a query may have many right answers.
Intervals are the 95 % percentile bootstrap over studies.
"""

from math import lgamma

import numpy as np

AT = (1, 5, 10)


def ranks(values):
    """Ranks from 1, equal values sharing their mean: (N,) → (N,)."""
    values = np.asarray(values)
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1) / 2


def auroc(scores, positive):
    """(N,) scores and (N,) bools → AUROC; NaN where one class is empty."""
    positive = np.asarray(positive, bool)
    p, n = positive.sum(), (~positive).sum()
    if p == 0 or n == 0:
        return float("nan")
    return float((ranks(scores)[positive].sum() - p * (p + 1) / 2) / (p * n))


def roc_curve(scores, positive):
    """(false positive rate, true positive rate), from (0, 0) to (1, 1), one point a distinct score."""
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits, misses = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.append(0, misses / max(1, misses[-1])), np.append(0, hits / max(1, hits[-1]))


def zero_shot_scores(scores, labels, names, draws=1000, seed=0):
    """scores (N, m), labels (N, m) in CheXbert's coding → {"macro": figure, "per_finding": {name: figure}}.

    1 is positive, 0 (blank) and 2 are negative; a study uncertain (3) about a finding is left out of its AUROC. A
    finding without both classes has no AUROC (None) and no part in the macro mean. A figure is value, low, high, and
    the numbers of positives and negatives.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)

    def per_finding(rows):
        found = np.full(len(names), np.nan)
        for i in range(len(names)):
            known = rows[labels[rows, i] != 3]
            found[i] = auroc(scores[known, i], labels[known, i] == 1)
        return found

    rng = np.random.default_rng(seed)
    N = len(scores)
    value = per_finding(np.arange(N))
    drawn = np.array([per_finding(rng.integers(0, N, N)) for _ in range(draws)])
    result = {"macro": figure(nanmean(value[None])[0], nanmean(drawn)), "per_finding": {}}
    for i, name in enumerate(names):
        counts = {"positives": int((labels[:, i] == 1).sum()), "negatives": int(np.isin(labels[:, i], (0, 2)).sum())}
        result["per_finding"][name] = dict(figure(value[i], drawn[:, i]), **counts)
    return result


def nanmean(rows):
    """Row means over what is not NaN; NaN for a row of NaN alone."""
    known = ~np.isnan(rows)
    return np.where(known.any(-1), np.where(known, rows, 0).sum(-1) / np.maximum(1, known.sum(-1)), np.nan)


def figure(value, drawn):
    """{"value", "low", "high"}, None where there is nothing to tell."""
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(drawn):
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"value": float(value), "low": float(low), "high": float(high)}


def retrieval(similarity, right, draws=1000, seed=0):
    """similarity (Q, G) and right (Q, G) bool → {"R@1": {"value", "low", "high", "chance"}, …};
    every query has an answer.

    Ties are broken against us: a wrong answer with the same similarity stands before a right one.
    """
    similarity, right = np.asarray(similarity), np.asarray(right, bool)
    best = np.where(right, similarity, -np.inf).max(-1)
    ahead = ((similarity >= best[:, None]) & ~right).sum(-1)                 # wrong answers before the first right one
    rng = np.random.default_rng(seed)
    Q, G = similarity.shape
    picks = rng.integers(0, Q, (draws, Q))
    result = {}
    for k in AT:
        hit = (ahead < k).astype(float)
        chance = np.mean([1 - no_hit(G, answers, k) for answers in right.sum(-1)])
        result[f"R@{k}"] = dict(figure(hit.mean(), hit[picks].mean(-1)), chance=float(chance))
    return result


def no_hit(gallery, answers, k):
    """Probability that k random draws of a gallery miss all its right answers: C(G - a, k) / C(G, k)."""
    if k > gallery - answers:
        return 0.0

    def log_choose(n):
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    return float(np.exp(log_choose(gallery - answers) - log_choose(gallery)))
