"""Intervals: the 95 % percentile bootstrap over studies, from per-item statistics.

Every score here is a function of sums over items. A draw resamples the items with replacement and sums their statistics
again; no text is scored twice. CIDEr and METEOR keep what belongs to the whole set (document frequencies, the chosen
reference). Two systems on the same items are compared draw by draw: paired bootstrap (Efron and Tibshirani 1993, ch.
16; Koehn 2004).
"""

from typing import Callable, NamedTuple

import numpy as np

DRAWS, SEED, LEVEL = 1000, 0, 0.95


def resample(statistics, draws=DRAWS, seed=SEED):
    """Summed statistics of resampled items: (N, k) → (draws, k). The same seed and N draw the same items."""
    statistics = np.asarray(statistics, dtype=np.float64)
    N = len(statistics)
    rng = np.random.default_rng(seed)
    summed = np.empty((draws, statistics.shape[1]))
    for start in range(0, draws, 50):
        counts = np.stack([np.bincount(rng.integers(0, N, N), minlength=N) for _ in range(min(50, draws - start))])
        summed[start : start + 50] = counts.astype(np.float64) @ statistics
    return summed


class Measured(NamedTuple):
    """Scores that are functions of summed per-item statistics."""
    statistics: np.ndarray  # (N, k)
    values: Callable  # summed statistics (..., k) → {path of names: (...)}; NaN where a score has nothing to stand on


def number(value):
    """A float for JSON: None where it is not a number."""
    return float(value) if np.isfinite(value) else None


def bounds(drawn):
    """(low, high) of a score's values in the draws, those without a value left out."""
    drawn = drawn[np.isfinite(drawn)]
    return map(float, np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])) if len(drawn) else (None, None)


def nest(flat):
    """{path: leaf} → nested dicts."""
    tree = {}
    for (*path, last), leaf in flat.items():
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[last] = leaf
    return tree


def with_intervals(measured, draws=DRAWS, seed=SEED):
    """Every score as {"value", "low", "high"}, nested by its path."""
    drawn = measured.values(resample(measured.statistics, draws, seed))
    figures = {}
    for path, value in measured.values(measured.statistics.sum(0)).items():
        low, high = bounds(drawn[path])
        figures[path] = {"value": number(value), "low": low, "high": high}
    return nest(figures)


def differences(measured, other, draws=DRAWS, seed=SEED):
    """This system minus another on the same items: {"other", "difference", "low", "high", "p"} a score, nested.

    p is two-sided: twice the smaller share of draws on either side of no difference, one added to both counts.
    """
    if len(measured.statistics) != len(other.statistics):
        raise ValueError("a paired comparison needs the same items on both sides")
    drawn, other_drawn = (m.values(resample(m.statistics, draws, seed)) for m in (measured, other))
    other_values = other.values(other.statistics.sum(0))
    figures = {}
    for path, value in measured.values(measured.statistics.sum(0)).items():
        deltas = drawn[path] - other_drawn[path]
        deltas = deltas[np.isfinite(deltas)]
        low, high = bounds(deltas)
        p = 2 * (min((deltas <= 0).sum(), (deltas >= 0).sum()) + 1) / (len(deltas) + 1) if len(deltas) else None
        figures[path] = {"other": number(other_values[path]), "difference": number(value - other_values[path]),
                         "low": low, "high": high, "p": p and min(1.0, float(p))}
    return nest(figures)
