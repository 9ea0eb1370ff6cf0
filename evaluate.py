"""Evaluates TRRG.

    python evaluate.py --ckpt runs/demo/ckpt.safetensors                     writes reports, scores them, draws the page
    python evaluate.py --ckpt CKPT --image frontal.png [lateral.png]         one report, its clues and their weights
    python evaluate.py --reports FILE.jsonl                                  scores given texts: no model, no GPU
    python evaluate.py --reports FILE.jsonl --against OTHER.jsonl            the same, compared pair by pair

Exit codes: 0 done, 2 a mistake of the user (one line on stderr), 1 anything else.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
from pathlib import Path

from data.command import Parser, at_least
from data.files import UserError, file_digest, whole_file
from data.reports import LABELS
from evaluation.console import print_floors, print_metrics, print_zero_shot
from evaluation.page.page import write_alignment_page, write_page
from evaluation.pairs import read_pairs
from evaluation.results import add_labels, chexbert_labels, evaluate_texts, missing_labels, phantom_labels
from metrics import CLEANINGS, PROTOCOLS


def parser():
    positive = at_least(int, 1)
    p = Parser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what = p.add_argument_group("what to evaluate (one of --ckpt, --reports)")
    what.add_argument("--ckpt", metavar="FILE", help="checkpoint of either stage")
    what.add_argument("--image", nargs="+", metavar="PICTURE", help="with --ckpt: report on these views of one study")
    what.add_argument("--reports", metavar="FILE",
                      help="texts to score: JSON lines or CSV with id, hypothesis, reference")
    what.add_argument("--out", metavar="DIR",
                      help="where results go; default: eval-SPLIT beside the checkpoint, eval-NAME beside FILE")

    g = p.add_argument_group("checkpoint")
    g.add_argument("--split", default="test", help="part of the data set")
    g.add_argument("--data", metavar="DIR", help="prepared data set; default: the one the checkpoint was trained on")
    g.add_argument("--weights", metavar="DIR", help="base weights; default: where the checkpoint's header says")
    g.add_argument("--limit", type=positive, metavar="N", help="only the first N studies")
    g.add_argument("--batch-size", type=positive, default=16, help="studies at a time")
    g.add_argument("--beams", type=positive, help="beam width; default: the decoding's")
    g.add_argument("--decoding", choices=("paper", "r2gengpt"), default="paper",
                   help="paper: beam 3, no penalties; r2gengpt: the closest peer's penalties and lengths")
    g.add_argument("--json", action="store_true", help="with --image: print JSON")
    g.add_argument("--explain", action="store_true",
                   help="with --image: print the picture's way through the model, step by step")

    g = p.add_argument_group("language scores")
    g.add_argument("--protocol", choices=(*PROTOCOLS, "both"), default="both",
                   help="coco: PTB tokens, full references; r2gen: as published rows were computed")
    g.add_argument("--cleaning", choices=tuple(CLEANINGS),
                   help="whose cleaning function, for r2gen; default: mimic for a checkpoint on MIMIC-CXR, else iu")
    g.add_argument("--reference-words", type=positive, metavar="N",
                   help="words left of a reference, for r2gen; default 60 (iu) or 100 (mimic)")
    g.add_argument("--meteor-data", metavar="DIR",
                   help="folder of meteor-1.5.jar and data/paraphrase-en.gz; default: an installed pycocoevalcap's")
    g.add_argument("--against", metavar="FILE", help="other reports on the same studies, for differences and p-values")
    g.add_argument("--draws", type=positive, default=1000, help="bootstrap resamples")
    g.add_argument("--seed", type=at_least(int, 0), default=0, help="of the bootstrap")

    g = p.add_argument_group("clinical scores (labels in a file of reports come first)")
    g.add_argument("--chexbert", metavar="DIR", help="label texts with CheXbert: folder of chexbert.pth and vocab.txt")
    g.add_argument("--labeler", choices=("phantom",), help="label texts with the phantom's own rules")
    g.add_argument("--labels-only", action="store_true", help="write labels.csv and stop")
    return p


# Options that say nothing without another one, or beside it: {the other: …}.
WITHOUT = {"ckpt": ("image", "split", "data", "weights", "limit", "batch_size", "beams", "decoding"),
           "image": ("json", "explain")}
BESIDE = {"image": ("out", "split", "data", "limit", "against", "chexbert", "labeler", "labels_only"),
          "labels_only": ("against",)}


def check(args, defaults):
    """Raises UserError where the options do not go together: none is accepted and ignored."""
    if bool(args.ckpt) == bool(args.reports):
        raise UserError("name --ckpt FILE or --reports FILE, one of them; --help lists all options")
    if args.chexbert and args.labeler:
        raise UserError("--chexbert and --labeler: name one of them")
    for table, wrong, word in ((WITHOUT, False, "without"), (BESIDE, True, "beside")):
        for other, names in table.items():
            for name in names if bool(getattr(args, other)) == wrong else ():
                if getattr(args, name) != defaults(name):
                    raise UserError(f"--{name} does nothing {word} --{other}; leave it out".replace("_", "-"))


def labeler_of(args, device="cpu"):
    """(texts → [(labels, findings)], its name) as the options ask for; (None, None) where they name none."""
    if args.labeler:
        return phantom_labels, f"{args.labeler} rules"
    return (chexbert_labels(args.chexbert, device), "CheXbert") if args.chexbert else (None, None)


def chexbert_settings(folder):
    """What labelled the texts; {} where it was not CheXbert."""
    if not folder:
        return {}
    import torch

    return {"chexbert": str(folder), "chexbert_sha256_16": file_digest(Path(folder) / "chexbert.pth"),
            "vocabulary_sha256_16": file_digest(Path(folder) / "vocab.txt"), "torch": torch.__version__}


def label_rows(rows, labeler, path):
    """Labels the rows and says where the labels come from; None where there are none and no labeler is named."""
    label, name = labeler
    if label:
        return add_labels(rows, label, name)
    missing = missing_labels(rows)
    if missing and any(row.get("labels") for row in rows):
        row, side = missing[0]
        raise UserError(f"{path}: id {row['id']!r} has no labels of its {side}, though the file holds labels; "
                        "add them, or name --chexbert or --labeler")
    return None if missing else "given"


def score_reports(args):
    """--reports: reads, labels, scores, writes, prints."""
    path = Path(args.reports)
    rows = read_pairs(path)
    out = results_folder(args.out or path.parent / f"eval-{path.stem}", path, args.against)
    labeler = labeler_of(args)
    labels_from = label_rows(rows, labeler, path)
    if args.labels_only:
        if labels_from is None:
            raise UserError(f"{path}: holds no labels; name --chexbert DIR or --labeler phantom")
        write_labels(out / "labels.csv", rows)
        return
    against = None
    if args.against:
        against = read_pairs(args.against)
        if labels_from and not label_rows(against, labeler, args.against):
            raise UserError(f"{args.against}: holds no labels, though {path} does; name --chexbert or --labeler")
    settings = {"reports": str(path), "sha256_16": file_digest(path),
                **against_settings(args), **chexbert_settings(args.chexbert)}
    write_results(out, score(rows, args, labels_from, against), settings, rows, title=str(path), labeler=labeler[0])


def against_settings(args):
    return {"against": str(args.against), "against_sha256_16": file_digest(args.against)} if args.against else {}


RESULTS = ("reports.jsonl", "metrics.json", "report.html", "labels.csv")


def results_folder(out, *read):
    """The folder `out`, made and tried before any work.

    Raises UserError, also where a result would replace a file `read`.
    """
    out = Path(out)
    for path in filter(None, read):
        if Path(path).resolve() in [(out / name).resolve() for name in RESULTS]:
            raise UserError(f"{path}: would be overwritten by the results; name another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"{out}: results can't be written there ({error.strerror}); "
                        "name another folder with --out") from None
    return out


def score(rows, args, labels_from, against=None):
    """evaluate_texts with the command line's options."""
    return evaluate_texts(rows, PROTOCOLS if args.protocol == "both" else (args.protocol,), args.cleaning or "iu",
                          args.reference_words, args.meteor_data, labels_from, against, args.draws, args.seed)


