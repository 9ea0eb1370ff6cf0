"""RadCliQ against its published definition, written out, and its BLEU-2 against values of fast_bleu's documentation."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from metrics.intervals import differences, with_intervals
from metrics.radcliq import STANDARD, VERSIONS, bleu_2, measure_scores, radcliq, radcliq_scores


def test_bleu_2_by_hand():
    # 3 of 4 words and 1 of 3 pairs; shorter than the reference: exp(1 - 5 / 4).
    assert bleu_2("no pleural  effusion seen", "no effusion seen is there") == pytest.approx(
        np.sqrt(3 / 4 * 1 / 3) * np.exp(1 - 5 / 4))
    # The dot is a word, case does not count; no pair of words is shared: a tenth of a match.
    assert bleu_2("Clear heart.", "heart clear ok") == pytest.approx(np.sqrt(2 / 3 * 0.1 / 2))
    assert bleu_2("a", "a") == pytest.approx(np.sqrt(0.1)) and bleu_2("a b", "a b") == pytest.approx(1)
    assert bleu_2("x", "y") == bleu_2("", "y") == bleu_2("y", "") == bleu_2("", "") == 0


def test_bleu_2_equals_the_documented_value_of_fast_bleu():
    """Its README's second hypothesis, which shares no pair of words with the three references, against the closest."""
    hypothesis = "he read the book because he was interested in world history"
    references = ["It is a guide to action that ensures that the military will forever heed Party commands"]
    # 1 word of 11 ("the"), a tenth of a pair of 10, and the penalty of 11 words against 16.
    assert bleu_2(hypothesis, references[0]) == pytest.approx(np.sqrt(1 / 11 * 0.01) * np.exp(1 - 16 / 11))
    assert 0.0191380231127159 == pytest.approx(bleu_2(hypothesis, references[0]), rel=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_values_are_those_of_the_published_pipeline(version):
    """StandardScaler and LinearRegression, as the published pickles hold them, filled with the coefficients."""
    weights, means, scales, intercept = VERSIONS[version]
    scaler, model = StandardScaler(), LinearRegression()
    scaler.mean_, scaler.scale_, scaler.n_features_in_ = np.array(means), np.array(scales), 4
    model.coef_, model.intercept_ = np.array(weights), intercept
    parts = np.random.default_rng(0).random((50, 4))
    assert radcliq(version, parts) == pytest.approx(model.predict(scaler.transform(parts)), abs=1e-12)
    assert radcliq(version, np.array([means])) == pytest.approx([intercept])
    assert (radcliq(version, parts + [0.1, 0, 0, 0]) < radcliq(version, parts)).all(), "better parts make it lower"


def test_names_say_the_direction_and_whether_it_is_the_published_one():
    scores = np.array([0.2, 0.4]), np.array([0.3, 0.5]), np.array([0.4, 0.6])
    texts = ["no effusion .", "heart"], ["an effusion .", "the heart"]
    figures = with_intervals(measure_scores(radcliq_scores(*scores, *texts)), draws=50)
    assert list(figures) == ["RadCliQ-v0 (lower is better)", "1 / RadCliQ-v0 (higher is better)",
                             "RadCliQ-v1 (lower is better)", "1 / RadCliQ-v1 (higher is better)"]
    value = figures["RadCliQ-v1 (lower is better)"]["value"]
    parts = np.column_stack([*scores, [bleu_2(*pair) for pair in zip(*texts)]])
    assert value == pytest.approx(radcliq("RadCliQ-v1", parts).mean())
    assert figures["1 / RadCliQ-v1 (higher is better)"]["value"] == pytest.approx(1 / value)
    other = radcliq_scores(*scores, *texts, models=("radgraph-xl", STANDARD[1]))
    assert all(name.endswith("(lower is better; not as published: radgraph-xl)") for name in other)


def test_the_inverse_of_what_is_not_above_0_is_left_blank():
    """Nearer to 0 would be better from below, and worse from above."""
    figures = with_intervals(measure_scores({"RadCliQ-v1 (lower is better)": np.array([-1.5, -0.5]),
                                             "SembScore": np.array([-1.5, -0.5])}), draws=20)
    assert figures["RadCliQ-v1 (lower is better)"]["value"] == figures["SembScore"]["value"] == -1
    assert figures.pop("1 / RadCliQ-v1 (higher is better)") == {"value": None, "low": None, "high": None}
    assert len(figures) == 2


def test_an_inverse_whose_draws_reach_0_has_no_interval():
    """RadCliQ of .1 [-1, 1.2]: its inverse is 10, and as large as one likes."""
    scores = {"RadCliQ-v1 (lower is better)": np.array([-1.0, 1.2])}
    own, other = measure_scores(scores), measure_scores({"RadCliQ-v1 (lower is better)": np.array([1.0, 1.0])})
    cell = with_intervals(own, draws=50)["1 / RadCliQ-v1 (higher is better)"]
    assert cell == {"value": pytest.approx(10), "low": None, "high": None}
    cell = differences(own, other, draws=50)["1 / RadCliQ-v1 (higher is better)"]
    assert cell == {"other": 1, "difference": pytest.approx(9), "low": None, "high": None, "p": None}
