"""Truthfulness where the findings are known: invented and missed findings, wrong sides and wrong severities.

Compares labels (CheXbert's order and coding) and findings {"finding", "severity", "location"} of a report with the
truth; the phantom's data set holds the true ones, and its labeler reads the report's. "No Finding" does not count as a
finding, and uncertain (3) is not positive. Side and severity are judged only for findings that the report and the truth
share, and only if the truth has a side or a severity.
"""

import numpy as np

from metrics.clinical import CLASS_SETS
from metrics.intervals import Measured

SIDES = ("right", "left", "bilateral")


def side(location):
    """The side in a location, "" if there is none: "right lower zone" → "right"."""
    return next((word for word in location.lower().split() if word in SIDES), "")


def _agreements(hypothesis, reference):
    """One report's findings and the true ones → [sides judged, sides right, severities judged, severities right]."""
    truths = {finding["finding"]: finding for finding in reference}
    counts = [0, 0, 0, 0]
    for finding in hypothesis:
        truth = truths.get(finding["finding"])
        if truth is None:
            continue
        true_side = side(truth["location"])
        counts[0] += bool(true_side)
        counts[1] += bool(true_side) and side(finding["location"]) == true_side
        counts[2] += bool(truth["severity"])
        counts[3] += bool(truth["severity"]) and finding["severity"] == truth["severity"]
    return counts


def truth_values(summed):
    """Summed statistics (..., 7) → {(name,): (...)}."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {("invented_per_report",): summed[..., 0] / summed[..., -1],
                ("missed_per_report",): summed[..., 1] / summed[..., -1],
                ("side_accuracy",): summed[..., 3] / summed[..., 2],
                ("severity_accuracy",): summed[..., 5] / summed[..., 4]}


def measure_truth(hypothesis_labels, reference_labels, hypothesis_findings, reference_findings):
    """Label arrays (N, 14) and N lists of findings, each of hypotheses and references → `Measured` scores."""
    h, r = (np.asarray(labels)[:, CLASS_SETS["13"]] == 1 for labels in (hypothesis_labels, reference_labels))
    counts = [_agreements(*pair) for pair in zip(hypothesis_findings, reference_findings, strict=True)]
    return Measured(np.column_stack([(h & ~r).sum(1), (~h & r).sum(1), np.reshape(counts, (-1, 4)), np.ones(len(h))]),
                    truth_values)


def judged(measured):
    """{figure: the number of reports, sides or severities behind it}."""
    total = measured.statistics.sum(0)
    return {"invented_per_report": int(total[-1]), "missed_per_report": int(total[-1]), "side_accuracy": int(total[2]),
            "severity_accuracy": int(total[4])}
