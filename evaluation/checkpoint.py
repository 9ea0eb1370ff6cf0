"""A checkpoint over a split of a data set: the reports of stage 2 with their scores and floors, or the recognition and
retrieval of stage 1.

    SplitTask             data, studies, decoding, networks: all that is asked for, checked before any work
    → write_reports       of the model, and of the model that is shown other studies' pictures
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

# The closest peer's knobs (R2GenGPT, scripts/*): they move BLEU by points, so they are never mixed in unnamed.
R2GENGPT = {"beams": 3, "repetition_penalty": 2.0, "length_penalty": 2.0}
R2GENGPT_LENGTHS = {"mimic_cxr": {"min_new_tokens": 80, "max_new_tokens": 120}}
R2GENGPT_LENGTHS_IU = {"min_new_tokens": 40, "max_new_tokens": 100}


def header_of(path):
    """What a checkpoint says of itself, without its weights. Raises UserError where it is none."""
    return read_trained(path)[1]


@contextmanager
def one_voice():
    """The processes that torchrun started; where all fail alike, one says why, and the others only end."""
    processes = Processes()
    try:
        yield processes
    except UserError:
        if not processes.fails_first():
            raise SystemExit(2) from None
        raise
    processes.close()


def take_threads(header):
    """From now on as many threads of the CPU as the checkpoint's preset trains with; 0: torch's own choice."""
    if threads := PRESETS.get(header.get("preset"), {}).get("threads"):
        torch.set_num_threads(threads)


def decoding_of(header, args):
    """The checkpoint's decoding, with what the command line changes."""
    decoding = dict(header["decoding"])
    if args.decoding == "r2gengpt":
        decoding |= R2GENGPT | R2GENGPT_LENGTHS.get(header.get("preset"), R2GENGPT_LENGTHS_IU)
    return decoding | ({"beams": args.beams} if args.beams else {})


def source_of(header, prepared):
    """Which data set this is: "phantom", "iu_xray", "mimic_cxr", or "" where nothing tells.

    R2Gen's annotation files have one form for both real sets: of these the checkpoint's preset is believed.
    """
    names = {"phantom": "phantom", "openi": "iu_xray", "mimic_cxr": "mimic_cxr", "r2gen": header.get("preset")}
    return names.get(prepared.manifest.get("options", {}).get("source"), "")


def split_of(header, args):
    """(the data set, its studies to evaluate). Raises UserError."""
    if not args.data and not header.get("data"):
        raise UserError(f"{args.ckpt}: does not say what it was trained on; give a prepared data set with --data")
    folder = Path(args.data or nearest(header["data"], args.ckpt))
    if not args.data and not folder.is_dir():
        raise UserError(f"{args.ckpt}: {folder}: the data set that this checkpoint was trained on is not there; give "
                        "its folder with --data")
    prepared = Prepared(folder)
    return prepared, prepared.split(args.split)[:args.limit]


def results_beside(args, results="eval"):
    """Where the results go: --out, or a folder beside the checkpoint."""
    return args.out or Path(args.ckpt).parent / f"{results}-{args.split}"


def checkpoint_settings(header, args, prepared, studies):
    """What metrics.json says of the checkpoint and of the studies that it is evaluated on."""
    settings = {"checkpoint": str(args.ckpt), "sha256_16": file_digest(args.ckpt), "stage": header["stage"],
                "step": header.get("step"), "trained_on": trained_on(header), "data": str(prepared.folder),
                "split": args.split, "n": len(studies), "torch": torch.__version__,
                "threads": torch.get_num_threads()}
    return settings if args.limit is None else settings | {"limit": args.limit}


def log_of(path, header):
    """The rows of the log.jsonl beside a checkpoint; none where it is another run's.

    A run's log has a validation at the checkpoint's step, with the figures that stand in the checkpoint.
    """
    rows = read_rows(Path(path).parent / "log.jsonl")
    own = {"stage": f"stage{header['stage']}", "step": header.get("step"), "validation": header.get("validation")}
    return rows if json.dumps(own) in map(json.dumps, rows) else []            # as text, in which NaN is NaN


# --- stage 1 ----------------------------------------------------------------------------------------------------------


def evaluate_alignment(args, header, processes):
    """A stage-1 checkpoint: zero-shot recognition and retrieval."""
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
    """A `Task` on the studies of a split, whose reports a model still has to write."""

    def __init__(self, args, header, results="eval"):
        self.prepared, self.studies = split_of(header, args)
        source = source_of(header, self.prepared)
        super().__init__(args, Path(args.ckpt), results_beside(args, results), source)
        if self.labels_only and not args.chexbert and not self.labeler:
            raise UserError(f"{self.prepared.folder}: --labels-only needs a labeler of its texts; name --chexbert DIR "
                            "or --labeler phantom")

        self.batch_size, self.decoding = args.batch_size, decoding_of(header, args)
        if self.against:
            self.against_rows = matched(self.rows([""] * len(self.studies)), self.in_order(self.against_rows))
        self.checkpoint = {**checkpoint_settings(header, args, self.prepared, self.studies),
                           "variant": header["variant"], "decoding": self.decoding}

    def in_order(self, others):
        """--against: its rows in the order of the studies."""
        by_id = {row["id"]: row for row in others}
        ids = [str(study["id"]) for study in self.studies]
        if different := by_id.keys() ^ set(ids):
            raise UserError(f"{self.against}: a paired comparison needs the same studies, but id {min(different)!r} "
                            "is on one side only; give --split, --limit and --data as for those reports")
        return [by_id[name] for name in ids]

    def rows(self, texts, clues=None):
        """The rows of one report per study, in their order."""
        rows = [as_row(study, text, of_study)
                for study, text, of_study in zip(self.studies, texts, clues or [()] * len(self.studies), strict=True)]
        if self.labeler and self.source != "phantom":
            # One labeler reads both sides: only the phantom's own labels are the truth.
            rows = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
        return rows


def evaluate_trrg(args, header, processes):
    """A stage-2 checkpoint: its reports, their scores, and the floors that a model blind to the picture would reach."""
    # Everything that can be refused is refused before the weights are read.
    task = SplitTask(args, header)
    processes.lead_first(lambda: task.load_networks(processes.device))           # the first process alone reads texts
    model = trrg.load(args.ckpt, weights=args.weights, device=processes.device)
    job = model, task.prepared, task.studies, processes, task.batch_size

    # The reports may have taken hours: they are kept before anything else is done.
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

    # What is scored: the model, what texts reach that have nothing to do with the picture, and other reports.
    systems = {"model": rows, "permuted_pictures": task.rows([report.text for report, _ in blind])}
    if training := [study for study in task.prepared.studies if study["split"] == "train"]:
        systems["most_frequent_report"] = task.rows([most_frequent_report(training)] * len(task.studies))
    if task.against:
        systems["against"] = [{**row, "reference": other["reference"]} for row, other in
                              zip(task.rows([row["hypothesis"] for row in task.against_rows]), task.against_rows)]

    # One labeler for all of them, so that a floor is no lower for having been read by another.
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
