"""The tables of the page as HTML, from metrics.json: every figure under its full name, with its interval."""

from html import escape

from data.reports import LABELS
from metrics.charts import bar, intervals, number
from metrics.clinical import PARTS
from metrics.gallery import DISEASES, confusion
from metrics.published import AGAIN, ROWS

LANGUAGE = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "METEOR", "CIDEr")   # the papers' order
FLOORS = {"permuted_pictures": "other studies’ pictures", "most_frequent_report": "most frequent report"}
TRUTH = {"invented_per_report": "invented findings a report", "missed_per_report": "missed findings a report",
         "side_accuracy": "side right", "severity_accuracy": "severity right"}
# The cells of the clinical grid that published rows come nearest to: 14 labels, uncertain as negative.
BESIDE = ("macro", "micro", "example")


def table(header, rows, cls=""):
    """header: texts or HTML already escaped; rows: (class, [cells]), the first cell naming the row. Wide ones scroll."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(f'<tr class="{row_cls}"><th scope="row">{cells[0]}</th>{"".join(f"<td>{cell}</td>" for cell in cells[1:])}</tr>'
                   for row_cls, cells in rows)
    return f'<div class="scroll" tabindex="0"><table class="{cls}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(cell, digits=3):
    """The value, and its interval below it."""
    if cell["value"] is None:
        return "–"
    return f'{number(cell["value"], digits)}<small>{number(cell["low"], digits)}–{number(cell["high"], digits)}</small>'


def language_cells(scores):
    """The seven columns of a protocol's scores; a METEOR without its synonyms says so."""
    cells = []
    for name in LANGUAGE:
        found = next((key for key in scores if key.partition(" (")[0] == name), None)
        mark = f' <em>{escape(found.partition(" (")[2].rstrip(")"))}</em>' if found and found != name else ""
        cells.append(figure(scores[found]) + mark if found else "")
    return cells


def score_table(metrics, preset=None):
    """Our rows, one convention a row, and published rows beside them where the preset has any."""
    blank = [""] * len(LANGUAGE)
    rows = [("own", [f"this run, <b>{escape(protocol)}</b>", *language_cells(scores), "", "", "", protocol_note(protocol)])
            for protocol, scores in metrics["language"].items()]
    if "clinical" in metrics:
        grid = metrics["clinical"]["grid"]
        rows += [("own", [f"this run, <b>{average}</b>", *blank, *(figure(grid[average]["14"]["negative"][part]) for part in PARTS),
                          f"{average} over 14 labels, uncertain as negative"]) for average in BESIDE]
    for row in ROWS.get(preset, ()):
        notes = "; ".join(note for note in (row.protocol and f"texts: {row.protocol}", row.average and f"labels: {row.average}") if note)
        rows.append(("again" if row.kind == AGAIN else "other", [
            f"{escape(row.name)}<small>{escape(row.source)}</small>",
            *(number(row.language[name]) if name in row.language else "" for name in LANGUAGE),
            *("" if value is None else number(value) for value in row.clinical), escape(notes)]))
    if not any(row.language for row in ROWS.get(preset, ())) and "clinical" not in metrics:
        return table(["", *LANGUAGE, "counted on"], [(cls, [*cells[:-4], cells[-1]]) for cls, cells in rows], "scores")
    return table(["", *LANGUAGE, "precision", "recall", "F1", "counted on"], rows, "scores")


def protocol_note(protocol):
    return {"coco": "full references, Penn Treebank tokens", "r2gen": "R2Gen’s cleaning, the stop counts, references cut"}[protocol]


def clinical_grid(grid):
    """F1, precision and recall of every reading: averages by class sets and uncertain."""
    columns = [(classes, uncertain) for classes in ("14", "13", "5") if classes in grid["micro"] for uncertain in grid["micro"][classes]]
    header = ["", *(f"{classes} labels<small>uncertain as {uncertain}</small>" for classes, uncertain in columns)]
    rows = []
    for average in ("macro", "micro", "example", "weighted"):
        if average in grid:
            rows += [("f1" if part == "f1" else "part", [
                f"<b>{average}</b> F1" if part == "f1" else part,
                *(figure(grid[average][classes][uncertain][part]) for classes, uncertain in columns)])
                for part in ("f1", "precision", "recall")]
    return table(header, rows, "grid")


def headline(metrics):
    """[(name, cell, digits)] that the page opens with and that floors are compared by; as far as they are known."""
    figures = [(f"{name} ({protocol})", scores[name]) for protocol, scores in metrics.get("language", {}).items()
               for name in ("BLEU-4", "CIDEr") if name in scores]
    if "clinical" in metrics:
        grid = metrics["clinical"]["grid"]
        figures += [(f"{average} F1 (14 labels)", grid[average]["14"]["positive"]["f1"]) for average in ("micro", "macro")]
    return figures + [(TRUTH.get(name, name), cell) for name, cell in metrics.get("truth", {}).items()]


def floors_table(metrics):
    """Every headline figure beside what texts reach that have nothing to do with the picture."""
    floors = {name: dict(headline(scores)) for name, scores in metrics["floors"].items()}
    none = {"value": None}
    rows = []
    for name, cell in headline(metrics):
        cells = [cell, *(scores.get(name, none) for scores in floors.values())]
        rows.append(("", [escape(name), *map(figure, cells), intervals(cells, ["own", "floor-a", "floor-b"])]))
    keys = [f'<span class="key {cls}"></span>{escape(FLOORS.get(name, name))}' for name, cls in zip(floors, ("floor-a", "floor-b"))]
    return table(["", '<span class="key own"></span>this model', *keys, ""], rows, "floors")


def near_floor(metrics):
    """The floors that the micro F1 (else CIDEr) does not clear: its interval reaches theirs. [(name, floor, cell, cell)]"""
    own = dict(headline(metrics))
    judge = "micro F1 (14 labels)" if "clinical" in metrics else next((name for name in own if name.startswith("CIDEr")), None)
    return [(judge, FLOORS.get(name, name), own[judge], cell) for name, scores in metrics.get("floors", {}).items()
            if judge and (cell := dict(headline(scores)).get(judge)) and None not in (own[judge]["value"], cell["value"])
            and own[judge]["low"] <= cell["high"]]


def findings_table(per_class, rows):
    """Per finding, uncertain as negative: support, bars, and how often it was invented and missed (buttons for the gallery)."""
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
    """A count that shows its studies in the gallery when pressed."""
    return f'<button class="count {kind}" data-finding="{escape(finding)}" data-kind="{kind}"{" disabled" * (not count)}>{count}</button>'


def confusion_table(rows):
    """Rows: the finding that was missed; columns: what the same report invented; the diagonal: found."""
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
            cells.append(f'<span class="{"hit" if i == j and i < len(DISEASES) else f"level-{level}"}">{count or ""}</span>')
        lines.append(("", [escape(name), *cells]))
    return table(['<span class="corner">missed ↓ &nbsp; invented →</span>', *(f"<span>{escape(name)}</span>" for name in names),
                  "<span>nothing invented</span>"], lines, "confusion")
