"""What a reader is told of the figures in words: whether a model stands clear of its floors, and whether it says
the same of everyone. Console and page show the same verdicts."""

# What texts score that have nothing to do with the picture.
FLOORS = {"permuted_pictures": "other studies' pictures", "most_frequent_report": "most frequent report"}

# What is swapped (--swap), and for what; evaluation/changed.py does it.
PICTURES = {"another": "another study's", "blank": "a blank one", "noise": "noise"}
CLUES = {"another": "another study's", "absent": "of absent diseases", "true": "the true ones", "none": "none"}
KINDS = {"pictures": PICTURES, "clues": CLUES, "both": {"another": "another study's"}}

ALIKE = 0.5                            # share of the most frequent report from which on reports count as alike
FEW = 0.1                              # distinct reports per report, below which they do, if references are not


def headline(metrics):
    """{name: cell} of the figures that a page opens with and that floors are judged by, as far as they are known."""
    figures = {f"{name} ({protocol})": scores[name] for protocol, scores in metrics.get("language", {}).items()
               for name in ("BLEU-4", "CIDEr")}
    if "clinical" in metrics:
        grid = metrics["clinical"]["grid"]
        figures |= {f"{average} F1, 14 classes, uncertain as positive": grid[average]["14"]["positive"]["f1"]
                    for average in ("micro", "macro")}
    return figures | {name.replace("_", " "): cell for name, cell in metrics.get("truth", {}).items()}


def beside_floors(metrics):
    """{name: cell} of all the figures that stand beside floors."""
    return headline(metrics) | metrics.get("model_based", {})


def near_floor(metrics):
    """["micro F1 … 0.31 against 0.30 (most frequent report)"] of the floors that a model does not clear.

    It is near where its interval reaches the floor's. The judge is micro F1, or CIDEr where there are no labels.
    """
    own = headline(metrics)
    judges = [name for name in own if name.startswith("micro F1")] or [name for name in own if name.startswith("CIDEr")]
    reached = []
    for floor, scores in metrics.get("floors", {}).items():
        floor_figures = headline(scores)
        for name in judges:
            cell, floor_cell = own[name], floor_figures[name]
            known = cell["value"] is not None and floor_cell["value"] is not None
            if known and cell["low"] <= floor_cell["high"]:
                reached.append(f"{name} {cell['value']:.3f} against {floor_cell['value']:.3f} ({FLOORS[floor]}): "
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


def what_it_reads(swap):
    """Sentences on which of its inputs a model reads, from the "swap" of metrics.json.

    An input is read where another study's in its place makes the true report more surprising; its findings depend on
    it where micro F1 falls as well. That neither is seen is no proof: the interval says how much it could be.
    """
    lines, read = [], False
    for what in ("pictures", "clues", "both"):
        # Both together are worth a sentence where neither alone is read: then the one may stand in for the other.
        if what not in swap or what == "both" and read:
            continue
        figures = swap[what]["another"]
        words = "pictures and clues together" if what == "both" else f"the {what}"
        surprise = figures["cross-entropy"]["change"]
        told = f"with another study's the cross-entropy of the true report changes by {changed(surprise)} per token"
        f1 = figures.get("micro F1", {}).get("change")
        if f1:
            told += f", micro F1 by {changed(f1)}"
        if not clear(surprise, up=True):
            verdict = f"NO SIGN that it reads {words}"
        elif f1 and not clear(f1, up=False):
            verdict = f"It reads {words}, but no finding of its reports is seen to depend on it"
        else:
            verdict = f"It reads {words}"
        read = read or verdict.startswith("It reads")
        lines.append(f"{verdict}: {told}.")

    # Whether clues are worth reading: the true ones are the best that recognition could ever give it.
    true = swap.get("clues", {}).get("true", {}).get("micro F1")
    if true:
        helped = clear(true["change"], up=True)
        lines.append(f"The true clues {'make' if helped else 'do not make'} its reports truer: micro F1 changes by "
                     f"{changed(true['change'])}.")
    return lines


def clear(change, up):
    """Whether a difference is up, or down, with p < 0.05."""
    return change["p"] is not None and change["p"] < 0.05 and (change["difference"] > 0) == up


def changed(change):
    if change["difference"] is None:
        return "nothing that can be told"
    if change["low"] is None:
        return f"{round(change['difference'], 3) + 0.0:+.3f}"                                      # + 0.0: never "-0"
    value, low, high = (round(change[key], 3) + 0.0 for key in ("difference", "low", "high"))
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
