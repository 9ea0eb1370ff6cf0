"""Evaluates TRRG.

    python evaluate.py --ckpt runs/demo/ckpt.safetensors      writes reports, scores them, makes a page
    python evaluate.py --ckpt runs/demo/stage1.safetensors    scores recognition and retrieval of stage 1
    python evaluate.py --ckpt CKPT --image FRONTAL [LATERAL]  prints one report, its clues and weights
    python evaluate.py --ckpt CKPT --serve                    serves a web page to try the model
    python evaluate.py --ckpt CKPT --swap                     tests whether pictures and clues are used
    python evaluate.py --ckpt CKPT --list FILE.jsonl          writes reports for pictures of your own
    python evaluate.py --reports FILE.jsonl                   scores given texts: no model, no GPU
    python evaluate.py --reports FILE.jsonl --against OTHER   compares two sets of reports

Exit codes: 0 done, 2 a mistake of the user (one line on stderr), 130 stopped by Ctrl-C, 1 anything else.
"""

from data.command import Parser, at_least, described, plain_output, stop_in_one_line

if __name__ == "__main__":
    stop_in_one_line()                     # before the imports below, which may take seconds

import argparse
import os
import sys

from data.files import UserError
from evaluation.given import score_reports
from evaluation.pairs import SECTIONS
from metrics import CLEANINGS, PROTOCOLS

# The kinds of evaluation. Every option lists the kinds that read it, and is refused in all others.
MODES = {
    "reports": "--reports",
    "stage1": "a stage-1 checkpoint",
    "stage2": "a stage-2 checkpoint",
    "image": "--image",
    "explain": "--explain",
    "swap": "--swap",
    "list": "--list",
    "serve": "--serve",
    "scores": "scores of reports",
    "r2gen": "the protocol r2gen",
    "sections": "reports in ReXrank's JSON",
}


