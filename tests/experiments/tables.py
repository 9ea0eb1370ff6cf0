"""The experiments' results as Markdown, for docs/results.md."""

import numpy as np

from data.reports import LABELS
from metrics.intervals import differences
from tests.experiments.measures import measured

REPORT = ("BLEU-4", "ROUGE-L", "METEOR (exact+stem)", "CIDEr", "micro F1", "macro F1", "side accuracy", "severity accuracy",
          "invented", "missed")
CLUES = ("right clues", "wrong clues")
COLUMNS = {
    "ladder": REPORT,
    "swap": (*CLUES, "micro F1", "macro F1", "invented", "missed", "side accuracy", "severity accuracy", "BLEU-4",
             "CIDEr"),
    "alignment": ("macro AUROC", *CLUES, *REPORT),
    "clues": (*CLUES, *REPORT),
    "data": ("macro AUROC", *REPORT),
    "mix": (*CLUES, "micro F1", "invented", "missed", "BLEU-4", "CIDEr"),
    "scarce": (*CLUES, "micro F1", "macro F1", "invented", "missed", "side accuracy", "BLEU-4", "CIDEr"),
    "diagnosis": ("L_DC", "alike, E^v", "alike, E^c", "of its study, E^v", "of its study, E^c",
                  "R@1, E^v → E^c", "CE", "CE + other clues", "CE + no clues", "CE + other picture")}
NOTES = {"swap": "The true clues are at most k per study: those of its diseases that the model itself finds likeliest, "
                 "each with the prompt of the bank that says most of what is true. Another study's are of one with other "
                 "labels."}


def tables(results, grids, experiment):
    """The lines of an experiment's tables, from `experiments.read_results` and one `grid.experiments` per seed."""
    of_row = {row: [grid[experiment][row] for grid in grids] for row in grids[0][experiment]}
    jobs = {name: [row.job for row in rows] for name, rows in of_row.items()}
    blocks = [figures_table(results, COLUMNS[experiment], jobs)]
    against = {name: rows[0].against for name, rows in of_row.items() if rows[0].against}
    if against:
        blocks.append(differences_table(results, jobs, against))
    if experiment == "alignment":
        blocks.append(auroc_table(results, jobs))
    if experiment in NOTES:
        blocks.append([NOTES[experiment]])
    return [line for block in blocks for line in (*block, "")]


def markdown(header, rows):
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def mean(values, sign=""):
    """mean ± sd over the seeds that have a value."""
    values = [value for value in values if value is not None]
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.3f}{spread}" if values else "–"


def figure(results, job, column):
    """A figure of a job; the AUROC is that of the stage 1 that it started from."""
    if column == "macro AUROC":
        job = job.after
    return results.get((job.name, job.seed), {}).get("metrics", {}).get(column)


def figures_table(results, columns, jobs):
    def cells(seeds):
        return [mean([figure(results, job, column) for job in seeds]) for column in columns]

    return markdown(["", *columns], [[name, *cells(seeds)] for name, seeds in jobs.items()])


def differences_table(results, jobs, against):
    """Each row minus the one it is compared with, study by study: mean ± sd over the seeds, in how many of them the
    difference has the sign of the mean, and p over the studies of all seeds together."""
    lines = []
    for name, other in against.items():
        pairs = [(results.get((one.name, one.seed)), results.get((two.name, two.seed)))
                 for one, two in zip(jobs[name], jobs[other]) if one != two]
        pairs = [[line["studies"] for line in pair] for pair in pairs if all(pair)]
        if pairs:
            per_seed = [differences(*map(measured, pair)) for pair in pairs]
            pooled = differences(*(measured(joined(side)) for side in zip(*pairs)), draws=10_000)
            lines.append([name, other, *(cell([seed[score]["difference"] for seed in per_seed], pooled[score]["p"])
                                         for score in ("micro F1", "invented", "missed"))])
    return markdown(["difference (seeds of this sign; p over all)", "against", "micro F1", "invented", "missed"], lines)


def joined(seeds):
    """The counts of several seeds, put together as those of one set of studies."""
    return {name: "".join(counts[name] for counts in seeds) for name in seeds[0]}


def cell(seeds, p):
    same = sum((value > 0) == (np.mean(seeds) > 0) for value in seeds)
    return f"{mean(seeds, '+')} ({same} of {len(seeds)}; p {'< .001' if p < 0.001 else f'{p:.3f}'})"


def auroc_table(results, jobs):
    """Zero-shot AUROC of every finding, one column per stage 1."""
    def values(seeds, name):
        lines = [results.get((job.after.name, job.after.seed)) for job in seeds]
        return [line["metrics"]["AUROC"][name] for line in lines if line]

    return markdown(["zero-shot AUROC", *jobs],
                    [[name, *(mean(values(seeds, name)) for seeds in jobs.values())] for name in LABELS])
