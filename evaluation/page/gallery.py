"""The studies of the page as JSON for page.js: findings that report and reference share or not, thumbnails, heat maps.

Only a positive label (1) counts as a finding, as in metrics/truth.py; "No Finding" does not. The kinds of a finding,
and of the sentence that states it:

    match      both reports state the finding
    differs    both state the finding, but with another side or severity
    invented   only the generated report states the finding
    missed     only the reference states the finding
    denied     missed, and this sentence of the generated report denies the finding
"""

import base64
import io
import re

import numpy as np

from data.reports import LABELS
from evaluation.labels import reference_text
from evaluation.results import DISEASES
from metrics import prepare
from metrics.rouge import rouge_l
from metrics.truth import side

STUDIES = 500                                      # most studies on a page, whose file would else be too large
SIDE, QUALITY = 128, 72                            # of a thumbnail: longer side in pixels, JPEG quality
WORST_FIRST = ("invented", "denied", "missed", "differs", "match")
SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")


def labelled(rows):
    """Whether every row has labels on both sides."""
    return bool(rows) and all(len(row.get("labels") or {}) == 2 for row in rows)


def stated(row, side):
    """The positive findings of one side of a row, as a set of indices into LABELS."""
    return {i for i in DISEASES if row["labels"][side][i] == 1}


def finding_kinds(row):
    """{index into LABELS: (kind, note)} of a labelled row, in LABELS' order."""
    generated, true = stated(row, "hypothesis"), stated(row, "reference")
    kinds = {}
    for i in sorted(generated | true):
        note = disagreement(row, LABELS[i]) if i in generated & true else ""
        kind = "invented" if i not in true else "missed" if i not in generated else "differs" if note else "match"
        kinds[i] = (kind, note)
    return kinds


def disagreement(row, name):
    """"left, not right", "mild, not severe": how a finding's side and severity differ, if both reports state them."""
    both = [{finding["finding"]: finding for finding in row.get("findings", {}).get(which) or ()}.get(name)
            for which in ("hypothesis", "reference")]
    if None in both:
        return ""
    (found_side, true_side), (found, true) = (side(f["location"]) for f in both), (f["severity"] for f in both)
    notes = [f"{ours or f'no {what}'}, not {theirs}" for what, ours, theirs
             in (("side", found_side, true_side), ("severity", found, true)) if theirs and ours != theirs]
    return "; ".join(notes)


def sentence_kind(row, which, labels, kinds):
    """(kind or "", names of the findings) of one sentence with these labels; of several kinds the worst."""
    stated = ("match", "differs", "invented" if which == "hypothesis" else "missed")
    found = []
    for i in DISEASES:
        kind = kinds.get(i, ("", ""))[0]
        if labels[i] == 1 and kind in stated:
            found.append((kind, LABELS[i]))
        elif labels[i] == 2 and which == "hypothesis" and kind == "missed":
            found.append(("denied", LABELS[i]))
    if not found:
        return "", []
    return min((kind for kind, _ in found), key=WORST_FIRST.index), [name for _, name in found]


def sentences_of(text):
    """The sentences of a text, unchanged but for the white space between them."""
    return [piece for piece in SENTENCE.split(text.strip()) if piece]


def studies(rows, pictures=None, maps=None, labeler=None):
    """(studies as JSON, number of studies left out). At most `STUDIES`, see `chosen`.

    pictures(i) → uint8 arrays (S, S), one per view, or None. maps(i) → one study's entry of writing.clue_maps, or None.
    labeler(texts) → [(14 labels, …)] marks single sentences (evaluation/labels.py).
    """
    similar = similarity(rows)
    known = labelled(rows)
    found = [finding_kinds(row) if known else {} for row in rows]
    agree = [agreement(row) if known else similar[i] for i, row in enumerate(rows)]
    kept = chosen(agree, similar, found)
    of_sentence = label_sentences([rows[i] for i in kept], labeler) if labeler and known else {}
    return [study(rows[i], found[i], agree[i], similar[i], of_sentence, pictures and pictures(i), maps and maps(i))
            for i in kept], len(rows) - len(kept)


