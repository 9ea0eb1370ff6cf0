"""The bootstrap's figures depend on the texts alone: not on threads, processes or the order of additions."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metrics.intervals import Measured, drawn_counts, exactly_summable, resample, with_intervals

ROOT = Path(__file__).resolve().parents[1]

# Whole numbers and scores in [0, 1], for enough items that the linear algebra library shares the work among threads.
FIGURES = """
import hashlib, json
import numpy as np
from metrics import measure, prepare
from metrics.clinical import measure_clinical
from metrics.intervals import Measured, differences, with_intervals
from metrics.zero_shot import retrieval, zero_shot_scores

rng = np.random.default_rng(0)
words = [f"word{i}" for i in range(60)]
texts = [" ".join(rng.choice(words, 40)) for _ in range(160)]
text = measure(*prepare(texts[:80], texts[80:]), None)
labels = rng.integers(0, 4, (2, 1200, 14))
clinical = measure_clinical(*labels)
wide = Measured(rng.random((1200, 60)), lambda summed: {("mean", i): summed[..., i] / 1200 for i in range(60)})
figures = [with_intervals(text, 200), with_intervals(clinical, 200), with_intervals(wide, 200),
           differences(clinical, measure_clinical(labels[1], labels[0]), 200),
           zero_shot_scores(rng.normal(size=(200, 14)), labels[0, :200], [str(i) for i in range(14)], 200),
           retrieval(rng.normal(size=(200, 80)), rng.random((200, 80)) < .1 + (np.arange(80) == 0), 200)]
print(hashlib.sha256(json.dumps(figures).encode()).hexdigest())
"""


def figures_with(threads):
    """A process of its own: the libraries read these variables when they are loaded, and Python how it orders sets."""
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    return subprocess.Popen([sys.executable, "-c", FIGURES], cwd=ROOT,
                            env={**os.environ, **limits, "PYTHONHASHSEED": str(threads)},
                            stdout=subprocess.PIPE, text=True)


def test_figures_are_bit_equal_with_one_two_and_four_threads():
    processes = [figures_with(threads) for threads in (1, 2, 4)]
    digests = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes) and len(digests[0]) == 65
    assert digests[0] == digests[1] == digests[2]


def test_sums_of_what_is_drawn_are_exact():
    """Whatever the order of the additions, the sum is the same: forwards, backwards, and in fractions."""
    rng = np.random.default_rng(0)
    statistics = np.column_stack([rng.random(500), rng.normal(0, 1e6, 500), rng.integers(0, 99, 500), np.zeros(500)])
    exact = exactly_summable(statistics)
    assert np.array_equal(exact[:, 2:], statistics[:, 2:])              # whole numbers are left alone
    assert np.abs(exact - statistics).max(0)[:2] == pytest.approx([0, 0], abs=1e-5)
    assert np.abs(exact - statistics)[:, 0].max() < 1e-12
    for counts in drawn_counts(500, 60, seed=3):
        for drawn in counts:
            terms = drawn[:, None] * exact
            shuffled = rng.permutation(500)
            forwards, backwards, mixed = (np.add.accumulate(terms[order])[-1]
                                          for order in (np.arange(500), np.arange(500)[::-1], shuffled))
            assert np.array_equal(forwards, backwards) and np.array_equal(forwards, mixed)
            assert np.array_equal(forwards, drawn @ exact)


def test_draws_do_not_depend_on_the_block_they_fall_in():
    statistics = np.random.default_rng(1).random((40, 3))
    assert np.array_equal(resample(statistics, 130, 5)[:70], resample(statistics, 70, 5))
    assert sum(len(block) for block in drawn_counts(40, 130)) == 130
    assert all((block.sum(1) == 40).all() for block in drawn_counts(40, 130))


def test_a_value_that_is_missing_stays_missing():
    nothing = Measured(np.array([[np.nan, 1.0], [1.0, 1.0]]), lambda summed: {("x",): summed[..., 0] / summed[..., 1]})
    assert with_intervals(nothing)["x"]["value"] is None
