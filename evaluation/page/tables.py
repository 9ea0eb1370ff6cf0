"""The tables of the page as HTML, from metrics.json."""

from html import escape

from data.reports import LABELS
from evaluation.page.charts import bar, intervals, number
from evaluation.page.gallery import confusion
from evaluation.page.published import AGAIN, ROWS
from evaluation.results import DISEASES
from evaluation.verdicts import FLOORS, beside_floors
from metrics.clinical import CLASS_SETS, PARTS, UNCERTAIN

# In the papers' order; a metric added to `metrics.measure` needs its column here.
LANGUAGE = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "METEOR", "CIDEr")
COUNTED = {"coco": "full references, Penn Treebank tokens",
           "r2gen": "R2Gen’s cleaning, the full stop counts as a word, references cut"}
MODEL_BASED = {"SembScore": "cosine of the two texts’ vectors in CheXbert",
               "BERTScore": "F1 of matched tokens; a flipped negation hardly changes it, so never rely on it alone",
               "RadGraph-F1, simple": "F1 of the entities that both texts name",
               "RadGraph-F1, partial": "F1 of entities, each with the fact whether it has a relation",
               "RadGraph-F1, complete": "F1 of entities with their relations",
               "RadGraph-F1, combined": "mean of the F1 of entities and the F1 of relations, as used by RadCliQ",
               "RadCliQ": "number of errors that a radiologist would count, predicted from the scores above and a "
               "BLEU-2; lower is better",
               "1 / RadCliQ": "1 / the mean RadCliQ, as ReXrank reports it; higher is better"}
# The rows of the clinical grid that are closest to published results: 14 labels, uncertain as negative.
BESIDE = ("macro", "micro", "example")


def table(header, rows, cls=""):
    """An HTML table; wide ones scroll. header: escaped HTML; rows: (class, [cells]), whose first cell names the row."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(f'<tr class="{of_row}"><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}'
                   "</tr>" for of_row, (name, *cells) in rows)
    return (f'<div class="scroll" tabindex="0"><table class="{cls}"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def figure(cell, digits=3):
    """A value with its interval below, as HTML."""
    if cell["value"] is None:
        return "–"
    return f'{number(cell["value"], digits)}<small>{number(cell["low"], digits)}–{number(cell["high"], digits)}</small>'


def language_cells(scores):
    """The seven columns of a protocol's scores; METEOR without synonyms is marked "exact+stem"."""
    cells = []
    for name in LANGUAGE:
        found = next((key for key in scores if key.partition(" (")[0] == name), None)
        mark = f' <em>{escape(found.partition(" (")[2].rstrip(")"))}</em>' if found and found != name else ""
        cells.append(figure(scores[found]) + mark if found else "")
    return cells


def score_table(metrics, source=None):
    """Our results, one row per convention, and below them published results for the data set `source`, if known."""
    published = ROWS.get(source, ())
    blank, clinical = [""] * len(LANGUAGE), "clinical" in metrics or published
    none = [""] * len(PARTS) if clinical else []
    rows = [("own", [f"this run, <b>{escape(protocol)}</b>", *language_cells(scores), *none, COUNTED[protocol]])
            for protocol, scores in metrics["language"].items()]
    if "clinical" in metrics:
        for average in BESIDE:
            cell = metrics["clinical"]["grid"][average]["14"]["negative"]
            rows.append(("own", [f"this run, <b>{average}</b>", *blank, *(figure(cell[part]) for part in PARTS),
                                 f"{average} over 14 labels, uncertain as negative"]))
    for row in published:
        notes = [f"{what}: {note}" for what, note in (("texts", row.protocol), ("labels", row.average)) if note]
        rows.append(("again" if row.kind == AGAIN else "other", [
            f"{escape(row.name)}<small>{escape(row.source)}</small>",
            *(number(row.language[name]) if name in row.language else "" for name in LANGUAGE),
            *("" if value is None else number(value) for value in row.clinical), escape("; ".join(notes))]))
    return table(["", *LANGUAGE, *(("precision", "recall", "F1") if clinical else ()), "how computed"], rows, "scores")


