"""Evaluation of a checkpoint on a split: the reports of stage 2 with their scores and floors, or the recognition and
retrieval of stage 1.

    SplitTask             data, studies, decoding, networks, all checked before any work
    → write_reports       the model's reports, and its reports for other studies' pictures, a floor
    → a table of systems  {the model, its floors}: rows, then rows with labels and with the networks' scores
    → evaluate_texts      one set of figures per system
    → Task.write          metrics.json, reports.jsonl, report.html
"""

import json
from contextlib import contextmanager
from pathlib import Path

import torch

import trrg
from data.dataset import Prepared
from data.files import UserError, file_digest
from evaluation.console import print_floors, print_zero_shot
from evaluation.output import results_folder, trained_on, write_json
from evaluation.page.page import write_alignment_page
from evaluation.recognition import zero_shot
from evaluation.results import evaluate_texts, matched
from evaluation.task import Task
from evaluation.writing import another_study, as_row, most_frequent_report, write_reports
from model.trained import nearest, read_trained
from training.log import read_rows
from training.options import PRESETS
from training.processes import Processes

# Decoding of the most similar method (R2GenGPT, scripts/*). It changes BLEU by points, so it is used on request only.
R2GENGPT = {"beams": 3, "repetition_penalty": 2.0, "length_penalty": 2.0}
R2GENGPT_LENGTHS = {"mimic_cxr": {"min_new_tokens": 80, "max_new_tokens": 120}}
R2GENGPT_LENGTHS_IU = {"min_new_tokens": 40, "max_new_tokens": 100}


def header_of(path):
    """A checkpoint's header, without its weights. Raises UserError if the file is no checkpoint."""
    return read_trained(path)[1]


@contextmanager
def one_voice():
    """A context with the processes that torchrun started; if all fail with a UserError, only one prints it."""
    processes = Processes()
    try:
        yield processes
    except UserError:
        if not processes.fails_first():
            raise SystemExit(2) from None
        raise
    processes.close()


def take_threads(header):
    """Sets the number of CPU threads to that of the checkpoint's preset; 0 leaves it to PyTorch."""
    if threads := PRESETS.get(header.get("preset"), {}).get("threads"):
        torch.set_num_threads(threads)


def decoding_of(header, args):
    """The checkpoint's decoding, changed by --decoding and --beams."""
    decoding = dict(header["decoding"])
    if args.decoding == "r2gengpt":
        decoding |= R2GENGPT | R2GENGPT_LENGTHS.get(header.get("preset"), R2GENGPT_LENGTHS_IU)
    return decoding | ({"beams": args.beams} if args.beams else {})


def source_of(header, prepared):
    """The name of a data set: "phantom", "iu_xray", "mimic_cxr", or "" if unknown.

    R2Gen's annotation files look alike for both real data sets; for these the checkpoint's preset decides.
    """
    names = {"phantom": "phantom", "openi": "iu_xray", "mimic_cxr": "mimic_cxr", "r2gen": header.get("preset")}
    return names.get(prepared.manifest.get("options", {}).get("source"), "")


def split_of(header, args):
    """(the data set, its studies to evaluate). Raises UserError."""
    if not args.data and not header.get("data"):
        raise UserError(f"{args.ckpt}: does not name the data set that it was trained on; give a prepared data set "
                        "with --data")
    folder = Path(args.data or nearest(header["data"], args.ckpt))
    if not args.data and not folder.is_dir():
        raise UserError(f"{args.ckpt}: the data set that this checkpoint was trained on, {folder}, does not exist; "
                        "give its folder with --data")
    prepared = Prepared(folder)
    return prepared, prepared.split(args.split)[:args.limit]


def results_beside(args, results="eval"):
    """The folder of the results: --out, or a folder beside the checkpoint."""
    return args.out or Path(args.ckpt).parent / f"{results}-{args.split}"


def checkpoint_settings(header, args, prepared, studies):
    """The entries of metrics.json's settings on the checkpoint and the evaluated studies."""
    settings = {"checkpoint": str(args.ckpt), "sha256_16": file_digest(args.ckpt), "stage": header["stage"],
                "step": header.get("step"), "trained_on": trained_on(header), "data": str(prepared.folder),
                "split": args.split, "n": len(studies), "torch": torch.__version__,
                "threads": torch.get_num_threads()}
    return settings if args.limit is None else settings | {"limit": args.limit}


def log_of(path, header):
    """The rows of the log.jsonl beside a checkpoint; an empty list if the log belongs to another run.

    The right log has a validation at the checkpoint's step, with the same figures as the checkpoint's header.
    """
    rows = read_rows(Path(path).parent / "log.jsonl")
    own = {"stage": f"stage{header['stage']}", "step": header.get("step"), "validation": header.get("validation")}
    return rows if json.dumps(own) in map(json.dumps, rows) else []            # as text, since NaN != NaN


# --- stage 1 ----------------------------------------------------------------------------------------------------------


