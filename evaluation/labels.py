"""Labels and scores of texts: labelers, and the rows that hold labels and scores.

A row is {"id", "hypothesis": text, "reference": text or list of texts}, a line of reports.jsonl. It may also hold, for
each side ("hypothesis", "reference"),
    "labels":    14 values in CheXbert's order and coding
    "findings":  [{"finding", "severity", "location"}], if known
With several references, the first one is labelled. A row that networks have scored also holds
    "scores":    {name: value}, from metrics/model_based.py, for this pair of texts
"""

from typing import Callable, NamedTuple

import numpy as np

SIDES = ("hypothesis", "reference")


class Labeler(NamedTuple):
    """Reads labels from texts: labeler(texts) → one (14 labels, findings or None) per text."""

    name: str        # the "labels_from" of metrics.json
    read: Callable

    def __call__(self, texts):
        return self.read(texts)


def phantom_labeler():
    """The phantom's own rules, which also give findings with severity and side."""
    from data.phantom import label  # only here, since it imports drawing code

    return Labeler("phantom rules", lambda texts: [label(text) for text in texts])


def chexbert_labeler(chexbert):
    """A `Labeler` from a metrics.chexbert.Labeler; it gives no findings."""
    return Labeler("CheXbert", lambda texts: [(labels, None) for labels in chexbert(texts)])


def references_of(row):
    return [row["reference"]] if isinstance(row["reference"], str) else row["reference"]


def reference_text(row):
    return references_of(row)[0]


def labels_of(rows, side):
    """(N, 14) of labelled rows."""
    return np.array([row["labels"][side] for row in rows])


def missing_labels(rows):
    """[(number of the row, side)] of the texts without labels."""
    return [(number, side) for number, row in enumerate(rows) for side in SIDES if side not in row.get("labels", {})]


def with_labels(rows, labeler):
    """(rows with labels on both sides, origin of the labels): given labels stay, the labeler labels the other texts."""
    missing = missing_labels(rows)
    if not missing:
        return list(rows), "given"

    # All texts at once, so that a labeler can sort them, and read equal texts only once.
    texts = [rows[number]["hypothesis"] if side == "hypothesis" else reference_text(rows[number])
             for number, side in missing]
    read = dict(zip(missing, labeler(texts), strict=True))

    labelled = []
    for number, row in enumerate(rows):
        new = {side: read[number, side] for side in SIDES if (number, side) in read}
        labels = {**row.get("labels", {}), **{side: list(labels) for side, (labels, _) in new.items()}}
        findings = row.get("findings", {})
        # Findings are read from generated reports only: those of a reference must be known, else there is no truth.
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
    """{name: rows} of systems, with the scores of `models` (metrics.model_based.ModelScores) in every row.

    All systems at once, so that a text that several systems wrote is read only once.
    """
    rows = [row for of_system in systems.values() for row in of_system]
    scores = models([row["hypothesis"] for row in rows], [references_of(row) for row in rows])
    scored = iter([{**row, "scores": {name: round(float(values[number]), 6) for name, values in scores.items()}}
                   for number, row in enumerate(rows)])
    return {name: [next(scored) for _ in of_system] for name, of_system in systems.items()}
