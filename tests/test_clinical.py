"""The clinical grid against scikit-learn, intervals, paired differences, and truthfulness."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from data.files import UserError
from data.reports import LABELS
from metrics.clinical import AVERAGES, CLASS_SETS, PARTS, UNCERTAIN, clinical_scores, measure_clinical
from metrics.intervals import Measured, differences, resample, with_intervals
from metrics.truth import judged, measure_truth, side


def random_labels(seed, n=200):
    """Labels with classes that one side, or both, never has, and reports without a positive."""
    rng = np.random.default_rng(seed)
    hypothesis, reference = rng.integers(0, 4, (2, n, 14))
    hypothesis[:, 3] = 0
    reference[:, 5] = 2
    hypothesis[:, 7] = reference[:, 7] = 0
    hypothesis[:20] = 0
    reference[10:30] = 2
    return hypothesis, reference


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_equals_scikit_learn(seed):
    hypothesis, reference = random_labels(seed)
    grid = clinical_scores(hypothesis, reference)
    for uncertain, values in UNCERTAIN.items():
        h, r = np.isin(hypothesis, values), np.isin(reference, values)
        for name, members in CLASS_SETS.items():
            for average in AVERAGES:
                wanted = precision_recall_fscore_support(r[:, members], h[:, members], zero_division=0,
                                                         average={"example": "samples"}.get(average, average))[:3]
                assert [grid[average][name][uncertain][part] for part in PARTS] == pytest.approx(wanted, abs=1e-12)
        wanted = np.array(precision_recall_fscore_support(r, h, zero_division=0, average=None))
        found = [[grid["per_class"][uncertain][label][part] for part in (*PARTS, "support")] for label in LABELS]
        assert np.allclose(found, wanted.T, rtol=0, atol=1e-12)


def test_class_sets():
    assert [LABELS[i] for i in CLASS_SETS["5"]] == ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis",
                                                    "Pleural Effusion"]
    assert len(CLASS_SETS["13"]) == 13 and LABELS.index("No Finding") not in CLASS_SETS["13"]


@pytest.mark.parametrize("hypothesis, reference", [
    (np.zeros((2, 13)), np.zeros((2, 13))), (np.full((1, 14), 4), np.zeros((1, 14))),
    (np.zeros((1, 14)), np.zeros((2, 14))),
    (np.full((1, 14), np.nan), np.zeros((1, 14))), (np.full((1, 14), -1), np.zeros((1, 14))),
])
def test_what_are_no_labels_is_refused(hypothesis, reference):
    with pytest.raises(UserError):
        clinical_scores(hypothesis, reference)


def test_intervals_equal_scoring_again():
    hypothesis, reference = random_labels(0, 60)
    measured = measure_clinical(hypothesis, reference)
    again = []
    rng = np.random.default_rng(5)
    for _ in range(40):
        rows = rng.integers(0, 60, 60)
        again.append(clinical_scores(hypothesis[rows], reference[rows])["macro"]["14"]["positive"]["f1"])
    drawn = measured.values(resample(measured.statistics, 40, 5))["macro", "14", "positive", "f1"]
    assert np.allclose(drawn, again)
    low, high = np.quantile(again, [0.025, 0.975])
    cell = with_intervals(measured, 40, 5)["macro"]["14"]["positive"]["f1"]
    assert (cell["low"], cell["high"]) == pytest.approx((low, high))
    assert cell["value"] == clinical_scores(hypothesis, reference)["macro"]["14"]["positive"]["f1"]


def test_interval_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean = Measured(np.stack([values, np.ones(400)], 1), lambda s: {("mean",): s[..., 0] / s[..., 1]})
    cell = with_intervals(mean)["mean"]
    error = values.std() / 20
    assert cell["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert cell["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert with_intervals(mean) == with_intervals(mean) != with_intervals(mean, seed=1)


def test_paired_differences():
    def mean(values):
        return Measured(np.stack([values, np.ones(len(values))], 1), lambda s: {("mean",): s[..., 0] / s[..., 1]})

    values = np.random.default_rng(0).normal(0, 5, 200)
    noise = np.random.default_rng(1).normal(0, 0.1, 200)
    better = differences(mean(values + 0.1), mean(values + noise))["mean"]
    assert better["p"] < 0.01 and better["low"] > 0 and better["difference"] == pytest.approx(0.1 - noise.mean())
    assert differences(mean(values), mean(values))["mean"]["p"] == 1
    # Under no difference p is about uniform.
    p = [differences(mean(np.random.default_rng(k).normal(size=80)),
                     mean(np.random.default_rng(k + 999).normal(size=80)), 200)["mean"]["p"]
         for k in range(150)]
    assert np.mean(np.array(p) < 0.05) < 0.12 and 0.4 < np.mean(p) < 0.6


def test_a_score_without_ground_is_null():
    nothing = Measured(np.zeros((3, 2)), lambda s: {("x",): s[..., 0] / np.where(s[..., 1] == 0, np.nan, 1)})
    assert with_intervals(nothing)["x"] == {"value": None, "low": None, "high": None}


def test_truth_by_hand():
    def labels(**positive):
        return [positive.get(name.replace(" ", "_"), 2) for name in LABELS]

    def finding(name, severity, location):
        return {"finding": name, "severity": severity, "location": location}

    hypothesis = [labels(Edema=1, Fracture=1), labels(No_Finding=1), labels(Pleural_Effusion=1, Edema=3)]
    reference = [labels(Edema=1, Pneumonia=1), labels(Edema=1), labels(Pleural_Effusion=1)]
    said = [[finding("Edema", "mild", "bilateral"), finding("Fracture", "", "left")], [],
            [finding("Pleural Effusion", "mild", "left")]]
    known = [[finding("Edema", "mild", ""), finding("Pneumonia", "severe", "right")], [finding("Edema", "mild", "")],
             [finding("Pleural Effusion", "severe", "right lower zone")]]
    measured = measure_truth(hypothesis, reference, said, known)
    result = {name: cell["value"] for name, cell in with_intervals(measured).items()}
    assert result == {"invented_per_report": pytest.approx(1 / 3), "missed_per_report": pytest.approx(2 / 3),
                      "side_accuracy": 0,
                      "severity_accuracy": 0.5}
    assert judged(measured) == {"invented_per_report": 3, "missed_per_report": 3, "side_accuracy": 1,
                                "severity_accuracy": 2}
    assert side("left upper zone") == "left" and side("") == "" and side("bilateral") == "bilateral"