def evaluate_alignment(args, header, processes):
    """Evaluates a stage-1 checkpoint: zero-shot recognition and retrieval. Raises UserError."""
    prepared, studies = split_of(header, args)
    out = results_folder(results_beside(args), args.ckpt)
    model = trrg.load(args.ckpt, device=processes.device)
    figures, scores = zero_shot(model, prepared, studies, processes, args.batch_size, args.draws, args.seed)
    if processes.rank:
        return

    metrics = {"settings": checkpoint_settings(header, args, prepared, studies)
               | {"draws": args.draws, "seed": args.seed}, **figures}
    write_json(out / "metrics.json", metrics)
    known = metrics["zero_shot"]["auroc"] is not None
    write_alignment_page(out / "report.html", metrics, title=f"{args.ckpt}, {args.split}",
                         log=log_of(args.ckpt, header), scores=scores if known else None,
                         labels=[study["labels"] for study in studies] if known else None)
    print_zero_shot(metrics)
    print(f"\nwritten: metrics.json and report.html in {out}")


# --- stage 2 ----------------------------------------------------------------------------------------------------------


class SplitTask(Task):
    """A `Task` on the studies of a split, for which a model will write the reports."""

    def __init__(self, args, header, results="eval"):
        self.prepared, self.studies = split_of(header, args)
        source = source_of(header, self.prepared)
        super().__init__(args, Path(args.ckpt), results_beside(args, results), source)
        if self.labels_only and not args.chexbert and not self.labeler:
            raise UserError(f"{self.prepared.folder}: --labels-only needs a labeler for these texts; give --chexbert "
                            "DIR or --labeler phantom")

        self.batch_size, self.decoding = args.batch_size, decoding_of(header, args)
        if self.against:
            self.against_rows = matched(self.rows([""] * len(self.studies)), self.in_order(self.against_rows))
        self.checkpoint = {**checkpoint_settings(header, args, self.prepared, self.studies),
                           "variant": header["variant"], "decoding": self.decoding}

    def in_order(self, others):
        """The rows of --against in the order of the studies. Raises UserError if the studies differ."""
        by_id = {row["id"]: row for row in others}
        ids = [str(study["id"]) for study in self.studies]
        if different := by_id.keys() ^ set(ids):
            raise UserError(f"{self.against}: not the same studies as this evaluation's: id {min(different)!r} is in "
                            "only one of both; give the same --split, --limit and --data as for those reports")
        return [by_id[name] for name in ids]

    def rows(self, texts, clues=None):
        """The rows of one report per study, in the order of the studies."""
        rows = [as_row(study, text, of_study)
                for study, text, of_study in zip(self.studies, texts, clues or [()] * len(self.studies), strict=True)]
        if self.labeler and self.source != "phantom":
            # The labeler labels both sides; given labels are kept only for phantoms, where they are the truth.
            rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
        return rows


def evaluate_trrg(args, header, processes):
    """Evaluates a stage-2 checkpoint: reports, scores, and floors, the scores of texts that do not depend on the
    picture. Raises UserError.
    """
    # All checks are made before the weights are read.
    task = SplitTask(args, header)
    processes.lead_first(lambda: task.load_networks(processes.device))           # only the first process scores texts
    model = trrg.load(args.ckpt, weights=args.weights, device=processes.device)
    job = model, task.prepared, task.studies, processes, task.batch_size

    # The reports may have taken hours, so they are saved first.
    written = write_reports(*job, maps=not task.labels_only, **task.decoding)
    rows = task.rows([report.text for report, _ in written], [report.clues for report, _ in written])
    if not processes.rank:
        task.keep(rows)
    if task.labels_only:
        if not processes.rank:
            rows, _ = task.labelled(rows, task.path)
            task.keep(rows)
            task.write_labels(rows)
        return

    blind = write_reports(*job, others=another_study(task.studies), what="floor: other studies' pictures",
                          **task.decoding)
    if processes.rank:
        return

    # The systems to score: the model, the floors, and the other reports.
    systems = {"model": rows, "permuted_pictures": task.rows([report.text for report, _ in blind])}
    if training := [study for study in task.prepared.studies if study["split"] == "train"]:
        systems["most_frequent_report"] = task.rows([most_frequent_report(training)] * len(task.studies))
    if task.against:
        systems["against"] = [{**row, "reference": other["reference"]} for row, other in
                              zip(task.rows([row["hypothesis"] for row in task.against_rows]), task.against_rows)]

    # The same labeler for all systems, so that figures and floors are comparable.
    labels_from = None
    if task.labeler:
        labelled = {name: task.labelled(rows, task.path) for name, rows in systems.items()}
        systems, labels_from = {name: rows for name, (rows, _) in labelled.items()}, labelled["model"][1]
    systems = task.scored(systems)
    rows, against = systems.pop("model"), systems.pop("against", None)

    metrics = evaluate_texts(rows, task.scoring, labels_from, against, floors=systems)
    task.write(metrics, task.checkpoint, rows, title=f"{args.ckpt}, {args.split}",
               log=log_of(args.ckpt, header), maps=lambda i: written[i].maps,
               pictures=lambda i: list(task.prepared.pictures(task.studies[i]).numpy()), source=task.source)
    print_floors(metrics)
