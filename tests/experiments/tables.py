"""The experiments' results as Markdown for the README."""

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
                  "CE", "CE + other clues", "CE + no clues", "CE + other picture")}
NOTES = {"swap": "The true clues are at most k a study, those that the model itself finds likeliest; the prompt of each is "
                 "the one of the bank that says most of what is true. Another study's are of one with other labels."}


def tables(results, grids, experiment):
    """The lines of an experiment's tables, from `experiments.read_results` and one `experiments.experiments` a seed."""
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
    """A figure of a job, AUROC of the stage 1 that it stands on."""
    if column == "macro AUROC":
        job = job.after
    return results.get((job.name, job.seed), {}).get("metrics", {}).get(column)


def figures_table(results, columns, jobs):
    def cells(seeds):
        return [mean([figure(results, job, column) for job in seeds]) for column in columns]

    return markdown(["", *columns], [[name, *cells(seeds)] for name, seeds in jobs.items()])


def differences_table(results, jobs, against):
    """Each row minus the one it is compared with, study by study: the seeds' mean, and in how many seeds p < 0.05."""
    lines = []
    for name, other in against.items():
        pairs = [(results.get((one.name, one.seed)), results.get((two.name, two.seed)))
                 for one, two in zip(jobs[name], jobs[other]) if one != two]
        compared = [differences(*(measured(line["studies"]) for line in pair)) for pair in pairs if all(pair)]
        if compared:
            scores = [[seed[score] for seed in compared] for score in ("micro F1", "invented", "missed")]
            lines.append([name, other, *(f"{mean([cell['difference'] for cell in seeds], '+')} ({significant(seeds)})"
                                         for seeds in scores)])
    return markdown(["difference (seeds with p < 0.05)", "against", "micro F1", "invented", "missed"], lines)


def significant(seeds):
    """How many seeds differ with p < 0.05, in the direction of the seeds' mean."""
    up = sum(cell["difference"] or 0 for cell in seeds) > 0
    agree = [cell for cell in seeds if cell["p"] is not None and cell["p"] < 0.05 and (cell["difference"] > 0) == up]
    return f"{len(agree)} of {len(seeds)}"


def auroc_table(results, jobs):
    """Zero-shot AUROC of every finding, a column a stage 1."""
    def values(seeds, name):
        lines = [results.get((job.after.name, job.after.seed)) for job in seeds]
        return [line["metrics"]["AUROC"][name] for line in lines if line]

    return markdown(["zero-shot AUROC", *jobs],
                    [[name, *(mean(values(seeds, name)) for seeds in jobs.values())] for name in LABELS])
