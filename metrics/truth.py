"""Truthfulness where the findings are known: what a report invents, misses, and puts on the wrong side or grade.

Works on labels (CheXbert's order and coding) and on findings {"finding", "severity", "location"} of both sides, as the
phantom's data set holds them and its labeler reads them back. "No Finding" is no finding here, and uncertain (3) is not
positive. Side and severity are judged only where both sides have the finding and the truth has a side or a severity.
"""

import numpy as np

from metrics.clinical import CLASS_SETS
from metrics.intervals import Measured

SIDES = ("right", "left", "bilateral")


def side(location):
    """The side a location names, "" where it names none: "right lower zone" → "right"."""
    return next((word for word in location.lower().split() if word in SIDES), "")


def _agreements(hypothesis, reference):
    """[sides judged, sides right, severities judged, severities right] of one report's findings and the true ones."""
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
    """{(name,): (...)} of summed statistics (..., 7)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {("invented_per_report",): summed[..., 0] / summed[..., -1],
                ("missed_per_report",): summed[..., 1] / summed[..., -1],
                ("side_accuracy",): summed[..., 3] / summed[..., 2],
                ("severity_accuracy",): summed[..., 5] / summed[..., 4]}


def measure_truth(hypothesis_labels, reference_labels, hypothesis_findings, reference_findings):
    """Measured of label arrays (N, 14) and N lists of findings on either side."""
    h, r = (np.asarray(labels)[:, CLASS_SETS["13"]] == 1 for labels in (hypothesis_labels, reference_labels))
    counts = [_agreements(*pair) for pair in zip(hypothesis_findings, reference_findings, strict=True)]
    return Measured(np.column_stack([(h & ~r).sum(1), (~h & r).sum(1), np.reshape(counts, (-1, 4)), np.ones(len(h))]),
                    truth_values)


def judged(measured):
    """How many items each figure rests on."""
    total = measured.statistics.sum(0)
    return {"invented_per_report": int(total[-1]), "missed_per_report": int(total[-1]), "side_accuracy": int(total[2]),
            "severity_accuracy": int(total[4])}
