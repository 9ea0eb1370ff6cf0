"""--swap: does the model use its pictures and clues? How reports change when the model gets others.

    pictures    another study's, a blank one, noise; the clues stay the study's own
    clues       another study's, of absent diseases, the true ones, none; the pictures stay the study's own
    both        another study's pictures, and the clues recognised in these pictures

Clues are recognised in the picture, so pictures and clues may hold the same information: a model that can do without
either of them still gets worse when both are swapped. Every swap is compared with the unchanged run, study by study, on
the same bootstrap draws.

Besides scores of the reports, the cross-entropy of the true report is measured, per token: how surprised the model is
by that report. It needs no labels and has little noise, so it shows changes that are too small to change a report.
"""

import numpy as np

import trrg
from data.files import UserError
from data.reports import clean_report
from evaluation.changed import of_other_findings, outcomes, own_clues, swapped
from evaluation.checkpoint import SplitTask
from evaluation.console import print_swaps
from evaluation.labels import labels_of
from evaluation.output import write_json, write_rows
from evaluation.page.swaps import write_swap_page
from evaluation.results import Scoring, measure_systems
from evaluation.verdicts import CLUES, PICTURES, what_it_reads
from evaluation.writing import another_study
from metrics.intervals import Measured, differences, with_intervals
from metrics.truth import measure_truth


def evaluate_swaps(args, header, processes):
    """Writes metrics.json, reports.jsonl and report.html of all swaps of a stage-2 checkpoint. Raises UserError."""
    task = SplitTask(args, header, results="swap")
    if len(task.studies) < 2:
        raise UserError(f"{task.prepared.folder}: --swap needs at least two studies; give a larger --limit or another "
                        "--split")
    task.load_networks(processes.device)
    labels = true_labels(task, processes)
    if labels is not None and header["variant"] != "base":
        of_other_findings(labels)                           # fails before any report is written
    model = trrg.load(args.ckpt, weights=args.weights, device=processes.device)

    def run(*names, **changes):
        """Runs one swap, puts its rows and surprises into `swaps`, and writes all reports so far."""
        done = outcomes(model, task.prepared, task.studies, processes, task.batch_size, what=": ".join(names),
                        **changes, **task.decoding)
        rows = task.rows([outcome.report.text for outcome in done], [outcome.report.clues for outcome in done])
        swaps[names] = rows, [outcome.surprise for outcome in done]
        if not processes.rank:
            write_rows(task.out / "reports.jsonl", side_by_side({key: rows for key, (rows, _) in swaps.items()}))
        return done

    # The unchanged run comes first, since swaps of pictures keep its clues.
    swaps = {}
    own = own_clues(run("unchanged"))
    for kind in PICTURES:
        run("pictures", kind, pictures=kind, clues=own)
    if own is not None:
        for kind in CLUES if labels is not None else ("another", "none"):
            run("clues", kind, clues=swapped(model, own, task.studies, kind, labels))
        run("both", "another", pictures="another")
    if processes.rank:
        return

    measured = {names: measured_of(task, rows, surprise) for names, (rows, surprise) in swaps.items()}
    swap = {"unchanged": cells(measured["unchanged",], None, args.draws, args.seed)}
    for what, kind in list(measured)[1:]:
        swap.setdefault(what, {})[kind] = cells(measured[what, kind], measured["unchanged",], args.draws, args.seed)
    kept = sum(number == other for number, other in enumerate(another_study(task.studies)))
    settings = {**task.checkpoint, **task.settings(), "draws": args.draws, "seed": args.seed,
                "studies that keep their pictures, as no other study has as many views": kept}
    metrics = {"settings": settings, "swap": swap, "verdicts": what_it_reads(swap)}

    write_json(task.out / "metrics.json", metrics)
    write_swap_page(task.out / "report.html", metrics, {names: rows for names, (rows, _) in swaps.items()},
                    title=f"{args.ckpt}, {args.split}: swaps")
    print_swaps(metrics)
    print(f"\nwritten: metrics.json, reports.jsonl and report.html in {task.out}")


def true_labels(task, processes):
    """The labels (N, 14) of the studies' own reports, or None without a labeler. Each process labels its share."""
    if task.labeler is None or task.source == "phantom":
        known = all("labels" in study for study in task.studies)
        return np.array([study["labels"] for study in task.studies]) if known else None
    numbers = range(processes.rank, len(task.studies), processes.world)
    read = task.labeler([clean_report(task.studies[number]["report"]) for number in numbers])
    of_study = {number: labels for part in processes.gather_objects(list(zip(numbers, read)))
                for number, (labels, _) in part}
    return np.array([of_study[number] for number in range(len(task.studies))])


def side_by_side(swaps):
    """Lines of reports.jsonl: the unchanged run's rows, with the reports under each swap as "swapped"."""
    own = swaps["unchanged",]
    changed = {": ".join(names): rows for names, rows in swaps.items() if names != ("unchanged",)}
    return [{**row, "swapped": {name: rows[i]["hypothesis"] for name, rows in changed.items()}}
            for i, row in enumerate(own)]


def measured_of(task, rows, surprise):
    """{figure: (Measured, path of the figure in it)} of one swap; without labels only the figures that need none."""
    ce = Measured(np.array(surprise), lambda summed: {("ce",): summed[..., 0] / summed[..., 1]})
    figures = {"cross-entropy": (ce, ("ce",))}
    if task.labeler:
        rows, _ = task.labelled(rows, task.path)
    parts = measure_systems({"": rows}, Scoring(("coco",), meteor_data=False), None, labelled=bool(task.labeler))[""]
    if task.labeler:
        nothing = [[]] * len(rows)                                      # side and severity are not measured here
        truth = measure_truth(labels_of(rows, "hypothesis"), labels_of(rows, "reference"), nothing, nothing)
        figures |= {"micro F1": (parts["clinical",], ("micro", "14", "positive", "f1")),
                    "invented": (truth, ("invented_per_report",)), "missed": (truth, ("missed_per_report",))}
    return figures | {name: (parts["language", "coco"], (name,)) for name in ("BLEU-4", "CIDEr")}


def cells(figures, unchanged, draws, seed):
    """{figure: {"value", "low", "high"}}, and {"difference", "low", "high", "p"} from the unchanged run as "change"."""
    result = {}
    for name, (measured, path) in figures.items():
        result[name] = at(with_intervals(measured, draws, seed), path)
        if unchanged is not None:
            change = at(differences(measured, unchanged[name][0], draws, seed), path)
            result[name] = {**result[name], "change": {key: change[key] for key in ("difference", "low", "high", "p")}}
    return result


def at(tree, path):
    """The value at a path of keys in nested dicts."""
    for name in path:
        tree = tree[name]
    return tree
