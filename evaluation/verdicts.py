"""Verdicts in words: whether a model is better than its floors, whether its reports differ, and which of its inputs it
uses. Console and page show the same verdicts."""

# Floors: scores of texts that do not depend on the picture.
FLOORS = {"permuted_pictures": "other studies' pictures", "most_frequent_report": "most frequent report"}

# The swaps of --swap: what is replaced, and by what (evaluation/changed.py).
PICTURES = {"another": "another study's", "blank": "a blank one", "noise": "noise"}
CLUES = {"another": "another study's", "absent": "of absent diseases", "true": "the true ones", "none": "none"}
KINDS = {"pictures": PICTURES, "clues": CLUES, "both": {"another": "another study's"}}

ALIKE = 0.5                            # reports count as alike if the most frequent one has this share or more,
FEW = 0.1                              # or if distinct reports / reports is lower than this, unlike the references


def headline(metrics):
    """{name: cell} of the main figures, which open the page and are compared with floors, as far as known."""
    figures = {f"{name} ({protocol})": scores[name] for protocol, scores in metrics.get("language", {}).items()
               for name in ("BLEU-4", "CIDEr")}
    if "clinical" in metrics:
        grid = metrics["clinical"]["grid"]
        figures |= {f"{average} F1, 14 classes, uncertain as positive": grid[average]["14"]["positive"]["f1"]
                    for average in ("micro", "macro")}
    return figures | {name.replace("_", " "): cell for name, cell in metrics.get("truth", {}).items()}


def beside_floors(metrics):
    """{name: cell} of all figures that are shown beside those of the floors."""
    return headline(metrics) | metrics.get("model_based", {})


def near_floor(metrics):
    """["micro F1 … 0.31 against 0.30 (most frequent report): …"], a line per floor that the model does not clearly
    exceed.

    A model is near a floor if their intervals overlap. Micro F1 decides, or CIDEr if there are no labels.
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
    """How much the reports differ from each other, one sentence per figure."""
    lines = [f"{variety['distinct']:,} distinct reports among {n:,} (references: {variety['distinct_references']:,}); "
             f"the most frequent report makes up {variety['most_frequent']:.1%}"]
    if variety["names_nothing"] is not None:
        lines.append(f"{variety['names_nothing']:.1%} of the reports name no finding")
    return lines


def nearly_alike(variety, n):
    """A warning if nearly all reports are the same, even if BLEU is good; None if they differ or are too few to
    tell."""
    few = variety["distinct"] < FEW * n and variety["distinct_references"] > 2 * variety["distinct"]
    if n < 10 or not few and variety["most_frequent"] < ALIKE:
        return None
    if variety["distinct_references"] == 1:
        return None
    return (f"NEARLY ALL ALIKE: {variety['distinct']:,} distinct reports among {n:,} "
            f"({variety['most_frequent']:.0%} are identical), against {variety['distinct_references']:,} distinct "
            "references: this model writes nearly the same report for everyone")


def what_it_reads(swap):
    """Sentences that tell which inputs a model uses, from the "swap" of metrics.json.

    A model uses an input if swapping in another study's raises the cross-entropy of the true report; its findings
    depend on the input if micro F1 falls as well. No visible change is no proof: see how large it may be within the
    interval.
    """
    lines, read = [], False
    for what in ("pictures", "clues", "both"):
        # Both together get a sentence only if neither alone is used: then each may replace the other.
        if what not in swap or what == "both" and read:
            continue
        figures = swap[what]["another"]
        words = "pictures and clues together" if what == "both" else f"the {what}"
        surprise = figures["cross-entropy"]["change"]
        told = (f"with another study's in their place, the cross-entropy of the true report changes by "
                f"{changed(surprise)} per token")
        f1 = figures.get("micro F1", {}).get("change")
        if f1:
            told += f", micro F1 by {changed(f1)}"
        if not clear(surprise, up=True):
            verdict = f"NO SIGN that the model uses {words}"
        elif f1 and not clear(f1, up=False):
            verdict = f"The model uses {words}, but no finding in its reports is seen to depend on them"
        else:
            verdict = f"The model uses {words}"
        read = read or verdict.startswith("The model uses")
        lines.append(f"{verdict}: {told}.")

    # Whether clues can help at all: the true clues are the best that recognition could give.
    true = swap.get("clues", {}).get("true", {}).get("micro F1")
    if true:
        helped = clear(true["change"], up=True)
        lines.append(f"The true clues {'make' if helped else 'do not make'} the reports truer: micro F1 changes by "
                     f"{changed(true['change'])}.")
    return lines


def clear(change, up):
    """Whether a difference is positive (`up`) or negative (not `up`), with p < 0.05."""
    return change["p"] is not None and change["p"] < 0.05 and (change["difference"] > 0) == up


def changed(change):
    """A difference with its interval as text: +0.012 [-0.001, +0.025]."""
    if change["difference"] is None:
        return "an unknown amount"
    if change["low"] is None:
        return f"{round(change['difference'], 3) + 0.0:+.3f}"                                      # + 0.0: never "-0"
    value, low, high = (round(change[key], 3) + 0.0 for key in ("difference", "low", "high"))
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
