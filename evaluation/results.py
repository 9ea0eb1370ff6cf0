"""The figures of metrics.json: language, clinical, truth and networks' scores, with intervals and paired differences.

`evaluate_texts` computes all figures, both for given reports and for a checkpoint's. Several systems (sets of reports
on the same studies) are measured side by side. A row is described in labels.py.
"""

import platform
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.files import UserError, file_digest
from data.reports import LABELS
from evaluation.labels import SIDES, labels_of, references_of
from metrics import CLEANINGS, PROTOCOLS, measure, prepare
from metrics.clinical import measure_clinical, supports
from metrics.intervals import DRAWS, LEVEL, SEED, differences, with_intervals
from metrics.meteor_data import JAR, TABLE, find_data, read_lexicon
from metrics.radcliq import measure_scores
from metrics.truth import judged, measure_truth

DISEASES = [i for i, name in enumerate(LABELS) if name != "No Finding"]


class Scoring(NamedTuple):
    """How texts are scored."""

    protocols: tuple = PROTOCOLS
    cleaning: str = "iu"                     # of "r2gen"
    reference_words: int | None = None       # of "r2gen"; None: the default of the cleaning's data set
    meteor_data: str | bool | None = None    # METEOR's folder; None: that of an installed pycocoevalcap, False: none
    draws: int = DRAWS                       # bootstrap resamples
    seed: int = SEED                         # of the bootstrap


def evaluate_texts(rows, scoring=Scoring(), labels_from=None, against=None, floors=None):
    """{"settings", "language", "clinical", "truth", "model_based", "variety", "floors", "against"} of rows.

    Parts without data are left out. labels_from: origin of the labels, from `with_labels`; None leaves the clinical
    part out. against: another system's rows, with the same ids and references. floors: {name: rows}. Every figure is
    {"value", "low", "high"}, the interval from the bootstrap. Raises UserError.
    """
    systems = {"": rows, **(floors or {})}
    if against is not None:
        systems["against"] = matched(rows, against)
    folder = None if scoring.meteor_data is False else find_data(scoring.meteor_data)
    measured = measure_systems(systems, scoring, folder, labelled=labels_from is not None)

    result = {"settings": settings_of(rows, scoring, folder),
              **figures_of(rows, measured[""], scoring, labels_from), "variety": variety(rows)}
    if floors is not None:
        result["floors"] = {name: figures_of(of_floor, measured[name], scoring, labels_from)
                            for name, of_floor in floors.items()}
    if against is not None:
        result["against"] = compared(measured[""], measured["against"], scoring, labels_from)
    return result


def measure_systems(systems, scoring, folder, labelled):
    """{system: {path of a part in metrics.json: Measured}} of {system: rows}, all on the same studies.

    folder: METEOR's data, or None. labelled: whether all rows have labels on both sides.
    """
    prepared = {(name, protocol): prepare([row["hypothesis"] for row in rows], [row["reference"] for row in rows],
                                          protocol, scoring.cleaning, scoring.reference_words)
                for name, rows in systems.items() for protocol in scoring.protocols}
    lexicon = read_lexicon(folder)

    # Truth is measured if the findings of both sides are known in all systems.
    known = labelled and all(len(row.get("findings", {})) == 2 for rows in systems.values() for row in rows)
    scored = all("scores" in row for rows in systems.values() for row in rows)
    measured = {}
    for name, rows in systems.items():
        parts = {("language", protocol): measure(*prepared[name, protocol], lexicon) for protocol in scoring.protocols}
        if labelled:
            labels = [labels_of(rows, side) for side in SIDES]
            parts["clinical",] = measure_clinical(*labels)
        if known:
            findings = [[row["findings"][side] for row in rows] for side in SIDES]
            parts["truth",] = measure_truth(*labels, *findings)
        if scored:
            parts["model_based",] = measure_scores({score: [row["scores"][score] for row in rows]
                                                    for score in rows[0]["scores"]})
        measured[name] = parts
    return measured


