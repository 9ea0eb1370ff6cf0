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
from pathlib import Path

from data.files import UserError, file_digest, whole_file
from data.reports import LABELS
from metrics import CLEANINGS, PROTOCOLS
from metrics.clinical import AVERAGES, CLASS_SETS, PARTS, UNCERTAIN
from metrics.page import write_alignment_page, write_page
from metrics.pairs import read_pairs
from metrics.results import add_labels, chexbert_labels, evaluate_texts, missing_labels, phantom_labels


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what = p.add_argument_group("what to evaluate (one of --ckpt, --reports)")
    what.add_argument("--ckpt", metavar="FILE", help="checkpoint of either stage")
    what.add_argument("--image", nargs="+", metavar="PICTURE", help="with --ckpt: report on these views of one study")
    what.add_argument("--reports", metavar="FILE", help="texts to score: JSON lines or CSV with id, hypothesis, reference")
    what.add_argument("--out", metavar="DIR", help="where results go; default: eval-SPLIT beside the checkpoint, eval-NAME beside FILE")

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
    g.add_argument("--explain", action="store_true", help="with --image: print the picture's way through the model, step by step")

    g = p.add_argument_group("language scores")
    g.add_argument("--protocol", choices=(*PROTOCOLS, "both"), default="both",
                   help="coco: PTB tokens, full references; r2gen: as published rows were computed")
    g.add_argument("--cleaning", choices=tuple(CLEANINGS),
                   help="whose cleaning function, for r2gen; default: mimic for a checkpoint of that preset, else iu")
    g.add_argument("--reference-words", type=positive, metavar="N",
                   help="words left of a reference, for r2gen; default 60 (iu) or 100 (mimic)")
    g.add_argument("--meteor-data", metavar="DIR",
                   help="folder of meteor-1.5.jar and data/paraphrase-en.gz; default: an installed pycocoevalcap's")
    g.add_argument("--against", metavar="FILE", help="other reports on the same studies, for differences and p-values")
    g.add_argument("--draws", type=positive, default=1000, help="bootstrap resamples")
    g.add_argument("--seed", type=int, default=0, help="of the bootstrap")

    g = p.add_argument_group("clinical scores (labels in the file come first)")
    g.add_argument("--chexbert", metavar="DIR", help="label texts with CheXbert: folder of chexbert.pth and vocab.txt")
    g.add_argument("--labeler", choices=("phantom",), help="label texts with the phantom's own rules")
    g.add_argument("--labels-only", action="store_true", help="write labels.csv and stop")
    return p


def label_rows(rows, args, path):
    """Labels the rows and says where the labels come from; None where there are none and no labeler is named."""
    if args.chexbert and args.labeler:
        raise UserError("--chexbert and --labeler: name one of them")
    if args.chexbert:
        return add_labels(rows, chexbert_labels(args.chexbert), "CheXbert")
    if args.labeler:
        return add_labels(rows, phantom_labels, f"{args.labeler} rules")
    missing = missing_labels(rows)
    if missing and any(row.get("labels") for row in rows):
        row, side = missing[0]
        raise UserError(f"{path}: id {row['id']!r} has no labels of its {side}, though the file holds labels; add them, or "
                        "name --chexbert or --labeler")
    return None if missing else "given"


def score_reports(args):
    """--reports: reads, labels, scores, writes, prints."""
    path = Path(args.reports)
    rows = read_pairs(path)
    out = Path(args.out) if args.out else path.parent / f"eval-{path.stem}"
    labels_from = label_rows(rows, args, path)
    if args.labels_only:
        if labels_from is None:
            raise UserError(f"{path}: holds no labels; name --chexbert DIR or --labeler phantom")
        write_labels(out / "labels.csv", rows)
        return
    against = None
    if args.against:
        against = read_pairs(args.against)
        if labels_from and not label_rows(against, args, args.against):
            raise UserError(f"{args.against}: holds no labels, though {path} does; name --chexbert or --labeler")
    settings = {"reports": str(path), "sha256": file_digest(path)}
    if args.against:
        settings |= {"against": str(args.against), "against_sha256": file_digest(args.against)}
    if args.chexbert:
        settings |= {"chexbert": str(args.chexbert), "chexbert_sha256": file_digest(Path(args.chexbert) / "chexbert.pth")}
    write_results(out, score(rows, args, labels_from, against), settings, rows, title=str(path),
                  labeler=phantom_labels if args.labeler else None)


def score(rows, args, labels_from, against=None):
    """evaluate_texts with the command line's options."""
    return evaluate_texts(rows, PROTOCOLS if args.protocol == "both" else (args.protocol,), args.cleaning or "iu",
                          args.reference_words, args.meteor_data, labels_from, against, args.draws, args.seed)


def log_beside(checkpoint):
    """The rows of the run's log.jsonl, where it lies beside the checkpoint."""
    path = Path(checkpoint).parent / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else None


