"""Labels and scores of texts: who reads them, and rows that carry them.

A row is {"id", "hypothesis": text, "reference": text or list of texts}, a line of reports.jsonl, and may hold, for
either side ("hypothesis", "reference"),
    "labels":    14 values in CheXbert's order and coding
    "findings":  [{"finding", "severity", "location"}], where they are known
With several references the first is the one that labels are read from. A row that networks have scored also holds
    "scores":    {name: value}, as metrics/model_based.py gives them for this pair of texts
"""

from typing import Callable, NamedTuple

import numpy as np

SIDES = ("hypothesis", "reference")


class Labeler(NamedTuple):
    """Reads labels from texts: labeler(texts) → one (14 labels, findings or None) per text."""

    name: str        # as "labels_from" in metrics.json
    read: Callable

    def __call__(self, texts):
        return self.read(texts)


def phantom_labeler():
    """The phantom's own rules, which know severity and side as well."""
    from data.phantom import label  # with its drawing code, which scoring given texts should not have to load

    return Labeler("phantom rules", lambda texts: [label(text) for text in texts])


def chexbert_labeler(chexbert):
    """The same of a metrics.chexbert.Labeler, which knows no findings."""
    return Labeler("CheXbert", lambda texts: [(labels, None) for labels in chexbert(texts)])


def references_of(row):
    return [row["reference"]] if isinstance(row["reference"], str) else row["reference"]


def reference_text(row):
    return references_of(row)[0]


def labels_of(rows, side):
    """(N, 14) of labelled rows."""
    return np.array([row["labels"][side] for row in rows])


def missing_labels(rows):
    """[(number of the row, side)] of the texts that carry no labels."""
    return [(number, side) for number, row in enumerate(rows) for side in SIDES if side not in row.get("labels", {})]


def with_labels(rows, labeler):
    """(rows with labels on both sides, where these come from): given labels stay, the labeler reads the other texts."""
    missing = missing_labels(rows)
    if not missing:
        return list(rows), "given"

    # All texts at once, so that a labeler can sort them and read equal ones once.
    texts = [rows[number]["hypothesis"] if side == "hypothesis" else reference_text(rows[number])
             for number, side in missing]
    read = dict(zip(missing, labeler(texts), strict=True))

    labelled = []
    for number, row in enumerate(rows):
        new = {side: read[number, side] for side in SIDES if (number, side) in read}
        labels = {**row.get("labels", {}), **{side: list(labels) for side, (labels, _) in new.items()}}
        findings = row.get("findings", {})
        # Only what a generated report states is read from text: a reference's findings are known, or there is no truth.
        if "hypothesis" in new and "hypothesis" not in findings and new["hypothesis"][1] is not None:
            findings = {**findings, "hypothesis": new["hypothesis"][1]}
        labelled.append({**row, "labels": labels, **({"findings": findings} if findings else {})})

    if len(missing) == 2 * len(rows):
        return labelled, labeler.name
    sides = {side for _, side in missing}
    if len(missing) == len(sides) * len(rows):
        return labelled, f"{labeler.name} for the {' and the '.join(sorted(sides))}, given otherwise"
    return labelled, f"{labeler.name} where not given"


def with_scores(systems, models):
    """{name: rows} of systems, the `models`' scores (metrics.model_based.ModelScores) in every row.

    All systems at once, so that what several of them write is read once.
    """
    rows = [row for of_system in systems.values() for row in of_system]
    scores = models([row["hypothesis"] for row in rows], [references_of(row) for row in rows])
    scored = iter([{**row, "scores": {name: round(float(values[number]), 6) for name, values in scores.items()}}
                   for number, row in enumerate(rows)])
    return {name: [next(scored) for _ in of_system] for name, of_system in systems.items()}
