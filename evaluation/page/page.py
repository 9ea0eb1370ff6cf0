"""The sections of report.html, for a checkpoint or for given texts. The frame around the sections is in document.py."""

from html import escape

import numpy as np

from data.reports import LABELS
from evaluation.page import charts, gallery, tables
from evaluation.page.charts import intervals, number
from evaluation.page.document import paragraph, settings_section, write
from evaluation.page.published import ROWS
from evaluation.page.training import learned_section, samples_of, training_section
from evaluation.verdicts import headline, near_floor, nearly_alike, variety_lines
from metrics.zero_shot import roc_curve

KINDS = (("match", "both reports state the finding"),
         ("differs", "both state the finding, but with another side or severity"),
         ("invented", "only the generated report states the finding"),
         ("missed", "only the reference states the finding"),
         ("denied", "missed, and this sentence even denies the finding"))


def write_page(path, metrics, rows, *, title, pictures=None, maps=None, labeler=None, log=None, source=None):
    """Writes the page of a stage-2 checkpoint, or of given texts.

    metrics: as in metrics.json; parts may be missing. rows: as in reports.jsonl. pictures(i) → uint8 arrays (S, S), one
    per view of row i, or None. maps(i) → {"clues": [(prompt, weight, (V, g, g))], "queries": (V, g, g) or None,
    "cover": share of the picture's side that the grid covers, in the middle}, or None. labeler(texts) → [(14 labels,
    …)] marks single sentences. log: the rows of the run's log.jsonl. source: the data set whose published results are
    shown below ours. Raises OSError.
    """
    settings, known = metrics.get("settings", {}), gallery.labelled(rows)
    shown, left = gallery.studies(rows, pictures, maps, labeler)
    sections = [("scores", "Scores", scores_section(metrics, source))]
    if metrics.get("floors"):
        sections.append(("floors", "Floors", floors_section(metrics)))
    if "clinical" in metrics:
        sections.append(("clinical", "Clinical grid", clinical_section(metrics["clinical"])))
        if known:
            sections.append(("findings", "Findings", findings_section(metrics["clinical"], rows)))
    sections.append(("gallery", "Studies", gallery_section(shown, left, known, labeler)))
    if samples := samples_of(log or (), labeler):
        sections.append(("learned", "How it learned", how_it_learned(samples, settings.get("step"), labeler)))
    if log:
        sections.append(("training", "Training", training_section(log)))
    sections.append(("settings", "Settings", settings_section(settings)))
    drawn = {"studies": shown, "labelled": known, "labels": [LABELS[i] for i in gallery.DISEASES]}
    write(path, title, f"{settings.get('n', len(rows))} reports", settings, tiles(metrics), sections, drawn)


def write_alignment_page(path, metrics, *, title, scores=None, labels=None, log=None):
    """Writes the page of a stage-1 checkpoint. The ROC curves need scores (N, 14), by the clue prompts, and labels
    (N, 14), in CheXbert's coding. log: the rows of log.jsonl. Raises OSError.
    """
    sections, settings = [], metrics.get("settings", {})
    found = metrics.get("zero_shot", {})
    if found.get("auroc"):
        sections.append(("zero-shot", "Zero-shot recognition", zero_shot_section(found, scores, labels)))
    sections.append(("retrieval", "Retrieval", retrieval_section(metrics["retrieval"])))
    if log:
        sections.append(("training", "Training", training_section(log)))
    sections.append(("settings", "Settings", settings_section(settings)))
    names = (("auroc", "macro AUROC, clue prompts"), ("auroc_pairs", "macro AUROC, finding against no finding"))
    figures = [(name, found[key]["macro"]) for key, name in names if found.get(key)]
    figures += [(f"{RETRIEVAL[way]}, R@5", cells["R@5"]) for way, cells in metrics["retrieval"].items()]
    studies = f"{settings.get('n', '–')} studies"
    write(path, title, studies, settings, "".join(tile(*figure) for figure in figures), sections, None)


# --- sections: each function returns the HTML below a heading ---------------------------------------------------------

def tile(name, cell, floor=None):
    if cell["value"] is None:
        return ""
    known = floor and floor["value"] is not None
    beside = f'<span class="floor">floor {number(floor["value"])}</span>' if known else ""
    return (f'<div class="tile"><span class="name">{escape(name)}</span><b>{number(cell["value"])}</b>'
            f'<span class="interval">{number(cell["low"])} – {number(cell["high"])}</span>{beside}</div>')


def tiles(metrics):
    floor = headline(metrics.get("floors", {}).get("permuted_pictures", {}))
    return "".join(tile(name, cell, floor.get(name)) for name, cell in headline(metrics).items())


def scores_section(metrics, source):
    parts = [tables.score_table(metrics, source)]
    protocols = metrics.get("settings", {}).get("protocols", {})
    parts += [paragraph(f"<b>{escape(name)}</b>: {escape(text)}.", "note") for name, text in protocols.items()]
    parts.append(paragraph("Small figures: 95 % interval over studies. Figures of two rows compare only where the "
                           "last column says the same of both.", "note"))
    if "variety" in metrics:
        n = metrics["settings"]["n"]
        parts += [paragraph(escape(line) + ".") for line in variety_lines(metrics["variety"], n)]
        if warning := nearly_alike(metrics["variety"], n):
            parts.append(paragraph(escape(warning) + ".", "warning"))
    if ROWS.get(source):
        parts.append(paragraph("Rows below ours are results of other papers, and of users who ran released code "
                               "(dashed). Few papers state their protocol; shown is what it <em>appears</em> to be. "
                               "Blank cells: we know no source for the figure.", "note"))
    if "model_based" in metrics:
        parts.append("<h3>Scores computed by networks</h3>" + tables.model_based_table(metrics["model_based"]))
    return "".join(parts)