def log_beside(checkpoint):
    """The rows of the run's log.jsonl, as far as it lies beside the checkpoint."""
    from training.log import read_rows  # torch, which scoring given texts should not have to load

    return read_rows(Path(checkpoint).parent / "log.jsonl")


def writable(text):
    """The text with half a surrogate pair, for which UTF-8 has no form, as \\ud800:
    in JSON its escape, so none is lost."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_json(path, value):
    with whole_file(path) as file:
        file.write(writable(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)) + "\n")


def write_results(out, metrics, settings, rows, title, **page):
    """Writes metrics.json, reports.jsonl and report.html into the folder `out` and prints the tables."""
    metrics["settings"] = settings | metrics["settings"]
    with whole_file(out / "reports.jsonl") as file:
        for row in rows:
            file.write(writable(json.dumps(row, ensure_ascii=False)) + "\n")
    write_json(out / "metrics.json", metrics)
    write_page(out / "report.html", metrics, rows, title=title, **page)
    print_metrics(metrics)
    print(f"\nwritten: metrics.json, reports.jsonl and report.html in {out}")


# --- a checkpoint -----------------------------------------------------------------------------------------------------

# The closest peer's knobs (R2GenGPT, scripts/*): they move BLEU by points, so they are never mixed in unnamed.
R2GENGPT = {"beams": 3, "repetition_penalty": 2.0, "length_penalty": 2.0}
R2GENGPT_LENGTHS = {"mimic_cxr": {"min_new_tokens": 80, "max_new_tokens": 120}}
R2GENGPT_LENGTHS_IU = {"min_new_tokens": 40, "max_new_tokens": 100}


def evaluate_checkpoint(args):
    """--ckpt: one report with --image;
    else the zero-shot evaluation of a stage-1 file, or the reports of a stage-2 file."""
    import trrg  # torch, which scoring given texts should not have to load
    from training.processes import Processes

    processes = Processes()
    try:
        evaluate_on(processes, args, trrg)
    except UserError:
        if not processes.fails_first():  # one process says it, the others only end
            sys.exit(2)
        raise
    processes.close()


def evaluate_on(processes, args, trrg):
    """The kind of evaluation that the checkpoint and the options ask for."""
    model = trrg.load(args.ckpt, weights=args.weights, device=processes.device)
    if args.image:
        if isinstance(model, trrg.Alignment):
            raise UserError(f"{args.ckpt}: a stage-1 checkpoint writes no reports; --image wants the file of stage 2")
        report_on_images(model, args)
    elif isinstance(model, trrg.Alignment):
        evaluate_alignment(model, args, processes)
    else:
        evaluate_trrg(model, args, processes)


def decoding_of(model, args):
    """The checkpoint's decoding, with what the command line changes."""
    decoding = dict(model.decoding)
    if args.decoding == "r2gengpt":
        decoding |= R2GENGPT | R2GENGPT_LENGTHS.get(model.header.get("preset"), R2GENGPT_LENGTHS_IU)
    return decoding | ({"beams": args.beams} if args.beams else {})


