"""Clinical efficacy: precision, recall and F1 of the findings in a report against the findings in its reference.

Input: two arrays (N, 14) in CheXbert's order and coding: 0 blank, 1 positive, 2 negative, 3 uncertain. "F1" alone is
ambiguous, because the literature prints different cells of one grid under that name:

    average     micro: counts summed over classes · macro: mean of the classes' values · weighted: mean of the classes'
                values weighted by support · example: mean of the reports' values
    classes     14 · 13: without No Finding · 5: Cardiomegaly, Edema, Consolidation, Atelectasis, Pleural Effusion
    uncertain   "positive": 3 counts as 1 (f1chexbert, RadEval, WCL) · "negative": as 0 (R2Gen, PromptMRG)

A ratio 0/0 is 0, as in scikit-learn with zero_division=0.

Traps
- Macro F1 is the mean of the classes' F1, not 2PR / (P + R) of the macro means.
- "example" gives 0 to a report if neither the report nor its reference has a positive class. So without the class No
  Finding, a correct normal report scores 0.
- Other tools order the classes differently (MIMIC-CXR's CSV is alphabetical). "rrg" counts uncertain as positive in one
  tool and as negative in another.
- The mean of the values of ranks or batches is not the value over all reports.
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

# A report's statistics: for each treatment of uncertain, a table of counts and a table of the report's own values; then
# a 1, which counts the reports.
COUNTS = (len(LABELS), 3)                    # tp, fp, fn of each class
OWN_VALUES = (len(CLASS_SETS), len(PARTS))   # over each class set
ENDS = np.cumsum([np.prod(table) for _ in UNCERTAIN for table in (COUNTS, OWN_VALUES)])


def _divide(a, b):
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=np.asarray(b) != 0)


def _prf(counts):
    """tp, fp, fn (..., 3) → precision, recall, F1 (..., 3)."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return np.stack([_divide(tp, tp + fp), _divide(tp, tp + fn), _divide(2 * tp, 2 * tp + fp + fn)], axis=-1)


def clinical_statistics(hypothesis, reference):
    """Two label arrays (N, 14) → the reports' statistics (N, k), described above, whose sum gives the corpus scores.

    Raises UserError for arrays that are not labels, or whose lengths differ.
    """
    hypothesis, reference = np.asarray(hypothesis), np.asarray(reference)
    for labels in (hypothesis, reference):
        if labels.ndim != 2 or labels.shape[1] != len(LABELS) or not np.isin(labels, (0, 1, 2, 3)).all():
            raise UserError(f"labels do not fit; give {len(LABELS)} values 0 (blank), 1 (positive), 2 (negative) or 3 "
                            "(uncertain) per report, in CheXbert's order")
    if len(hypothesis) != len(reference):
        raise UserError(f"labels of {len(hypothesis)} hypotheses, but of {len(reference)} references; give labels of "
                        "both for every report")

    tables = []
    for values in UNCERTAIN.values():
        h, r = np.isin(hypothesis, values), np.isin(reference, values)
        counts = np.stack([h & r, h & ~r, ~h & r], axis=-1).astype(np.float64)
        own_values = np.stack([_prf(counts[:, members].sum(1)) for members in CLASS_SETS.values()], axis=1)
        tables += [counts, own_values]
    return np.concatenate([*(table.reshape(len(table), -1) for table in tables), np.ones((len(hypothesis), 1))], axis=1)


def clinical_values(summed):
    """Summed statistics (..., k) → {(average, classes, uncertain, part): (...)}, a part being precision, recall or f1.

    Also has the keys ("per_class", uncertain, label, part).
    """
    *tables, reports = np.split(np.asarray(summed), ENDS, axis=-1)
    values = {}
    for uncertain, counts, own_values in zip(UNCERTAIN, tables[::2], tables[1::2]):
        counts = counts.reshape(*counts.shape[:-1], *COUNTS)
        examples = own_values.reshape(*own_values.shape[:-1], *OWN_VALUES) / reports[..., None]
        support = counts[..., 0] + counts[..., 2]
        per_class = _prf(counts)

        for s, (name, members) in enumerate(CLASS_SETS.items()):
            weight = support[..., members, None]
            cells = {
                "micro": _prf(counts[..., members, :].sum(-2)),
                "macro": per_class[..., members, :].mean(-2),
                "example": examples[..., s, :],
                "weighted": _divide((per_class[..., members, :] * weight).sum(-2), weight.sum(-2)),
            }
            values |= {(average, name, uncertain, part): cells[average][..., p]
                       for average in AVERAGES for p, part in enumerate(PARTS)}
        for i, label in enumerate(LABELS):
            values |= {("per_class", uncertain, label, part): per_class[..., i, p] for p, part in enumerate(PARTS)}
    return values


def supports(reference):
    """Reference labels (N, 14) → {treatment of uncertain: {label: number of positive references}}."""
    reference = np.asarray(reference)
    return {uncertain: dict(zip(LABELS, np.isin(reference, values).sum(0).tolist()))
            for uncertain, values in UNCERTAIN.items()}


def measure_clinical(hypothesis, reference):
    """Two label arrays (N, 14) → `Measured` scores of the grid."""
    return Measured(clinical_statistics(hypothesis, reference), clinical_values)


def clinical_scores(hypothesis, reference):
    """Two label arrays (N, 14) → the grid of scores. Raises UserError as `clinical_statistics` does.

    grid[average][classes][uncertain] is {"precision", "recall", "f1"}; grid["per_class"][uncertain][label] has these
    and "support".
    """
    statistics = clinical_statistics(hypothesis, reference)
    grid = nest({path: float(value) for path, value in clinical_values(statistics.sum(0)).items()})
    for uncertain, counts in supports(reference).items():
        for label, support in counts.items():
            grid["per_class"][uncertain][label]["support"] = support
    return grid
