"""The tables that evaluate.py prints from the figures of metrics.json."""

from data.reports import LABELS
from evaluation.verdicts import FLOORS, KINDS, beside_floors, changed, near_floor, nearly_alike, variety_lines
from metrics.clinical import AVERAGES, CLASS_SETS, PARTS, UNCERTAIN


def figure(cell, digits=4):
    """A figure as text: value [low, high], without the interval if it is unknown; "-" if the value is unknown."""
    if cell["value"] is None:
        return "-"
    value = f"{cell['value']:.{digits}f}"
    return value if cell["low"] is None else f"{value} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"


def signed(cell):
    """A difference as text, like `figure`, with its sign."""
    if cell["difference"] is None:
        return "-"
    value = f"{cell['difference']:+.4f}"
    return value if cell["low"] is None else f"{value} [{cell['low']:+.4f}, {cell['high']:+.4f}]"


def table(header, rows):
    """Prints rows of words under a header, in columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_metrics(metrics):
    """The tables of metrics.json: every figure under its full name, with its 95 % interval."""
    settings, language = metrics["settings"], metrics["language"]

    # Language scores, the meaning of the protocols, and how much the reports differ
    print(f"{settings['n']} reports; [95 % interval]\n\nLanguage")
    names = list(next(iter(language.values())))
    table(["", *language], [[name, *(figure(scores[name]) for scores in language.values())] for name in names])
    for protocol, described in settings["protocols"].items():
        print(f"  {protocol}: {described}")
    if "METEOR" not in names:
        print(f"  METEOR (exact+stem) is not the METEOR of papers: {settings['meteor'].partition(': ')[2]}")
    for line in variety_lines(metrics["variety"], settings["n"]):
        print(f"  {line}")
    if warning := nearly_alike(metrics["variety"], settings["n"]):
        print(f"  {warning}")

    # Further parts, if labels, known findings, networks' scores and other reports are there
    if "clinical" in metrics:
        print_clinical(metrics["clinical"])
    if "truth" in metrics:
        print("\nTruth: the reports against the known findings")
        table(["", "", "of"], [[name.replace("_", " "), figure(cell), str(cell["n"])]
                               for name, cell in metrics["truth"].items()])
    if "model_based" in metrics:
        print("\nScores computed by networks")
        table(["", ""], [[name, figure(cell)] for name, cell in metrics["model_based"].items()])
        if any(name.startswith("BERTScore") for name in metrics["model_based"]):
            print("  a flipped negation hardly changes BERTScore: never rely on BERTScore alone")
    if "against" in metrics:
        print_differences(metrics["against"])


def print_clinical(clinical):
    """Prints the grid of averages, class sets and readings of "uncertain", then every class."""
    print(f"\nClinical findings (labels: {clinical['labels_from']})")
    for part in PARTS:
        print(f"  {part}")
        header = ["average, uncertain as", *(f"{name} classes" for name in CLASS_SETS)]
        table(header, [[f"{average}, {uncertain}", *(figure(clinical["grid"][average][name][uncertain][part], 3)
                                                     for name in CLASS_SETS)]
                       for average in AVERAGES for uncertain in UNCERTAIN])
    print("  per class, uncertain as positive")
    table(["", *PARTS, "support"], [[label, *(figure(cell[part], 3) for part in PARTS), str(cell["support"])]
                                    for label, cell in clinical["per_class"]["positive"].items()])
    print("  13 classes: without No Finding. "
          "5 classes: Cardiomegaly, Edema, Consolidation, Atelectasis, Pleural Effusion")


def print_differences(against):
    """Prints the differences of language, truth and networks' scores and of clinical F1; metrics.json has the rest."""
    rows = [(f"{name} ({protocol})", cell)
            for protocol, scores in against["language"].items() for name, cell in scores.items()]
    if "clinical" in against:
        grid = against["clinical"]["grid"]
        rows += [(f"F1, {average}, {name} classes, uncertain as {uncertain}", grid[average][name][uncertain]["f1"])
                 for average in AVERAGES for name in CLASS_SETS for uncertain in UNCERTAIN]
    rows += [(name.replace("_", " "), cell) for name, cell in against.get("truth", {}).items()]
    rows += against.get("model_based", {}).items()
    print("\nDifference from the other reports, paired bootstrap")
    table(["", "other reports", "difference", "p, two-sided"], [
        [name, "-" if cell["other"] is None else f"{cell['other']:.4f}",
         signed(cell),
         "-" if cell["p"] is None else f"{cell['p']:.3f}"] for name, cell in rows])


def print_floors(metrics):
    """Prints the figures beside those of the floors, and names the floors that the model does not clearly exceed."""
    figures = beside_floors(metrics)
    floors = {FLOORS[name]: beside_floors(scores) for name, scores in metrics["floors"].items()}
    print("\nFloors: scores of texts that do not depend on the picture")
    table(["", "this model", *floors], [[name, figure(cell), *(figure(floor[name]) for floor in floors.values())]
                                        for name, cell in figures.items()])
    for verdict in near_floor(metrics):
        print(f"  NEAR ITS FLOOR: {verdict}")
    if "most_frequent_report" not in metrics["floors"]:
        print("  the data set has no training studies, so there is no most frequent report to compare with")


def print_swaps(metrics):
    """Prints the figures under every swap, their differences from the unchanged run, and the verdicts."""
    swap = metrics["swap"]
    names = list(swap["unchanged"])
    swaps = {f"{what}: {KINDS[what][kind]}": cells for what in KINDS for kind, cells in swap.get(what, {}).items()}
    print(f"{metrics['settings']['n']} studies; [95 % interval]\n\nSwaps: the model gets other pictures or other clues")
    table(["", *names], [[name, *(figure(cells[score], 3) for score in names)]
                         for name, cells in {"unchanged": swap["unchanged"], **swaps}.items()])
    print("\nDifference from the unchanged run, paired bootstrap (p, two-sided)")
    table(["", *names], [[name, *(difference(cells[score]["change"]) for score in names)]
                         for name, cells in swaps.items()])
    print("  cross-entropy: of the true report, per token; lower is better. invented, missed: findings per report, "
          "fewer are better")
    print()
    for verdict in metrics["verdicts"]:
        print(f"  {verdict}")


def difference(cell):
    if cell["difference"] is None:
        return "-"
    return changed(cell) + ("" if cell["p"] is None else f" ({cell['p']:.3f})")


def print_zero_shot(metrics):
    """Prints recognition and retrieval of a stage-1 checkpoint."""
    print(f"{metrics['settings']['n']} studies; [95 % interval]\n\nZero-shot recognition (AUROC)")
    auroc, pairs = metrics["zero_shot"]["auroc"], metrics["zero_shot"]["auroc_pairs"]
    if auroc is None:
        print("  none, since the data set holds no labels")
    else:
        rows = [[name, figure(auroc["per_finding"][name], 3), figure(pairs["per_finding"][name], 3),
                 str(auroc["per_finding"][name]["positives"])] for name in LABELS]
        table(["", "clue prompts", "finding against no finding", "positives"],
              [*rows, ["macro mean", figure(auroc["macro"], 3), figure(pairs["macro"], 3), ""]])
    print("\nRetrieval")
    table(["", "R@1 (chance)", "R@5 (chance)", "R@10 (chance)"], [
        [name.replace("_", " "), *(f"{figure(cell, 3)} ({cell['chance']:.3f})" for cell in found.values())]
        for name, found in metrics["retrieval"].items()])
