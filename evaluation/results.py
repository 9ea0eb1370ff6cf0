"""The tables of metrics.json: language, clinical and truth, each figure with its interval, and paired differences.

`evaluate_texts` is the one way from texts to figures; scoring given reports and scoring a checkpoint both go through
it. A row is {"id", "hypothesis": text, "reference": text or list of texts} and may hold, for either side,
    "labels":    14 values in CheXbert's order and coding
    "findings":  [{"finding", "severity", "location"}], where they are known
With several references the first is the one that labels are read from.
"""

import platform
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.files import UserError, file_digest
from metrics import CLEANINGS, PROTOCOLS, measure, prepare
from metrics.clinical import measure_clinical, supports
from metrics.intervals import DRAWS, LEVEL, SEED, differences, with_intervals
from metrics.meteor_data import JAR, TABLE, find_data, read_lexicon
from metrics.truth import judged, measure_truth


def references_of(row):
    return [row["reference"]] if isinstance(row["reference"], str) else row["reference"]


def reference_text(row):
    return references_of(row)[0]


def missing_labels(rows):
    """[(row, side)] of the texts that carry no labels."""
    return [(row, side) for row in rows for side in ("hypothesis", "reference") if side not in row.get("labels", {})]


def add_labels(rows, label, name):
    """Labels in place the texts that have none, and says where the labels come from.

    label(texts) → one (labels, findings or None) a text; `name` is its name in the settings.
    """
    missing = missing_labels(rows)
    texts = [row["hypothesis"] if side == "hypothesis" else reference_text(row) for row, side in missing]
    for (row, side), (labels, findings) in zip(missing, label(texts) if texts else (), strict=True):
        row.setdefault("labels", {})[side] = list(labels)
        # Only what a generated report states is read from text: a reference's findings are known, or there is no truth.
        if findings is not None and side == "hypothesis":
            row.setdefault("findings", {}).setdefault(side, findings)
    if not missing:
        return "given"
    sides = {side for _, side in missing}
    if len(missing) == 2 * len(rows):
        return name
    return f"{name} for the {' and the '.join(sorted(sides))}, given otherwise" if len(missing) % len(rows) == 0 else \
        f"{name} where not given"


def labels_of(rows, side):
    return np.array([row["labels"][side] for row in rows])


def evaluate_texts(rows, protocols=PROTOCOLS, cleaning="iu", reference_words=None, meteor_data=None, labels_from=None,
                   against=None, draws=DRAWS, seed=SEED):
    """{"settings", "language", "clinical", "truth", "against"} of rows; parts without data are left out.

    protocols: of metrics.PROTOCOLS. cleaning, reference_words: of "r2gen". meteor_data: METEOR's folder, None to look
    for an installed one, False for none. labels_from: add_labels' answer; None leaves the clinical part out. against:
    rows of another system with the same ids and references. Every figure is {"value", "low", "high"} over `draws`
    resamples. Raises UserError.
    """
    other = _matched(rows, against) if against is not None else None
    folder = None if meteor_data is False else find_data(meteor_data)
    systems = [system for system in (rows, other) if system is not None]
    texts = {protocol: [prepare([row["hypothesis"] for row in system], [row["reference"] for row in system], protocol,
                                cleaning, reference_words) for system in systems] for protocol in protocols}
    lexicon = read_lexicon(folder, [text for prepared in texts.values() for hypotheses, references in prepared
                                    for text in [*hypotheses, *(t for several in references for t in several)]])
    measured = {("language", protocol): [measure(*pair, lexicon) for pair in prepared]
                for protocol, prepared in texts.items()}
    if labels_from is not None:
        measured["clinical",] = [measure_clinical(labels_of(s, "hypothesis"), labels_of(s, "reference"))
                                 for s in systems]
        if all(len(row.get("findings", {})) == 2 for system in systems for row in system):
            measured["truth",] = [
                measure_truth(labels_of(s, "hypothesis"), labels_of(s, "reference"),
                              *([row["findings"][side] for row in s] for side in ("hypothesis", "reference")))
                for s in systems]
    result = {"settings": {
        "n": len(rows),
        "protocols": {protocol: _described(protocol, cleaning, reference_words) for protocol in protocols},
        "meteor": _meteor_settings(folder),
        "intervals": f"{LEVEL:.0%} percentile bootstrap over items, {draws} draws, seed {seed}, from per-item "
                     "statistics; CIDEr keeps the document frequencies of the full set",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }, "language": {}}
    for path, (own, *_) in measured.items():
        _put(result, path, with_intervals(own, draws, seed))
    if other is not None:
        result["against"] = {"language": {}}
        for path, (own, others) in measured.items():
            _put(result["against"], path, differences(own, others, draws, seed))
    for part in (result, result.get("against", {})):
        if "clinical" in part:
            grid = part["clinical"]
            part["clinical"] = {"grid": grid, "per_class": grid.pop("per_class"), "labels_from": labels_from}
    if "clinical" in result:
        for uncertain, counts in supports(labels_of(rows, "reference")).items():
            for label, support in counts.items():
                result["clinical"]["per_class"][uncertain][label]["support"] = support
    if "truth" in result:
        for name, n in judged(measured["truth",][0]).items():
            result["truth"][name]["n"] = n
    return result


def _put(result, path, value):
    *parents, last = path
    for name in parents:
        result = result.setdefault(name, {})
    result[last] = value


def _matched(rows, others):
    """The other system's rows in the order of these. Raises UserError where ids or references differ."""
    by_id = {row["id"]: row for row in others}
    unmatched = [row["id"] for row in rows if row["id"] not in by_id]
    if unmatched or len(others) != len(rows):
        extra = unmatched or sorted(by_id.keys() - {row["id"] for row in rows})
        raise UserError(f"the two sets of reports differ: id {extra[0]!r} is in one of them only; "
                        "a paired comparison needs the same studies")
    matched = [by_id[row["id"]] for row in rows]
    for row, other in zip(rows, matched):
        if references_of(row) != references_of(other):
            raise UserError(f"the two sets of reports have different references for id {row['id']!r}; "
                            "a paired comparison needs the same ones")
    return matched


def _described(protocol, cleaning, reference_words):
    if protocol == "coco":
        return "Penn Treebank tokens, punctuation dropped, full references (pycocoevalcap's practice)"
    words = reference_words or CLEANINGS[cleaning][1]
    return (f"both sides cleaned as {'R2GenGPT' if 'gpt' in cleaning else 'R2Gen'} does ({cleaning}), "
            f'blank-separated tokens, " . " counts, references cut to {words} words; '
            "published rows were computed this way")


def _meteor_settings(folder):
    if folder is None:
        return "exact+stem: METEOR's synonym and paraphrase data were not found (--meteor-data)"
    return {"data": str(folder), **{Path(name).name: file_digest(folder / name) for name in (JAR, TABLE)}}


def phantom_labels(texts):
    """(labels, findings) of each text by the phantom's own rules."""
    from data.phantom import label  # drawing code that scoring given texts should not have to load

    return [label(text) for text in texts]


@lru_cache(maxsize=1)
def chexbert_labels(folder, device="cpu"):
    """A function texts → [(labels, None)] by the CheXbert model in a folder, loaded once a run. Raises UserError."""
    from metrics.chexbert import Labeler  # torch, which scoring given texts should not have to load

    labeler = Labeler.from_pretrained(folder, device)
    return lambda texts: [(labels, None) for labels in labeler(texts)]
