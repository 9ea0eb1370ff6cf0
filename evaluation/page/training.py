"""How a checkpoint was trained, from the rows of its run's log.jsonl: curves over steps."""

from html import escape

from evaluation.page import charts
from evaluation.page.charts import number
from evaluation.page.document import paragraph

# What is drawn of log.jsonl, a panel each: title, the figure, and the figure of a validation that belongs to it.
PANELS = (("loss", "loss", "loss"), ("cross-entropy a token", "ce", None), ("L_DC, Eq. (4)", "dc", None),
          ("temperature τ", "tau", None), ("learning rate", "lr", None), ("gradient norm", "gradient_norm", None),
          ("studies a second", "studies_per_s", None))
RAW = ("loss", "ce", "dc", "gradient_norm", "studies_per_s")           # noisy: a smoothed line over the raw one


def training_section(log):
    """A panel per figure and stage."""
    parts = [paragraph("Over optimiser steps; faint: every step, strong: smoothed. The figure is the last step’s.")]
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
    """One figure over steps, with its value on the validation studies where it is known."""
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