def floors_section(metrics):
    warnings = "".join(paragraph(f"<b>Near its floor:</b> {escape(verdict)}.", "warning")
                       for verdict in near_floor(metrics))
    return (paragraph("Scores that can be reached without the study’s own pictures: by the same model on another "
                      "study’s pictures, and by the training set’s most frequent report for every study. A model that "
                      "uses its pictures scores clearly better than both.")
            + warnings + tables.floors_table(metrics))


def clinical_section(clinical):
    return (paragraph(f"Labels: {escape(str(clinical['labels_from']))}. The literature calls different cells of this "
                      "grid “F1”. 13 labels: without No Finding; 5: Cardiomegaly, Edema, Consolidation, "
                      "Atelectasis, Pleural Effusion.")
            + tables.clinical_grid(clinical["grid"]))


def findings_section(clinical, rows):
    per_class = clinical["per_class"]["negative"]
    return (paragraph("Uncertain counts as absent. Bars end at the value; whiskers are 95 % intervals. Click a count "
                      "to see its studies.")
            + tables.findings_table(per_class, rows)
            + "<h3>Invented instead of what?</h3>"
            + paragraph("How many reports missed one finding (row) and invented another one (column). Green: how many "
                        "reports found it.")
            + tables.confusion_table(rows))


def gallery_section(shown, left, known, labeler):
    notes = []
    if left:
        notes.append(f"{len(shown)} of {len(shown) + left} studies: the best, the worst, and those with most "
                     "differences; reports.jsonl has all studies.")
    if not known:
        notes.append("Findings are not marked, since these reports have no labels.")
    elif labeler is None:
        notes.append("Findings are marked for the whole report only: no labeler was at hand for single sentences.")
    if any(study["c"] and study["m"] for study in shown):
        notes.append("Heat maps, transparent to yellow: how similar each part of the picture is to the clue (cosine), "
                     "or how much attention the learnable queries pay to it.")
    return (legend() * known + "".join(paragraph(note, "note") for note in notes)
            + '<form id="tools"></form><p id="count" role="status"></p><div id="cards"></div>'
            '<button id="more" hidden>Show more</button>'
            '<noscript><p class="warning">The studies are drawn by JavaScript, which is turned off.</p></noscript>')


def legend():
    kinds = "".join(f'<li><mark class="{kind}">{kind}</mark> {what}</li>' for kind, what in KINDS)
    return f'<ul class="legend">{kinds}</ul>'


def how_it_learned(samples, step, labeler):
    known = labeler is not None
    return (paragraph("Reports that the model wrote for the same val studies (--samples) at each validation of stage "
                      "2, by greedy decoding." + " The marks in the reference compare it with this checkpoint’s report."
                      * known)
            + legend() * known + learned_section(samples, step))


def zero_shot_section(found, scores, labels):
    clue, pairs = found["auroc"], found["auroc_pairs"]

    def cells(one, other):
        return [tables.figure(one), tables.figure(other), intervals([one, other], ["own", "floor-a"])]

    rows = [("", [escape(name), str(cell["positives"]), *cells(cell, pairs["per_finding"][name])])
            for name, cell in clue["per_finding"].items()]
    rows.append(("total", ["macro mean", "", *cells(clue["macro"], pairs["macro"])]))
    header = ["finding", "positives", '<span class="key own"></span>clue prompt',
              '<span class="key floor-a"></span>finding against no finding', "AUROC, axis from 0"]
    panels = ""
    if scores is not None and labels is not None:
        scores, labels = np.asarray(scores), np.asarray(labels)
        for i, name in enumerate(LABELS):
            certain, cell = labels[:, i] != 3, clue["per_finding"][name]
            rates = roc_curve(scores[certain, i], labels[certain, i] == 1) if cell["value"] is not None else None
            caption = f"<figcaption>{escape(name)}<b>{number(cell['value'])}</b></figcaption>"
            panels += f"<figure>{charts.roc(name, rates)}{caption}</figure>"
        panels = f'<div class="panels rocs">{panels}</div>'
    return (paragraph("The score is the cosine of picture and prompt; no label of a picture was used in training. "
                      "An AUROC of 0.5 is chance. Curves: ROC of the clue prompts, false positive rate to the right, "
                      "true positive rate upwards. The same scores choose the clues of stage 2.")
            + panels + tables.table(header, rows, "zero"))


RETRIEVAL = {"image_to_text": "picture → sentence", "text_to_image": "sentence → picture"}


def retrieval_section(retrieval):
    columns = list(next(iter(retrieval.values())))
    rows = [("", [RETRIEVAL[way], *(f'{tables.figure(cells[at])}<small>chance {number(cells[at]["chance"])}</small>'
                                    for at in columns)]) for way, cells in retrieval.items()]
    return paragraph("R@K: the share of pictures for which a right sentence is among the K most similar ones, and the "
                     "same for sentences and pictures.") + tables.table(["", *columns], rows)
