"""What a reader is told of the figures in words: whether a model stands clear of its floors, and whether it says
the same of everyone. Console and page show the same verdicts."""

# What texts score that have nothing to do with the picture.
FLOORS = {"permuted_pictures": "other studies' pictures", "most_frequent_report": "most frequent report"}

ALIKE = 0.5                            # share of the most frequent report from which on reports count as alike
FEW = 0.1                              # distinct reports per report, below which they do, if references are not


def headline(metrics):
    """{name: cell} of the figures that a page opens with and that floors are compared by, as far as they are known."""
    figures = {f"{name} ({protocol})": scores[name] for protocol, scores in metrics.get("language", {}).items()
               for name in ("BLEU-4", "CIDEr")}
    if "clinical" in metrics:
        grid = metrics["clinical"]["grid"]
        figures |= {f"{average} F1, 14 classes, uncertain as positive": grid[average]["14"]["positive"]["f1"]
                    for average in ("micro", "macro")}
    return figures | {name.replace("_", " "): cell for name, cell in metrics.get("truth", {}).items()}


def near_floor(metrics):
    """["micro F1 … 0.31 against 0.30 (most frequent report)"] of the floors that a model does not clear.

    It is near where its interval reaches the floor's. The judge is micro F1, or CIDEr where there are no labels.
    """
    own = headline(metrics)
    judges = [name for name in own if name.startswith("micro F1")] or [name for name in own if name.startswith("CIDEr")]
    reached = []
    for floor, scores in metrics.get("floors", {}).items():
        of_floor = headline(scores)
        for name in judges:
            cell, its = own[name], of_floor[name]
            if cell["value"] is not None and its["value"] is not None and cell["low"] <= its["high"]:
                reached.append(f"{name} {cell['value']:.3f} against {its['value']:.3f} ({FLOORS[floor]}): "
                               "these reports hardly depend on the pictures")
    return reached


def variety_lines(variety, n):
    """How much the reports differ from each other, a sentence per figure, and a warning where they hardly do."""
    lines = [f"{variety['distinct']:,} distinct reports among {n:,} (references: {variety['distinct_references']:,}); "
             f"the most frequent one is {variety['most_frequent']:.1%} of them"]
    if variety["names_nothing"] is not None:
        lines.append(f"{variety['names_nothing']:.1%} of the reports name no finding")
    return lines


def nearly_alike(variety, n):
    """A warning where nearly all reports are the same, whatever BLEU says; None where they are not, or are so few that
    this says nothing."""
    few = variety["distinct"] < FEW * n and variety["distinct_references"] > 2 * variety["distinct"]
    if n < 10 or not few and variety["most_frequent"] < ALIKE:
        return None
    if variety["distinct_references"] == 1:
        return None
    return (f"NEARLY ALL ALIKE: {variety['distinct']:,} distinct reports among {n:,} "
            f"({variety['most_frequent']:.0%} are one and the same), where the references are "
            f"{variety['distinct_references']:,}: this model says nearly the same of everyone")
