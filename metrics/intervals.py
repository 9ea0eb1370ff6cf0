"""Intervals: the 95 % percentile bootstrap over studies, used in the whole project.

A draw takes N of the N studies with replacement. A score that is a function of sums over studies is computed from
resampled sums, without reading a text again (`with_intervals`). Any other score, such as AUROC, is computed from how
often each study was drawn (`drawn_counts`). CIDEr's document frequencies and METEOR's choice of the best reference stay
those of the whole set. Two systems on the same studies are compared draw by draw: paired bootstrap (Efron and
Tibshirani 1993, ch. 16; Koehn 2004).

No figure depends on the number of threads or on the order in which a processor adds: see `exactly_summable`.
"""

from typing import Callable, NamedTuple

import numpy as np

DRAWS, SEED, LEVEL = 1000, 0, 0.95
BLOCK = 50  # draws at a time, which bounds the memory


class Measured(NamedTuple):
    """Scores that are functions of summed per-item statistics."""

    statistics: np.ndarray  # (N, k)
    values: Callable  # summed statistics (..., k) → {path of names: (...)}; NaN where a score is not defined

    def of_items(self):
        """{path of names: (N,)}: the score of each item alone."""
        return self.values(self.statistics)


def measure_means(scores):
    """{name: (N,) scores of the items} → `Measured`, whose score of the set is the mean."""
    columns = np.column_stack([*scores.values(), np.ones(len(next(iter(scores.values()))))])
    return Measured(columns, lambda summed: {(name,): summed[..., i] / summed[..., -1]
                                             for i, name in enumerate(scores)})


def drawn_counts(N, draws=DRAWS, seed=SEED):
    """Yields blocks (b, N): how often each of N studies is in each of b draws. Equal seed and N give equal draws."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, BLOCK):
        size = min(BLOCK, draws - start)
        yield np.stack([np.bincount(rng.integers(0, N, N), minlength=N) for _ in range(size)]).astype(np.float64)


def exactly_summable(statistics):
    """Statistics (N, k) rounded, column by column, so that every sum of N entries of a column is exact in float64.

    An exact sum does not depend on the order of its terms, hence not on the number of threads or the processor. Entries
    are rounded to multiples of a power of two, chosen so that any sum fits into 52 bits. Whole numbers do not change;
    a score in [0, 1] changes by less than 1e-12 for up to 4,096 studies.
    """
    statistics = np.asarray(statistics, dtype=np.float64)
    largest = np.abs(statistics).max(axis=0, initial=0) * len(statistics)  # no sum is larger than this
    unit = np.exp2(np.ceil(np.log2(np.where(largest > 0, largest, 1))) - 52)
    return np.rint(statistics / unit) * unit


def resample(statistics, draws=DRAWS, seed=SEED):
    """Statistics (N, k) → their sums over the resampled items of each draw, (draws, k)."""
    exact = exactly_summable(statistics)
    return np.concatenate([counts @ exact for counts in drawn_counts(len(exact), draws, seed)])


def number(value):
    """A float for JSON: None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def bounds(drawn):
    """(low, high) of the values in the draws; draws without a value are ignored. (None, None) if no draw has one."""
    drawn = drawn[np.isfinite(drawn)]
    return map(float, np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])) if len(drawn) else (None, None)


def interval(value, drawn):
    """A score and its values in the draws → {"value", "low", "high"}."""
    low, high = bounds(drawn)
    return {"value": number(value), "low": low, "high": high}


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
    return nest({path: interval(value, drawn[path])
                 for path, value in measured.values(measured.statistics.sum(0)).items()})


def differences(measured, other, draws=DRAWS, seed=SEED):
    """This system minus another on the same items: {"other", "difference", "low", "high", "p"} per score, nested.

    p is two-sided: twice the share of draws with a difference ≤ 0, or ≥ 0 if these are fewer; 1 is added to both counts
    of the share. Raises ValueError if the numbers of items differ.
    """
    if len(measured.statistics) != len(other.statistics):
        raise ValueError("a paired comparison needs the same items on both sides")

    # Paired: the same seed draws the same studies for both systems.
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