def writable(text):
    """The text with half a surrogate pair, for which UTF-8 has no form, as \\ud800: in JSON its escape, so none is lost."""
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
    """--ckpt: one report with --image; else the zero-shot evaluation of a stage-1 file, or the reports of a stage-2 file."""
    import trrg  # torch, which scoring given texts should not have to load
    from processes import Processes

    processes = Processes()
    try:
        evaluate_on(processes, args, trrg)
    except UserError:
        if not processes.fails_first():  # one process says it, the others only end
            sys.exit(2)
        raise
    finally:
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
        from explain import explain

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
    out = Path(args.out) if args.out else Path(args.ckpt).parent / f"eval-{args.split}"
    return prepared, studies, out


def checkpoint_settings(model, args, prepared, studies):
    import torch

    settings = {"checkpoint": str(args.ckpt), "sha256": file_digest(args.ckpt), "stage": model.header["stage"], "data": str(prepared.folder),
                "split": args.split, "n": len(studies), "torch": torch.__version__}
    return settings if args.limit is None else settings | {"limit": args.limit}


def evaluate_alignment(model, args, processes):
    """A stage-1 checkpoint: zero-shot recognition and retrieval."""
    from inference import zero_shot

    prepared, studies, out = prepared_for(model, args)
    metrics, scores = zero_shot(model, prepared, studies, processes)
    if processes.rank:
        return
    metrics = {"settings": checkpoint_settings(model, args, prepared, studies), **metrics}
    write_json(out / "metrics.json", metrics)
    known = metrics["zero_shot"]["auroc"] is not None
    write_alignment_page(out / "report.html", metrics, title=f"{args.ckpt}, {args.split}", curves=log_beside(args.ckpt),
                         scores=scores if known else None, labels=[study["labels"] for study in studies] if known else None)
    print_zero_shot(metrics)
    print(f"\nwritten: metrics.json and report.html in {out}")


def evaluate_trrg(model, args, processes):
    """A stage-2 checkpoint: its reports, their scores, and the floors that a model blind to the picture would reach."""
    from inference import another_study, as_row, most_frequent_report, write_reports

    prepared, studies, out = prepared_for(model, args)
    decoding = decoding_of(model, args)
    args.cleaning = args.cleaning or ("mimic" if model.header.get("preset") == "mimic_cxr" else "iu")
    reports, maps = zip(*write_reports(model, prepared, studies, processes, args.batch_size, maps=True, **decoding))
    blind = write_reports(model, prepared, studies, processes, args.batch_size, another_study(studies),
                          what="floor: other studies' pictures", **decoding)
    if processes.rank:
        return
    rows = [as_row(study, report.text, report.clues) for study, report in zip(studies, reports)]
    common = most_frequent_report(prepared.split("train"))
    floors = {"permuted_pictures": [as_row(study, report.text) for study, (report, _) in zip(studies, blind)],
              "most_frequent_report": [as_row(study, common) for study in studies]}
    if prepared.manifest.get("options", {}).get("source") == "phantom" and not args.chexbert:
        args.labeler = "phantom"
    labels_from = label_rows(rows, args, args.ckpt) if args.labeler or args.chexbert else None
    metrics = score(rows, args, labels_from)
    metrics["floors"] = {}
    for name, floor in floors.items():
        scored = score(floor, args, label_rows(floor, args, args.ckpt) if labels_from else None)
        metrics["floors"][name] = {part: scored[part] for part in ("language", "clinical", "truth") if part in scored}
    if args.labels_only:
        write_labels(out / "labels.csv", rows)
        return
    settings = checkpoint_settings(model, args, prepared, studies) | {"variant": model.config.variant, "decoding": decoding}
    write_results(out, metrics, settings, rows, title=f"{args.ckpt}, {args.split}", curves=log_beside(args.ckpt),
                  pictures=lambda i: list(prepared.pictures(studies[i]).numpy()), maps=lambda i: maps[i],
                  labeler=phantom_labels if args.labeler else None, preset=model.header.get("preset"))
    print_floors(metrics)


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


# --- printing -------------------------------------------------------------------------------------------------------------

def figure(cell, digits=4):
    if cell["value"] is None:
        return "-"
    return f"{cell['value']:.{digits}f} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"


def table(header, rows):
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_metrics(metrics):
    """The tables of metrics.json: every figure under its full name, with its 95 % interval."""
    settings, language = metrics["settings"], metrics["language"]
    print(f"{settings['n']} reports; [95 % interval]\n\nLanguage")
    names = list(next(iter(language.values())))
    table(["", *language], [[name, *(figure(scores[name]) for scores in language.values())] for name in names])
    for protocol, described in settings["protocols"].items():
        print(f"  {protocol}: {described}")
    if "METEOR" not in names:
        print(f"  METEOR (exact+stem) is not the METEOR of papers: {settings['meteor'].partition(': ')[2]}")
    if "clinical" in metrics:
        print_clinical(metrics["clinical"])
    if "truth" in metrics:
        print("\nTruth, against the known findings")
        table(["", "", "of"], [[name.replace("_", " "), figure(cell), str(cell["n"])] for name, cell in metrics["truth"].items()])
    if "against" in metrics:
        print_differences(metrics["against"])