def clinical_grid(grid):
    """F1, precision and recall of every convention: averages × class sets × reading of "uncertain"."""
    columns = [(classes, uncertain) for classes in CLASS_SETS for uncertain in UNCERTAIN]
    header = ["", *(f"{classes} labels<small>uncertain as {uncertain}</small>" for classes, uncertain in columns)]
    rows = []
    for average in ("macro", "micro", "example", "weighted"):
        rows += [("f1" if part == "f1" else "part", [
            f"<b>{average}</b> F1" if part == "f1" else part,
            *(figure(grid[average][classes][uncertain][part]) for classes, uncertain in columns)])
            for part in ("f1", "precision", "recall")]
    return table(header, rows, "grid")


def model_based_table(scores):
    """The networks' scores, one per row, each with an explanation."""
    notes = {name: note for name in scores for start, note in MODEL_BASED.items() if name.startswith(start)}
    rows = [("own", [escape(name), figure(cell), notes[name]]) for name, cell in scores.items()]
    return table(["", "this run", "meaning"], rows, "scores")


def floors_table(metrics):
    """The main figures and networks' scores, beside those of the floors."""
    floors = {name: beside_floors(scores) for name, scores in metrics["floors"].items()}
    rows = []
    for name, cell in beside_floors(metrics).items():
        cells = [cell, *(scores[name] for scores in floors.values())]
        rows.append(("", [escape(name), *map(figure, cells), intervals(cells, ["own", "floor-a", "floor-b"])]))
    keys = [f'<span class="key {cls}"></span>{escape(FLOORS[name])}'
            for name, cls in zip(floors, ("floor-a", "floor-b"))]
    return table(["", '<span class="key own"></span>this model', *keys, ""], rows, "floors")


def findings_table(per_class, rows):
    """Per finding, uncertain as negative: support, counts that are links to the studies, and bars."""
    counts = confusion(rows)
    lines = []
    for i, (name, cell) in enumerate(per_class.items()):
        extra = ["", "", ""]
        if i in DISEASES:
            invented = sum(1 for row in rows if row["labels"]["hypothesis"][i] == 1 != row["labels"]["reference"][i])
            missed = sum(1 for row in rows if row["labels"]["reference"][i] == 1 != row["labels"]["hypothesis"][i])
            extra = [jump(name, "match", counts[i, i]), jump(name, "invented", invented), jump(name, "missed", missed)]
        lines.append(("", [escape(name), str(cell["support"]), *extra,
                           *(f'{bar(cell[part], part)}{figure(cell[part], 2)}' for part in PARTS)]))
    return table(["finding", "support", "found", "invented", "missed", "precision", "recall", "F1"], lines, "findings")


def jump(finding, kind, count):
    """A count as a button, which shows its studies in the gallery."""
    return (f'<button class="count {kind}" data-finding="{escape(finding)}" data-kind="{kind}"'
            f'{" disabled" * (not count)}>{count}</button>')


def confusion_table(rows):
    """The counts of `confusion` as a table. Rows: missed finding; columns: invented finding; diagonal: found."""
    counts = confusion(rows)
    used = [i for i in range(len(DISEASES)) if counts[i].any() or counts[:, i].any()]
    names = [LABELS[DISEASES[i]] for i in used]
    order = [*used, len(DISEASES)]
    most = max([counts[i, j] for i in order for j in order if i != j] + [1])
    lines = []
    for i, name in zip(order, [*names, "nothing missed"]):
        cells = []
        for j in order:
            count = counts[i, j]
            level = 0 if not count else 1 + min(4, int(4 * (count - 1) / most)) if i != j else 0
            cls = "hit" if i == j and i < len(DISEASES) else f"level-{level}"
            cells.append(f'<span class="{cls}">{count or ""}</span>')
        lines.append(("", [escape(name), *cells]))
    return table(['<span class="corner">missed ↓ &nbsp; invented →</span>',
                  *(f"<span>{escape(name)}</span>" for name in [*names, "nothing invented"])], lines, "confusion")
