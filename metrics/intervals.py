"""Intervals: the 95 % percentile bootstrap over studies, the one of the whole project.

A draw takes N of the N studies with replacement. Scores that are functions of sums over studies draw the sums again and
read no text twice (`with_intervals`); a score that is none, such as AUROC, is computed from how often each study was
drawn (`drawn_counts`). CIDEr and METEOR keep what belongs to the whole set (document frequencies, the chosen
reference). Two systems on the same studies are compared draw by draw: paired bootstrap (Efron and Tibshirani 1993, ch.
16; Koehn 2004).

No figure depends on the number of threads or on the machine's way of adding: see `exactly_summable`.
"""

from typing import Callable, NamedTuple

import numpy as np

DRAWS, SEED, LEVEL = 1000, 0, 0.95
BLOCK = 50  # draws at a time, which bounds the memory


class Measured(NamedTuple):
    """Scores that are functions of summed per-item statistics."""

    statistics: np.ndarray  # (N, k)
    values: Callable  # summed statistics (..., k) → {path of names: (...)}; NaN where a score has nothing to stand on

    def of_items(self):
        """{path of names: (N,)}, the score of every item by itself."""
        return self.values(self.statistics)


def measure_means(scores):
    """Measured of {name: (N,) scores of the items}, the score of all being the mean."""
    columns = np.column_stack([*scores.values(), np.ones(len(next(iter(scores.values()))))])
    return Measured(columns, lambda summed: {(name,): summed[..., i] / summed[..., -1]
                                             for i, name in enumerate(scores)})


def drawn_counts(N, draws=DRAWS, seed=SEED):
    """Yields blocks (b, N) of how often each study is in each draw. The same seed and N draw the same studies."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, BLOCK):
        size = min(BLOCK, draws - start)
        yield np.stack([np.bincount(rng.integers(0, N, N), minlength=N) for _ in range(size)]).astype(np.float64)


def exactly_summable(statistics):
    """(N, k) rounded, column by column, so that every sum of N of its entries is exact in float64.

    A sum that is exact does not depend on the order of its terms, and so neither on the number of threads that share
    the product below nor on the processor. The entries become multiples of a power of two that leaves the sum 52 bits:
    whole numbers stay as they are, a score in [0, 1] moves by less than 1e-12 for up to 4,096 studies.
    """
    statistics = np.asarray(statistics, dtype=np.float64)
    largest = np.abs(statistics).max(axis=0, initial=0) * len(statistics)  # no sum is larger than this
    unit = np.exp2(np.ceil(np.log2(np.where(largest > 0, largest, 1))) - 52)
    return np.rint(statistics / unit) * unit


def resample(statistics, draws=DRAWS, seed=SEED):
    """Summed statistics of resampled items: (N, k) → (draws, k)."""
    exact = exactly_summable(statistics)
    return np.concatenate([counts @ exact for counts in drawn_counts(len(exact), draws, seed)])


def number(value):
    """A float for JSON: None where it is not a number."""
    return float(value) if np.isfinite(value) else None


def bounds(drawn):
    """(low, high) of a score's values in the draws, those without a value left out."""
    drawn = drawn[np.isfinite(drawn)]
    return map(float, np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])) if len(drawn) else (None, None)


def interval(value, drawn):
    """{"value", "low", "high"} of a score and its values in the draws."""
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
    """This system minus another on the same items: {"other", "difference", "low", "high", "p"} a score, nested.

    p is two-sided: twice the smaller share of draws on either side of no difference, one added to both counts.
    """
    if len(measured.statistics) != len(other.statistics):
        raise ValueError("a paired comparison needs the same items on both sides")

    # The same seed draws the same studies for both, which is what pairs them.
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
