"""What is said in words: near a floor, nearly all alike, and what a checkpoint was trained on."""

import pytest

from data.reports import LABELS
from evaluation.output import trained_on
from evaluation.results import variety
from evaluation.verdicts import near_floor, nearly_alike, variety_lines


def labels(*names):
    return [1 if name in names else 0 for name in LABELS]


def test_variety_by_hand():
    texts = ["Clear lungs.", "Clear  lungs.", "Edema.", "A tube."]
    found = [(), ("No Finding",), ("Edema",), ("Support Devices",)]
    rows = [{"hypothesis": text, "reference": f"r{i % 3}", "labels": {"hypothesis": labels(*names)}}
            for i, (text, names) in enumerate(zip(texts, found))]
    assert variety(rows) == {"distinct": 3, "distinct_references": 3, "most_frequent": 0.5, "names_nothing": 0.5}
    assert variety([{**rows[0], "labels": {}}])["names_nothing"] is None
    assert any("50.0% of the reports name no finding" in line for line in variety_lines(variety(rows), 4))


@pytest.mark.parametrize("distinct, references, most, n, alike", [
    (1, 100, 1.0, 100, True), (14, 500, 0.2, 590, True), (300, 560, 0.04, 590, False), (80, 100, 0.21, 100, False),
    (3, 4, 0.4, 100, False),                                  # the references are as few
    (1, 1, 1.0, 100, False),                                  # they are all the same
    (1, 3, 1.0, 3, False)])                                   # too few to tell
def test_reports_that_are_nearly_alike(distinct, references, most, n, alike):
    counts = {"distinct": distinct, "distinct_references": references, "most_frequent": most, "names_nothing": None}
    assert bool(nearly_alike(counts, n)) == alike


def cell(value, low, high):
    return {"value": value, "low": low, "high": high}


def scores(f1):
    grid = {average: {"14": {"positive": {"f1": f1}}} for average in ("micro", "macro")}
    return {"language": {}, "clinical": {"grid": grid}}


def test_near_a_floor():
    floors = {"permuted_pictures": scores(cell(0.3, 0.25, 0.35)), "most_frequent_report": scores(cell(0.5, 0.45, 0.55))}
    (verdict,) = near_floor({**scores(cell(0.6, 0.5, 0.7)), "floors": floors})
    assert "micro F1" in verdict and "0.600 against 0.500 (most frequent report)" in verdict
    assert near_floor({**scores(cell(0.6, 0.56, 0.7)), "floors": floors}) == []
    assert near_floor({**scores(cell(None, None, None)), "floors": floors}) == []


@pytest.mark.parametrize("header, words", [
    ({"trained_on": {"source": "phantom", "studies": 2000, "pictures": 2900, "steps": 900}},
     "trained on 2,000 drawn phantoms: its reports say nothing about a real picture"),
    ({"trained_on": {"source": "iu_xray", "studies": 60, "pictures": 118, "steps": 900}},
     "trained on 118 pictures of 60 studies (iu_xray): too few to learn to recognise findings"),
    ({"trained_on": {"source": "mimic_cxr", "studies": 9000, "pictures": 9001, "steps": 3}},
     "trained on 9,001 pictures of 9,000 studies (mimic_cxr), for 3 steps only: its reports mean nothing yet"),
    ({"trained_on": {"source": "mimic_cxr", "studies": 9000, "pictures": 9001, "steps": 3000}},
     "trained on 9,001 pictures of 9,000 studies (mimic_cxr)"),
    ({"trained_on": {"source": "", "studies": 9000, "pictures": 9001, "steps": 3000}},
     "trained on 9,001 pictures of 9,000 studies"),
    ({"trained_on": {"pictures": 3}, "data": "mine"}, "trained on mine"),
    ({"data": "datasets/demo", "step": 900}, "trained on drawn phantoms: its reports say nothing about a real picture"),
    ({"data": "datasets/mimic_cxr", "step": 1},
     "trained on datasets/mimic_cxr, for 1 step only: its reports mean nothing"),
    ({"data": "datasets/mimic_cxr"}, "trained on datasets/mimic_cxr"),
    ({}, "trained on an unknown data set")])
def test_what_a_checkpoint_was_trained_on(header, words):
    assert trained_on(header).startswith(words)