def report_on_images(model, args):
    """--image: the report of one study, and the clues behind it."""
    model.decoding = decoding_of(model, args)
    if args.explain:
        from evaluation.explain import explain

        print(explain(model, args.image))
        return
    report = model.report(args.image)
    if args.json:
        clues = [{"prompt": prompt, "weight": weight} for prompt, weight in report.clues]
        print(json.dumps({"report": report.text, "clues": clues}, ensure_ascii=False))
        return
    print(f"Report\n  {report.text or '(empty)'}")
    if report.clues:
        print("Clues (weight of the disease among the 14)")
        for prompt, weight in report.clues:
            print(f"  {weight:6.1%} {'█' * round(20 * weight):<20} {prompt}")


def prepared_for(model, args):
    """(the data set, its studies to evaluate, where results go)."""
    from data.dataset import Prepared

    prepared = Prepared(args.data or model.header["data"])
    studies = prepared.split(args.split)[:args.limit]
    return prepared, studies, results_folder(args.out or Path(args.ckpt).parent / f"eval-{args.split}", args.against)


def checkpoint_settings(model, args, prepared, studies):
    import torch

    settings = {"checkpoint": str(args.ckpt), "sha256_16": file_digest(args.ckpt), "stage": model.header["stage"],
                "data": str(prepared.folder), "split": args.split, "n": len(studies), "torch": torch.__version__}
    return settings if args.limit is None else settings | {"limit": args.limit}


def evaluate_alignment(model, args, processes):
    """A stage-1 checkpoint: zero-shot recognition and retrieval."""
    from evaluation.writing import zero_shot

    for option, given in (("--against", args.against), ("--labels-only", args.labels_only)):
        if given:
            raise UserError(f"{args.ckpt}: a stage-1 checkpoint writes no reports; {option} wants the file of stage 2")
    prepared, studies, out = prepared_for(model, args)
    metrics, scores = zero_shot(model, prepared, studies, processes)
    if processes.rank:
        return
    metrics = {"settings": checkpoint_settings(model, args, prepared, studies), **metrics}
    write_json(out / "metrics.json", metrics)
    known = metrics["zero_shot"]["auroc"] is not None
    write_alignment_page(out / "report.html", metrics, title=f"{args.ckpt}, {args.split}", curves=log_beside(args.ckpt),
                         scores=scores if known else None,
                         labels=[study["labels"] for study in studies] if known else None)
    print_zero_shot(metrics)
    print(f"\nwritten: metrics.json and report.html in {out}")