def parser():
    """The command line. `read_in(modes, option, …)` notes which kinds of evaluation read the options."""
    p = Parser(usage="python evaluate.py (--ckpt FILE | --reports FILE) [option ...]", add_help=False,
               **described(__doc__))
    positive = at_least(int, 1)

    # What is evaluated, and where the results are written.
    g = p.add_argument_group("what to evaluate (give --ckpt or --reports)")
    read_in("stage1 stage2 swap list image explain serve",
            g.add_argument("--ckpt", metavar="FILE", help="checkpoint of stage 1 or stage 2"))
    read_in("image explain",
            g.add_argument("--image", nargs="+", metavar="PICTURE",
                           help="with --ckpt: write the report of one study from these views, the frontal view first"))
    read_in("explain",
            g.add_argument("--explain", action="store_true",
                           help="with --image: explain the report, step by step: shapes, clues, prompt, token "
                                "probabilities"))
    read_in("image", g.add_argument("--json", action="store_true", help="with --image: print the report and its clues "
                                                                        "as JSON"))
    read_in("swap",
            g.add_argument("--swap", action="store_true",
                           help="with --ckpt: measure how the reports change when the pictures or the clues are "
                                "swapped"))
    read_in("list",
            g.add_argument("--list", metavar="FILE",
                           help='with --ckpt: write a report for each line {"id", "images": [paths]} of FILE, or for '
                                "each study of a FILE in ReXrank's JSON format"),
            g.add_argument("--pictures", metavar="DIR",
                           help="folder for the relative paths in --list's file; default: the folder of that file"))
    read_in("serve",
            g.add_argument("--serve", action="store_true",
                           help="with --ckpt: serve a web page to try the model, for a browser on this machine"),
            g.add_argument("--port", type=at_least(int, 0), default=8000, metavar="N",
                           help="port of the page of --serve; 0 takes any free port"))
    read_in("reports",
            g.add_argument("--reports", metavar="FILE",
                           help="file of reports to score: JSON lines or CSV with id, hypothesis, reference; or "
                                "ReXrank's JSON"))
    read_in("reports stage1 stage2 swap list",
            g.add_argument("--out", metavar="DIR", help="folder for the results; default: eval-SPLIT or swap-SPLIT "
                                                        "beside the checkpoint; beside a FILE called NAME.jsonl "
                                                        "eval-NAME for --reports, reports-NAME for --list"))
    read_in("reports stage2 list",
            g.add_argument("--rexrank", metavar="OUT.json",
                           help="also write the reports to OUT.json in ReXrank's format, without references"))

    # How a checkpoint is evaluated.
    g = p.add_argument_group("evaluation of a checkpoint")
    read_in("stage1 stage2 swap serve",
            g.add_argument("--split", default="test", help="split of the data set to evaluate: train, val or test"),
            g.add_argument("--data", metavar="DIR",
                           help="folder of the prepared data set; default: the data set that the checkpoint was "
                                "trained on"))
    read_in("stage1 stage2 swap",
            g.add_argument("--limit", type=positive, metavar="N", help="evaluate only the first N studies"))
    read_in("stage1 stage2 swap list",
            g.add_argument("--batch-size", type=positive, default=16, metavar="N", help="studies per batch"))
    read_in("stage2 swap list image explain serve",
            g.add_argument("--weights", metavar="DIR", help="folder of the base weights, if the checkpoint does not "
                                "hold them; default: the folder that the checkpoint names"),
            g.add_argument("--beams", type=positive, metavar="N", help="beam width; default: that of --decoding"),
            g.add_argument("--decoding", choices=("paper", "r2gengpt"), default="paper",
                           help="paper: the checkpoint's own settings (beam 3); r2gengpt: R2GenGPT's penalties and "
                                "lengths, which change BLEU by points"))

    # How texts are compared with references.
    g = p.add_argument_group("language scores")
    read_in("scores",
            g.add_argument("--protocol", choices=(*PROTOCOLS, "both"), default="both",
                           help="coco: Penn Treebank tokens, full references; r2gen: cleaned and cut as in R2Gen's "
                                "code, which most published results use"),
            g.add_argument("--meteor-data", metavar="DIR", help="folder with meteor-1.5.jar and data/paraphrase-en.gz; "
                                                                "default: that of an installed pycocoevalcap"),
            g.add_argument("--against", metavar="FILE",
                           help="file of other reports on the same studies; adds differences and p-values"))
    read_in("sections",
            g.add_argument("--section", choices=SECTIONS, default="report",
                           help="section of ReXrank's JSON to score; report: findings and impression in one text, as "
                                "ReXrank does"))
    read_in("r2gen",
            g.add_argument("--cleaning", choices=tuple(CLEANINGS), help="cleaning function of r2gen; default: mimic "
                                                                        "for a checkpoint on MIMIC-CXR, else iu"),
            g.add_argument("--reference-words", type=positive, metavar="N",
                           help="number of words to which r2gen cuts a reference; default: 60 (iu) or 100 (mimic)"))
    read_in("scores stage1 swap",
            g.add_argument("--draws", type=positive, default=1000, metavar="N", help="bootstrap resamples"),
            g.add_argument("--seed", type=at_least(int, 0), default=0, metavar="N", help="random seed of the "
                                                                                         "bootstrap"))

    # Where the labels of texts come from.
    g = p.add_argument_group("clinical scores (labels that a file of reports holds are kept)")
    read_in("reports stage2 swap",
            g.add_argument("--chexbert", metavar="DIR", help="label texts with CheXbert and add SembScore; DIR holds "
                                                             "chexbert.pth and vocab.txt"),
            g.add_argument("--labeler", choices=("phantom",), help="label texts with the phantom's own rules"))
    read_in("reports stage2",
            g.add_argument("--labels-only", action="store_true",
                           help="write only labels.csv and reports.jsonl, no scores"))

    # Networks that compare two texts.
    g = p.add_argument_group("scores computed by networks", "--chexbert (above) also adds SembScore; --chexbert, "
                             "--bertscore and --radgraph together add RadCliQ (lower is better) and 1 / RadCliQ")
    read_in("scores",
            g.add_argument("--bertscore", metavar="DIR",
                           help="add BERTScore; DIR holds DistilBERT, RoBERTa or BERT in Hugging Face's layout. Never "
                                "rely on BERTScore alone: a flipped negation still scores about .9"),
            g.add_argument("--radgraph", metavar="DIR",
                           help="add RadGraph-F1; DIR holds radgraph.tar.gz or radgraph-xl.tar.gz, and vocab.txt"))
    g.add_argument("-h", "--help", action="help", help="this text")
    return p


