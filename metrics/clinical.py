"""Clinical efficacy: precision, recall and F1 of the findings a report states against those of its reference.

Two arrays (N, 14) in CheXbert's order and coding: 0 blank, 1 positive, 2 negative, 3 uncertain. "F1" alone says nothing
here, for the literature prints different cells of one grid under that name:

    average     micro: counts summed over classes · macro: mean of the classes' values · weighted: the same, weighted by
                support · example: mean of the reports' values
    classes     14 · 13: without No Finding · 5: Cardiomegaly, Edema, Consolidation, Atelectasis, Pleural Effusion
    uncertain   "positive": 3 counts as 1 (f1chexbert, RadEval, WCL) · "negative": as 0 (R2Gen, PromptMRG)

A ratio 0/0 is 0, as scikit-learn has it with zero_division=0.

Traps
- Macro F1 is the mean of the classes' F1, not 2PR / (P + R) of the macro means.
- "example" gives a report without any positive on either side 0: without No Finding among the classes it punishes a
  normal report for being right.
- Other tools order the classes otherwise (MIMIC-CXR's CSV is alphabetical), and "rrg" means uncertain as positive in
  one tool and as negative in another. Averages over ranks or batches are not the value over all reports.
"""

import numpy as np

from data.files import UserError
from data.reports import LABELS
from metrics.intervals import Measured, nest

FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
CLASS_SETS = {
    "14": list(range(len(LABELS))),
    "13": [i for i, name in enumerate(LABELS) if name != "No Finding"],
    "5": [LABELS.index(name) for name in FIVE],
}
AVERAGES = ("micro", "macro", "example", "weighted")
UNCERTAIN = {"positive": (1, 3), "negative": (1,)}
PARTS = ("precision", "recall", "f1")


def _divide(a, b):
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=np.asarray(b) != 0)


def _prf(tp, fp, fn):
    """(..., 3): precision, recall, F1."""
    return np.stack([_divide(tp, tp + fp), _divide(tp, tp + fn), _divide(2 * tp, 2 * tp + fp + fn)], axis=-1)


def clinical_statistics(hypothesis, reference):
    """(N, k) per report, for `clinical_values`: for both readings of uncertain, tp, fp, fn of each class and the
    report's own values over each class set; last a 1. They add up. Raises UserError for arrays that are not labels."""
    hypothesis, reference = np.asarray(hypothesis), np.asarray(reference)
    for labels in (hypothesis, reference):
        if labels.ndim != 2 or labels.shape[1] != len(LABELS) or not np.isin(labels, (0, 1, 2, 3)).all():
            raise UserError(f"labels are {len(LABELS)} values 0 (blank), 1 (positive), 2 (negative) or 3 (uncertain) "
                            "per report, in CheXbert's order")
    if len(hypothesis) != len(reference):
        raise UserError(f"labels of {len(hypothesis)} hypotheses and {len(reference)} references; give both per report")
    columns = []
    for values in UNCERTAIN.values():
        h, r = np.isin(hypothesis, values), np.isin(reference, values)
        counts = np.stack([h & r, h & ~r, ~h & r], axis=-1).astype(np.float64)  # (N, 14, 3)
        columns.append(counts.reshape(len(h), -1))
        columns += [_prf(*np.moveaxis(counts[:, members].sum(1), -1, 0)) for members in CLASS_SETS.values()]
    return np.concatenate([*columns, np.ones((len(hypothesis), 1))], axis=1)


def clinical_values(summed):
    """{(average, classes, uncertain, part): (...)} and {("per_class", uncertain, label, part): (...)} of (..., k)."""
    summed = np.asarray(summed)
    classes, sets = len(LABELS) * len(PARTS), len(CLASS_SETS) * len(PARTS)
    values = {}
    for u, uncertain in enumerate(UNCERTAIN):
        block = summed[..., u * (classes + sets) : (u + 1) * (classes + sets)]
        counts = block[..., :classes].reshape(*summed.shape[:-1], len(LABELS), 3)
        examples = block[..., classes:].reshape(*summed.shape[:-1], len(CLASS_SETS), len(PARTS))
        examples = examples / summed[..., -1:, None]
        support = counts[..., 0] + counts[..., 2]
        each = _prf(*np.moveaxis(counts, -1, 0))
        for s, (name, members) in enumerate(CLASS_SETS.items()):
            weight = support[..., members, None]
            cells = {
                "micro": _prf(*np.moveaxis(counts[..., members, :].sum(-2), -1, 0)),
                "macro": each[..., members, :].mean(-2),
                "example": examples[..., s, :],
                "weighted": _divide((each[..., members, :] * weight).sum(-2), weight.sum(-2)),
            }
            values |= {(average, name, uncertain, part): cells[average][..., p]
                       for average in AVERAGES for p, part in enumerate(PARTS)}
        for i, label in enumerate(LABELS):
            values |= {("per_class", uncertain, label, part): each[..., i, p] for p, part in enumerate(PARTS)}
    return values


def supports(reference):
    """{uncertain: {label: number of references that are positive}}."""
    reference = np.asarray(reference)
    return {uncertain: dict(zip(LABELS, np.isin(reference, values).sum(0).tolist()))
            for uncertain, values in UNCERTAIN.items()}


def measure_clinical(hypothesis, reference):
    """Measured of two label arrays (N, 14)."""
    return Measured(clinical_statistics(hypothesis, reference), clinical_values)


def clinical_scores(hypothesis, reference):
    """Label arrays (N, 14) → grid[average][classes][uncertain] → {"precision", "recall", "f1"}, and
    grid["per_class"][uncertain][label], which has "support" too."""
    statistics = clinical_statistics(hypothesis, reference)
    grid = nest({path: float(value) for path, value in clinical_values(statistics.sum(0)).items()})
    for uncertain, counts in supports(reference).items():
        for label, support in counts.items():
            grid["per_class"][uncertain][label]["support"] = support
    return grid
