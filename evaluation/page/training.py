"""The page's sections on training, from the rows of the run's log.jsonl: reports per validation, curves over steps."""

from html import escape
from typing import NamedTuple

from evaluation.labels import with_labels
from evaluation.page import charts, gallery
from evaluation.page.charts import number
from evaluation.page.document import paragraph

# What is drawn of log.jsonl, a panel each: title, the figure, and the figure of a validation that belongs to it.
PANELS = (("loss", "loss", "loss"), ("cross-entropy per token", "ce", None), ("L_DC, Eq. (4)", "dc", None),
          ("temperature τ", "tau", None), ("learning rate", "lr", None), ("gradient norm", "gradient_norm", None),
          ("studies per second", "studies_per_s", None))
RAW = ("loss", "ce", "dc", "gradient_norm", "studies_per_s")           # noisy: a smoothed line over the raw one


class Sample(NamedTuple):
    """The report that a validation wrote for a val study; both texts in sentences, as `gallery.marked` returns them."""

    step: int
    report: list
    reference: list
    clues: list                      # [(prompt, weight), …]


def samples_of(log, labeler=None):
    """{id of a val study: [its `Sample` after each validation]}; labeler(texts) → [(14 labels, findings or None), …]
    marks findings."""
    samples = [(row["step"], row["sample"]) for row in log if "sample" in row]
    rows = [{"id": sample["id"], "hypothesis": sample["report"], "reference": sample["reference"]}
            for _, sample in samples]
    of_sentence = {}
    if labeler and rows:
        # The labeler also reads the references' findings, since the log has only their texts
        read = labeler([row["reference"] for row in rows])
        rows = [{**row, "labels": {"reference": list(labels)}, "findings": {"reference": findings}}
                for row, (labels, findings) in zip(rows, read, strict=True)]
        rows, _ = with_labels(rows, labeler)
        of_sentence = gallery.label_sentences(rows, labeler)

    found = {}
    for (step, sample), row in zip(samples, rows):
        kinds = gallery.finding_kinds(row) if labeler else {}
        report, reference = (gallery.marked(row, side, kinds, of_sentence) for side in ("hypothesis", "reference"))
        found.setdefault(sample["id"], []).append(Sample(step, report, reference, sample["clues"]))
    return found


def learned_section(samples, step):
    """Per val study the reference, the clues, and the report of each validation, as HTML; `step`: the checkpoint's."""
    parts = []
    for name, of_study in samples.items():
        # The reference's marks and the clues are those of the checkpoint, whose step may not be the last
        own = next((sample for sample in of_study if sample.step == step), of_study[-1])
        clues = "; ".join(f"{100 * weight:.0f} % {prompt.removeprefix('Clue: ')}" for prompt, weight in own.clues)
        lines = [("reference", marks(own.reference)), *([("clues", escape(clues))] if clues else [])]
        lines += [(f"step {sample.step:,}" + "<small>this checkpoint</small>" * (sample is own and sample.step == step),
                   marks(sample.report)) for sample in of_study]
        lines = "".join(f'<dt>{told}</dt><dd class="report">{text}</dd>' for told, text in lines)
        parts.append(f"<h3>{escape(str(name))}</h3><dl>{lines}</dl>")
    return "".join(parts)


def marks(pieces):
    """The sentences of `gallery.marked` → HTML, in the same form as page.js draws them in the gallery."""
    if not pieces:
        return "<em>(empty)</em>"
    return " ".join(f'<mark class="{kind}" title="{escape(kind)}: {escape(", ".join(labels))}">{escape(text)}</mark>'
                    if kind else escape(text) for text, kind, labels in pieces)


def training_section(log):
    """A panel per figure and stage."""
    parts = [paragraph("Over optimiser steps. Faint line: every step; strong line: smoothed. The number beside a title "
                       "is the last step’s.")]
    for stage in dict.fromkeys(row.get("stage", "") for row in log):
        rows = [row for row in log if row.get("stage", "") == stage]
        validations = [{"step": row["step"], **row["validation"]} for row in rows if "validation" in row]
        panels = [panel(title, name, points_of(name, rows), points_of(validation, validations))
                  for title, name, validation in PANELS]
        parts.append(f'<h3>{escape(str(stage))}</h3><div class="panels">{"".join(panels)}</div>')
    return "".join(parts)


def points_of(name, rows):
    """[(step, value)] of the rows that hold a figure."""
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]


def panel(title, name, points, held_out):
    """One figure over steps as HTML, with its values on the val split if known."""
    if not points:
        return ""
    lines = [(name, "train", points, "raw" if name in RAW else "line")]
    if name in RAW:
        lines.append((f"{name}, smoothed", "train", charts.smoothed(points), "line"))
    if held_out:
        lines.append(("validation", "held-out", held_out, "dots"))

    _, last = points[-1]
    told = number(last) if abs(last) >= 0.01 else f"{last:.2g}"
    key = ' <span class="key held-out"></span>validation' if held_out else ""
    return (f"<figure><figcaption>{escape(title)}{key}<b>{told}</b></figcaption>{charts.curves(title, lines)}"
            "</figure>")