def read_in(modes, *options):
    """Notes on options which kinds of evaluation read them."""
    for option in options:
        option.modes = modes.split()


def parse(argv=None):
    """(the settings, the options that were given on the command line). Raises UserError."""
    p = parser()
    options = [option for option in p._actions if option.dest != "help"]
    absent = object()
    args = p.parse_args(argv, argparse.Namespace(**{option.dest: absent for option in options}))
    given = [option for option in options if getattr(args, option.dest) is not absent]
    for option in options:
        if option not in given:
            setattr(args, option.dest, option.default)
    return args, given


def modes_of(args, stage=None):
    """The MODES that a command line asks for; the modes of both stages while the checkpoint's `stage` is unknown."""
    if args.reports:
        modes = ["reports"]
        if any(str(path).lower().endswith(".json") for path in (args.reports, args.against)):
            modes += ["sections"]
    elif stage == 1:
        return ["stage1"]
    elif args.swap:
        return ["swap"]
    elif args.list:
        return ["list"]
    elif args.image:
        return ["explain" if args.explain else "image"]
    elif args.serve:
        return ["serve"]
    else:
        modes = ["stage2"] if stage else ["stage2", "stage1"]
    if not args.labels_only:
        modes += ["scores"] if args.protocol == "coco" else ["scores", "r2gen"]
    return modes


def refuse_unread(args, given, stage=None):
    """Raises UserError for a given option that has no effect in this evaluation."""
    modes = modes_of(args, stage)
    for option in given:
        if set(option.modes) & set(modes):
            continue
        name = option.option_strings[0]
        if stage == 1:
            raise UserError(f"{args.ckpt}: is a stage-1 checkpoint, which writes no reports, so {name} has no effect; "
                            f"give the stage-2 checkpoint, or leave {name} out")
        beside = MODES[modes[0]]
        if args.labels_only and "scores" in option.modes:
            beside = "--labels-only"
        elif args.protocol == "coco" and "r2gen" in option.modes:
            beside = "--protocol coco"
        wanted = " or ".join(MODES[mode] for mode in option.modes)
        raise UserError(f"{name} has no effect with {beside}: it belongs to {wanted}; leave it out")


def evaluate(args, given):
    """Runs the evaluation that the options ask for. Raises UserError."""
    # Checks that need no file.
    if bool(args.ckpt) == bool(args.reports):
        raise UserError("give either --ckpt FILE or --reports FILE; --help lists all options")
    if args.chexbert and args.labeler:
        raise UserError("--chexbert and --labeler cannot be combined; give one of them")
    if args.explain and not args.image:
        raise UserError("--explain has no effect without --image; leave it out, or give pictures with --image")
    refuse_unread(args, given)
    if args.reports:
        score_reports(args)
        return

    from evaluation import checkpoint, image, listing, serve, swap  # these import torch

    with checkpoint.one_voice() as processes:
        header = checkpoint.header_of(args.ckpt)
        refuse_unread(args, given, header["stage"])
        checkpoint.take_threads(header)
        if args.image:
            image.report_on_images(args, header, processes)
        elif args.list:
            listing.report_on_list(args, header, processes)
        elif args.swap:
            swap.evaluate_swaps(args, header, processes)
        elif args.serve:
            serve.serve_page(args, header, processes)
        elif header["stage"] == 1:
            checkpoint.evaluate_alignment(args, header, processes)
        else:
            checkpoint.evaluate_trrg(args, header, processes)


def main(argv=None):
    """Runs a command line → its exit code."""
    plain_output()
    try:
        evaluate(*parse(argv))
        sys.stdout.flush()
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            # the output cannot take what is still buffered
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):          # the reader of a pipe has ended
            return 0
        print(f"{error.filename or 'the output'}: {error.strerror or error}; the files already written are intact",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