def figures_of(rows, parts, scoring, labels_from):
    """{"language", "clinical", "truth", "model_based"} of one system, every figure with its interval."""
    result = nested({path: with_intervals(part, scoring.draws, scoring.seed) for path, part in parts.items()})
    if "clinical" in result:
        result["clinical"] = clinical_part(result["clinical"], labels_from)
        for uncertain, counts in supports(labels_of(rows, "reference")).items():
            for label, support in counts.items():
                result["clinical"]["per_class"][uncertain][label]["support"] = support
    if "truth" in result:
        for name, n in judged(parts["truth",]).items():
            result["truth"][name]["n"] = n
    return result


def compared(parts, other_parts, scoring, labels_from):
    """{"language", "clinical", "truth", "model_based"} of the differences between two systems, pair by pair."""
    result = nested({path: differences(part, other_parts[path], scoring.draws, scoring.seed)
                     for path, part in parts.items()})
    if "clinical" in result:
        result["clinical"] = clinical_part(result["clinical"], labels_from)
    return result


def clinical_part(grid, labels_from):
    """The "clinical" part of metrics.json: {"grid", "per_class", "labels_from"}."""
    averages = {name: cells for name, cells in grid.items() if name != "per_class"}
    return {"grid": averages, "per_class": grid["per_class"], "labels_from": labels_from}


def nested(parts):
    """{("language", "coco"): x, ("truth",): y} → {"language": {"coco": x}, "truth": y}"""
    result = {"language": {}}
    for (part, *protocol), value in parts.items():
        if protocol:
            result[part][protocol[0]] = value
        else:
            result[part] = value
    return result


def variety(rows):
    """How much the reports differ from each other, since a model that repeats one report may still score well in BLEU.

    "distinct": number of different reports; "distinct_references": number of different references; "most_frequent":
    share of the most frequent report; "names_nothing": share of reports without a positive finding, None without
    labels.
    """
    texts = Counter(" ".join(row["hypothesis"].split()) for row in rows)
    references = {" ".join(references_of(row)[0].split()) for row in rows}
    known = all("hypothesis" in row.get("labels", {}) for row in rows)
    named = (labels_of(rows, "hypothesis")[:, DISEASES] == 1).any(1) if known else None
    return {"distinct": len(texts), "distinct_references": len(references),
            "most_frequent": max(texts.values()) / len(rows),
            "names_nothing": float((~named).mean()) if known else None}


def matched(rows, others):
    """The other system's rows, in the order of `rows`. Raises UserError if ids or references differ."""
    by_id = {row["id"]: row for row in others}
    if by_id.keys() != {row["id"] for row in rows}:
        unmatched = [row["id"] for row in rows if row["id"] not in by_id]
        extra = unmatched or sorted(by_id.keys() - {row["id"] for row in rows})
        raise UserError(f"the two sets of reports are not on the same studies: id {extra[0]!r} is in only one of them; "
                        "give two files with the same ids")
    ordered = [by_id[row["id"]] for row in rows]
    for row, other in zip(rows, ordered):
        if references_of(row) != references_of(other):
            raise UserError(f"the two sets of reports have different references for id {row['id']!r}; "
                            "give two files with the same references")
    return ordered


def settings_of(rows, scoring, folder):
    """The settings that the figures of metrics.json depend on."""
    return {
        "n": len(rows),
        "protocols": {protocol: described(protocol, scoring) for protocol in scoring.protocols},
        "meteor": "exact+stem: METEOR's synonym and paraphrase data were not found (--meteor-data)" if folder is None
        else {"data": str(folder), **{Path(name).name: file_digest(folder / name) for name in (JAR, TABLE)}},
        "intervals": f"{LEVEL:.0%} percentile bootstrap over items, {scoring.draws} draws, seed {scoring.seed}, from "
                     "per-item statistics; CIDEr keeps the document frequencies of the full set",
        "versions": {"python": platform.python_version(), "numpy": np.__version__}}


def described(protocol, scoring):
    """One sentence on a protocol."""
    if protocol == "coco":
        return "Penn Treebank tokens, punctuation dropped, full references (pycocoevalcap's practice)"
    words = scoring.reference_words or CLEANINGS[scoring.cleaning][1]
    return (f"both sides cleaned as {'R2GenGPT' if 'gpt' in scoring.cleaning else 'R2Gen'} does ({scoring.cleaning}), "
            f'tokens separated by blanks, " . " counts as a word, references cut to {words} words; '
            "most published results were computed this way")