def evaluate_trrg(model, args, processes):
    """A stage-2 checkpoint: its reports, their scores, and the floors that a model blind to the picture would reach."""
    from evaluation.writing import another_study, as_row, most_frequent_report, write_reports

    prepared, studies, out = prepared_for(model, args)
    decoding, data = decoding_of(model, args), data_named(model, prepared)
    args.cleaning = args.cleaning or ("mimic" if data == "mimic_cxr" else "iu")
    if data == "phantom" and not args.chexbert:
        args.labeler = "phantom"
    labeler = labeler_of(args, processes.device)
    if args.labels_only and labeler == (None, None):
        raise UserError(f"{prepared.folder}: --labels-only needs a labeler of its texts; name --chexbert DIR or "
                        "--labeler phantom")
    others = others_on(studies, args)

    def row(study, text, clues=()):
        found = as_row(study, text, clues)
        if labeler[0] and data != "phantom":
            found.pop("labels", None)           # one labeler reads both sides; only the phantom's labels are the truth
        return found

    reports, maps = zip(*write_reports(model, prepared, studies, processes, args.batch_size, maps=not args.labels_only,
                                       **decoding))
    rows = [row(study, report.text, report.clues) for study, report in zip(studies, reports)]
    if args.labels_only:
        if not processes.rank:
            label_rows(rows, labeler, args.ckpt)
            write_labels(out / "labels.csv", rows)
        return
    blind = write_reports(model, prepared, studies, processes, args.batch_size, another_study(studies),
                          what="floor: other studies' pictures", **decoding)
    if processes.rank:
        return
    floors = {"permuted_pictures": [row(study, report.text) for study, (report, _) in zip(studies, blind)]}
    if seen := [study for study in prepared.studies if study["split"] == "train"]:
        common = most_frequent_report(seen)
        floors["most_frequent_report"] = [row(study, common) for study in studies]
    against = others and [row(study, other["hypothesis"]) | {"reference": other["reference"]}
                          for study, other in zip(studies, others)]

    def labelled(rows):
        return label_rows(rows, labeler, args.ckpt) if labeler[0] else None

    if against:
        labelled(against)
    metrics = score(rows, args, labelled(rows), against)
    metrics["floors"] = {}
    for name, floor in floors.items():
        scored = score(floor, args, labelled(floor))
        metrics["floors"][name] = {part: scored[part] for part in ("language", "clinical", "truth") if part in scored}
    settings = (checkpoint_settings(model, args, prepared, studies)
                | {"variant": model.config.variant, "decoding": decoding}
                | against_settings(args) | chexbert_settings(args.chexbert))
    write_results(out, metrics, settings, rows, title=f"{args.ckpt}, {args.split}", curves=log_beside(args.ckpt),
                  pictures=lambda i: list(prepared.pictures(studies[i]).numpy()), maps=lambda i: maps[i],
                  labeler=labeler[0], data=data)
    print_floors(metrics)


def data_named(model, prepared):
    """Which data set this is: "phantom", "iu_xray", "mimic_cxr", or "" where nothing tells.

    R2Gen's annotation files have one form for both real sets: of these the checkpoint's preset is believed.
    """
    names = {"phantom": "phantom", "openi": "iu_xray", "mimic_cxr": "mimic_cxr", "r2gen": model.header.get("preset")}
    return names.get(prepared.manifest.get("options", {}).get("source"), "")


def others_on(studies, args):
    """--against: its rows in the order of the studies, or None. Raises UserError before any report is written."""
    if not args.against:
        return None
    rows = {row["id"]: row for row in read_pairs(args.against)}
    ids = [study["id"] for study in studies]
    if different := rows.keys() ^ set(ids):
        raise UserError(f"{args.against}: a paired comparison needs the same studies, but id {min(different)!r} "
                        "is on one side only; give --split, --limit and --data as for those reports")
    return [rows[study] for study in ids]


# CheXbert's CSV form: blank, 1 positive, 0 negative, -1 uncertain.
CSV_FORM = ("", "1", "0", "-1")


def write_labels(path, rows):
    """One line a text: id, which side, and its labels in CheXbert's order and CSV form."""
    with whole_file(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "text", *LABELS])
        for row in rows:
            for side in ("hypothesis", "reference"):
                table.writerow([writable(str(row["id"])), side, *(CSV_FORM[value] for value in row["labels"][side])])
    print(f"written: {path}")


def main(argv=None):
    try:
        p = parser()
        args = p.parse_args(argv)
        check(args, p.get_default)
        if args.reports:
            score_reports(args)
        else:
            evaluate_checkpoint(args)
        sys.stdout.flush()
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            # what is left of our output has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):          # its reader has gone
            return 0
        print(f"{error.filename or 'the output'}: {error.strerror or error}; what was written before is whole",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
