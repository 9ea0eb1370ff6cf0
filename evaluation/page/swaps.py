"""The page of --swap: verdicts in words, a chart with intervals, a table of differences, and examples of reports."""

from html import escape

from evaluation.page import charts, tables
from evaluation.page.document import paragraph, settings_section, write
from evaluation.verdicts import KINDS, changed

SHOWN = 3                              # number of studies whose reports are shown
TITLES = {"cross-entropy": "cross-entropy ↓", "micro F1": "micro F1 ↑", "invented": "invented ↓", "missed": "missed ↓",
          "BLEU-4": "BLEU-4 ↑", "CIDEr": "CIDEr ↑"}


def write_swap_page(path, metrics, swaps, *, title):
    """Writes the page. metrics: metrics.json of --swap; swaps: {("unchanged",) or (what, kind): rows}. Raises
    OSError."""
    settings = metrics["settings"]
    sections = [("swaps", "What the model uses", swap_section(metrics)),
                ("differences", "Differences", difference_section(metrics["swap"])),
                ("reports", "Reports under swaps", report_section(swaps)),
                ("settings", "Settings", settings_section(settings))]
    write(path, title, f"{settings['n']} studies", settings, "", sections, None)


def rows_of(swap):
    """{name of a row: {figure: cell}}, the unchanged run first."""
    return {"unchanged": swap["unchanged"],
            **{named(what, kind): cells for what in KINDS for kind, cells in swap.get(what, {}).items()}}


def named(what, kind=None):
    return f"{what}: {KINDS[what][kind]}" if kind else what


def swap_section(metrics):
    rows = rows_of(metrics["swap"])
    figures = [(TITLES[name], [cells[name] for cells in rows.values()]) for name in rows["unchanged"]]
    return ("".join(paragraph(escape(verdict), "warning" if verdict.startswith("NO SIGN") else "")
                    for verdict in metrics["verdicts"])
            + f'<div class="scroll" tabindex="0">{charts.swaps(list(rows), figures)}</div>'
            + paragraph("The model gets other pictures or clues, and its reports are compared with the same "
                        "references. Swaps of pictures keep the study’s own clues, swaps of clues its own pictures; "
                        "“both” is another study’s pictures with the clues recognised in them. Vertical lines: the "
                        "unchanged run. Filled dots differ from it with p &lt; 0.05. Cross-entropy: of the true "
                        "report, per token.", "note"))


def difference_section(swap):
    names = list(swap["unchanged"])
    rows = [("", [escape(row), *(difference(cells[name]["change"]) for name in names)])
            for row, cells in rows_of(swap).items() if row != "unchanged"]
    return (paragraph("Differences from the unchanged run, with 95 % interval and two-sided p of a paired bootstrap.")
            + tables.table(["", *map(escape, names)], rows, "differences"))


def difference(cell):
    if cell["difference"] is None:
        return "–"
    value, _, interval = changed(cell).replace("-", "−").partition(" ")
    return f"{value}<small>{interval}</small>" + ("" if cell["p"] is None else f"<small>p {cell['p']:.3f}</small>")


def report_section(swaps):
    parts = []
    for number, own in enumerate(swaps["unchanged",][:SHOWN]):
        rows = [("", ["the reference", escape(own["reference"])])]
        rows += [("", [escape(named(*names)), escape(rows[number]["hypothesis"]) or "<em>(empty)</em>"])
                 for names, rows in swaps.items()]
        parts.append(f"<h3>{escape(str(own['id']))}</h3>" + tables.table(["", ""], rows, "both-sides"))
    return "".join(parts) + paragraph("Shown are the first studies; reports.jsonl has all.", "note")
