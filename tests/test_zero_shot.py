"""AUROC and retrieval against hand-worked numbers and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as reference_curve

from metrics.zero_shot import auroc, no_hit, retrieval, roc_curve, zero_shot_scores


def test_auroc_by_hand():
    # positives 0.9, 0.4; negatives 0.4, 0.1: of 4 pairs 3 are right and one is tied
    assert auroc([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0]) == pytest.approx(3.5 / 4)
    assert np.isnan(auroc([0.1, 0.2], [1, 1]))


def test_auroc_and_curve_equal_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        positive = rng.random(60) < 0.3
        scores = np.round(rng.normal(size=60) + positive, 1)            # with ties
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        fpr, tpr, _ = reference_curve(positive, scores, drop_intermediate=False)
        assert np.allclose(np.stack(roc_curve(scores, positive)), np.stack([fpr, tpr]))


def test_uncertain_studies_are_left_out_and_empty_findings_have_no_figure():
    scores = np.array([[0.9, 0.1], [0.1, 0.2], [0.0, 0.3], [0.5, 0.4]])
    labels = np.array([[1, 0], [2, 0], [3, 0], [0, 0]])
    result = zero_shot_scores(scores, labels, ("a", "b"), draws=50)
    assert result["per_finding"]["a"]["value"] == 1.0 and result["per_finding"]["a"]["negatives"] == 2
    assert result["per_finding"]["b"]["value"] is None
    assert result["macro"]["value"] == 1.0


def test_intervals_hold_the_value_and_narrow_with_more_studies():
    rng = np.random.default_rng(1)

    def width(n):
        labels = (rng.random((n, 1)) < 0.5).astype(int)
        found = zero_shot_scores(rng.normal(size=(n, 1)) + labels, labels, ("a",), draws=200)["macro"]
        assert found["low"] < found["value"] < found["high"]
        return found["high"] - found["low"]

    assert width(1000) < width(100) / 2


def test_retrieval_by_hand():
    similarity = np.array([[0.9, 0.8, 0.1], [0.5, 0.5, 0.2], [0.1, 0.3, 0.2]])
    right = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1]], bool)
    # the first right answer stands first; second (a tie counts against us); second
    assert retrieval(similarity, right, draws=10)["R@1"]["value"] == pytest.approx(1 / 3)
    assert retrieval(similarity, right, draws=10)["R@5"]["value"] == 1.0
    assert retrieval(similarity, right, draws=10)["R@1"]["chance"] == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)


def test_chance_is_what_random_orders_reach():
    assert no_hit(10, 2, 3) == pytest.approx(8 * 7 * 6 / (10 * 9 * 8))
    assert no_hit(4, 2, 3) == 0
    rng = np.random.default_rng(2)
    right = rng.random((400, 30)) < 0.1
    right[:, 0] |= ~right.any(-1)
    found = retrieval(rng.random((400, 30)), right, draws=10)["R@5"]
    assert found["value"] == pytest.approx(found["chance"], abs=0.08)
