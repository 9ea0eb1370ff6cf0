"""--reports: scores given texts, without a model, and without torch unless a network scores or labels the texts."""

from pathlib import Path

from data.files import UserError, file_digest
from evaluation.pairs import read_pairs
from evaluation.results import evaluate_texts, matched
from evaluation.task import Task


def score_reports(args):
    """Reads, labels, scores and compares the texts of --reports. Raises UserError."""
    path = Path(args.reports)
    rows = read_pairs(path, args.section)
    task = Task(args, path, args.out or path.parent / f"eval-{path.stem}")
    if task.against:
        task.against_rows = matched(rows, task.against_rows)
    task.load_networks()
    rows, labels_from = task.labelled(rows, path)

    if task.labels_only:
        if labels_from is None:
            raise UserError(f"{path}: holds no labels; give --chexbert DIR or --labeler phantom to label the texts")
        task.keep(rows)
        task.write_labels(rows)
        return

    against = task.against_rows
    if against:
        against, theirs = task.labelled(against, task.against)
        if labels_from and not theirs:
            raise UserError(f"{task.against}: holds no labels, though {path} does; give --chexbert or --labeler")

    systems = task.scored({"own": rows, "against": against} if against else {"own": rows})
    rows = systems["own"]
    metrics = evaluate_texts(rows, task.scoring, labels_from, systems.get("against"))
    task.write(metrics, {"reports": str(path), "sha256_16": file_digest(path)}, rows, title=str(path))