def print_clinical(clinical):
    print(f"\nClinical findings, labels: {clinical['labels_from']}")
    for part in PARTS:
        print(f"  {part}")
        header = ["average, uncertain as", *(f"{name} classes" for name in CLASS_SETS)]
        table(header, [[f"{average}, {uncertain}", *(figure(clinical["grid"][average][name][uncertain][part], 3)
                                                     for name in CLASS_SETS)]
                       for average in AVERAGES for uncertain in UNCERTAIN])
    print("  per class, uncertain as positive")
    table(["", *PARTS, "support"], [[label, *(figure(cell[part], 3) for part in PARTS), str(cell["support"])]
                                    for label, cell in clinical["per_class"]["positive"].items()])
    print("  13 classes: without No Finding. 5 classes: Cardiomegaly, Edema, Consolidation, Atelectasis, Pleural Effusion")


def print_differences(against):
    """Differences of language and truth, and of F1 in the clinical grid; metrics.json has all."""
    rows = [(f"{name} ({protocol})", cell) for protocol, scores in against["language"].items() for name, cell in scores.items()]
    if "clinical" in against:
        rows += [(f"F1, {average}, {name} classes, uncertain as {uncertain}", against["clinical"]["grid"][average][name][uncertain]["f1"])
                 for average in AVERAGES for name in CLASS_SETS for uncertain in UNCERTAIN]
    rows += [(name.replace("_", " "), cell) for name, cell in against.get("truth", {}).items()]
    print("\nDifference from the other reports, paired bootstrap")
    table(["", "the other", "difference", "p, two-sided"], [
        [name, "-" if cell["other"] is None else f"{cell['other']:.4f}",
         "-" if cell["difference"] is None else f"{cell['difference']:+.4f} [{cell['low']:+.4f}, {cell['high']:+.4f}]",
         "-" if cell["p"] is None else f"{cell['p']:.3f}"] for name, cell in rows])


FLOORS = {"permuted_pictures": "other studies' pictures", "most_frequent_report": "most frequent report"}


def floor_figures(scores):
    """The figures that floors are compared by: {name: cell}."""
    figures = {f"{name} ({protocol})": scores["language"][protocol][name]
               for protocol in scores["language"] for name in ("BLEU-4", "CIDEr")}
    if "clinical" in scores:
        figures["micro F1, 14 classes, uncertain as positive"] = scores["clinical"]["grid"]["micro"]["14"]["positive"]["f1"]
    return figures | {name.replace("_", " "): cell for name, cell in scores.get("truth", {}).items()}


def print_floors(metrics):
    """The score beside its floors. A score whose interval reaches a floor's is called out: such a model does not look."""
    own = floor_figures(metrics)
    floors = {FLOORS[name]: floor_figures(scores) for name, scores in metrics["floors"].items()}
    print("\nFloors: what texts score that have nothing to do with the picture")
    table(["", "this model", *floors], [[name, figure(cell), *(figure(floor[name]) for floor in floors.values())]
                                        for name, cell in own.items()])
    judge = "micro F1, 14 classes, uncertain as positive"
    for name in [judge] if judge in own else [name for name in own if name.startswith("CIDEr")]:
        for floor, scores in floors.items():
            if own[name]["value"] is not None and scores[name]["value"] is not None and own[name]["low"] <= scores[name]["high"]:
                print(f"  NEAR ITS FLOOR: {name} {own[name]['value']:.4f} against {scores[name]['value']:.4f} ({floor}): "
                      "these reports hardly depend on the pictures")


def print_zero_shot(metrics):
    print(f"{metrics['settings']['n']} studies; [95 % interval]\n\nZero-shot recognition (AUROC)")
    auroc, pairs = metrics["zero_shot"]["auroc"], metrics["zero_shot"]["auroc_pairs"]
    if auroc is None:
        print("  the data set holds no labels: none")
    else:
        rows = [[name, figure(auroc["per_finding"][name], 3), figure(pairs["per_finding"][name], 3),
                 str(auroc["per_finding"][name]["positives"])] for name in LABELS]
        table(["", "clue prompt", "finding against no finding", "positives"],
              [*rows, ["macro mean", figure(auroc["macro"], 3), figure(pairs["macro"], 3), ""]])
    print("\nRetrieval")
    table(["", "R@1 (chance)", "R@5 (chance)", "R@10 (chance)"], [
        [name.replace("_", " "), *(f"{figure(cell, 3)} ({cell['chance']:.3f})" for cell in found.values())]
        for name, found in metrics["retrieval"].items()])


def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    try:
        if bool(args.ckpt) == bool(args.reports):
            raise UserError("name --ckpt FILE or --reports FILE, one of them; --help lists all options")
        if args.reports:
            score_reports(args)
        else:
            evaluate_checkpoint(args)
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