def study(row, kinds, agree, similar, of_sentence, views, maps):
    """One study as JSON, with short field names, since a page holds hundreds of studies."""
    return {
        "id": str(row["id"]),
        "h": marked(row, "hypothesis", kinds, of_sentence), "r": marked(row, "reference", kinds, of_sentence),
        "f": [[LABELS[i], kind, note] for i, (kind, note) in kinds.items()],
        "s": round(agree, 4), "l": round(similar, 4),
        "v": [thumbnail(view) for view in (() if views is None else views)],
        "c": [[clue["prompt"], round(clue["weight"], 4)] for clue in row.get("clues") or ()],
        "m": None if maps is None else {
            "clues": [quantised(grid) for _, _, grid in maps.get("clues", ())],
            "queries": quantised(maps["queries"]) if maps.get("queries") is not None else None,
            "cover": round(float(maps.get("cover", 1)), 4)},
    }


def marked(row, which, kinds, of_sentence):
    """One side of a row as [[sentence, kind or "", names of findings], …]; of_sentence: from `label_sentences`."""
    text = reference_text(row) if which == "reference" else row["hypothesis"]
    return [[piece, *(sentence_kind(row, which, of_sentence[piece], kinds) if piece in of_sentence else ("", []))]
            for piece in sentences_of(text)]


def label_sentences(rows, labeler):
    """{sentence: labels} of all distinct sentences of both sides."""
    pieces = list(dict.fromkeys(piece for row in rows for text in (row["hypothesis"], reference_text(row))
                                for piece in sentences_of(text)))
    return {piece: list(labels) for piece, (labels, *_) in zip(pieces, labeler(pieces), strict=True)}


def similarity(rows):
    """ROUGE-L of every row, on Penn Treebank tokens."""
    hypotheses, references = prepare([row["hypothesis"] for row in rows], [row["reference"] for row in rows], "coco")
    return [float(value) for value in rouge_l(hypotheses, references)[1]]


def agreement(row):
    """F1 of one report's 14 labels, uncertain as negative; 1 if neither side has a positive label."""
    generated, true = ({i for i, value in enumerate(row["labels"][which]) if value == 1}
                       for which in ("hypothesis", "reference"))
    return 2 * len(generated & true) / (len(generated) + len(true)) if generated or true else 1.0


def chosen(agree, similar, found):
    """The numbers of the rows to show, in order: all, or one third each of the best, the worst, and those with the most
    differing findings."""
    numbers = range(len(agree))
    if len(agree) <= STUDIES:
        return list(numbers)
    best = sorted(numbers, key=lambda i: (-agree[i], -similar[i]))
    disputed = sorted(numbers, key=lambda i: (-sum(kind != "match" for kind, _ in found[i].values()), similar[i]))
    kept = dict.fromkeys(best[:STUDIES // 3] + best[-(STUDIES // 3):])
    return sorted([*kept, *(i for i in disputed if i not in kept)][:STUDIES])


def thumbnail(view):
    """A uint8 array (S, S) → a small JPEG in base64."""
    from PIL import Image  # only here, since scoring given texts needs no Pillow

    picture = Image.fromarray(np.asarray(view, np.uint8))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def quantised(grid):
    """(V, g, g) → [lowest, highest, g, [g·g bytes in base64, per view]], with one scale for all views."""
    grid = np.asarray(grid, np.float64)
    low, high = float(grid.min()), float(grid.max())
    levels = np.round((grid - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    packed = [base64.b64encode(view.tobytes()).decode() for view in levels]
    return [round(low, 4), round(high, 4), grid.shape[-1], packed]


def confusion(rows):
    """(14, 14) counts over labelled rows: [missed finding, invented finding] of the same report; found on the diagonal.

    The last row counts inventions in reports that miss nothing, the last column misses in reports that invent nothing.
    """
    counts = np.zeros((len(DISEASES) + 1,) * 2, int)
    for row in rows:
        generated, true = stated(row, "hypothesis"), stated(row, "reference")
        for i in generated & true:
            counts[i, i] += 1
        for i in true - generated or {len(DISEASES)}:
            for j in generated - true or {len(DISEASES)}:
                counts[i, j] += 1
    counts[-1, -1] = 0
    return counts
