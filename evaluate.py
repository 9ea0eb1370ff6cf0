"""Evaluates TRRG.

    python evaluate.py --ckpt runs/demo/ckpt.safetensors      writes reports, scores them, draws a page
    python evaluate.py --ckpt runs/demo/stage1.safetensors    recognition and retrieval of stage 1
    python evaluate.py --ckpt CKPT --image FRONTAL [LATERAL]  one report, its clues and their weights
    python evaluate.py --ckpt CKPT --serve                    a page to try it with, in a browser
    python evaluate.py --ckpt CKPT --swap                     what it reads: other pictures and clues
    python evaluate.py --ckpt CKPT --list FILE.jsonl          reports for lines of {"id", "images"}
    python evaluate.py --reports FILE.jsonl                   scores given texts: no model, no GPU
    python evaluate.py --reports FILE.jsonl --against OTHER   the same, compared pair by pair

Exit codes: 0 done, 2 a mistake of the user (one line on stderr), 130 stopped by Ctrl-C, 1 anything else.
"""

from data.command import Parser, at_least, described, plain_output, stop_in_one_line

if __name__ == "__main__":
    stop_in_one_line()                     # also while the rest is imported, which may take seconds

import argparse
import os
import sys

from data.files import UserError
from evaluation.given import score_reports
from evaluation.pairs import SECTIONS
from metrics import CLEANINGS, PROTOCOLS

# What an evaluation can be: each option says in which of these it is read, and is refused in all others.
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
    """The command line. `read_in(modes, option, …)` notes where the options are read."""
    p = Parser(usage="python evaluate.py (--ckpt FILE | --reports FILE) [option ...]", add_help=False,
               **described(__doc__))
    positive = at_least(int, 1)

    # What is evaluated, and where the results go.
    g = p.add_argument_group("what to evaluate (one of --ckpt, --reports)")
    read_in("stage1 stage2 swap list image explain serve",
            g.add_argument("--ckpt", metavar="FILE", help="checkpoint of either stage"))
    read_in("image explain",
            g.add_argument("--image", nargs="+", metavar="PICTURE",
                           help="with --ckpt: report on these views of one study"))
    read_in("explain",
            g.add_argument("--explain", action="store_true",
                           help="with --image: print the picture's way through the model, step by step"))
    read_in("image", g.add_argument("--json", action="store_true", help="with --image: print JSON"))
    read_in("swap",
            g.add_argument("--swap", action="store_true",
                           help="with --ckpt: what becomes of the reports with other pictures and other clues"))
    read_in("list",
            g.add_argument("--list", metavar="FILE",
                           help='with --ckpt: report on each line {"id", "images": [paths]}; or on ReXrank\'s JSON'),
            g.add_argument("--pictures", metavar="DIR",
                           help="where the relative paths of --list begin; default: the folder of FILE"))
    read_in("serve",
            g.add_argument("--serve", action="store_true",
                           help="with --ckpt: a page to try it with, for a browser on this machine"),
            g.add_argument("--port", type=at_least(int, 0), default=8000, help="of the page; 0: any that is free"))
    read_in("reports",
            g.add_argument("--reports", metavar="FILE",
                           help="texts to score: JSON lines or CSV with id, hypothesis, reference; or ReXrank's JSON"))
    read_in("reports stage1 stage2 swap list",
            g.add_argument("--out", metavar="DIR", help="where results go; default: eval-SPLIT or swap-SPLIT beside "
                                                        "the checkpoint, eval-NAME or reports-NAME beside FILE"))
    read_in("reports stage2 list",
            g.add_argument("--rexrank", metavar="OUT.json",
                           help="also write the reports, and nothing else, as ReXrank's JSON"))

    # A model that still has to write its reports.
    g = p.add_argument_group("checkpoint")
    read_in("stage1 stage2 swap serve",
            g.add_argument("--split", default="test", help="part of the data set"),
            g.add_argument("--data", metavar="DIR",
                           help="prepared data set; default: the one the checkpoint was trained on"))
    read_in("stage1 stage2 swap",
            g.add_argument("--limit", type=positive, metavar="N", help="only the first N studies"))
    read_in("stage1 stage2 swap list",
            g.add_argument("--batch-size", type=positive, default=16, help="studies at a time"))
    read_in("stage2 swap list image explain serve",
            g.add_argument("--weights", metavar="DIR", help="base weights; default: where the checkpoint says"),
            g.add_argument("--beams", type=positive, help="beam width; default: the decoding's"),
            g.add_argument("--decoding", choices=("paper", "r2gengpt"), default="paper",
                           help="paper: beam 3, no penalties; r2gengpt: the closest peer's penalties and lengths"))

    # Texts against references.
    g = p.add_argument_group("language scores")
    read_in("scores",
            g.add_argument("--protocol", choices=(*PROTOCOLS, "both"), default="both",
                           help="coco: PTB tokens, full references; r2gen: as published rows were computed"),
            g.add_argument("--meteor-data", metavar="DIR", help="folder of meteor-1.5.jar and data/paraphrase-en.gz; "
                                                                "default: an installed pycocoevalcap's"),
            g.add_argument("--against", metavar="FILE",
                           help="other reports on the same studies, for differences and p-values"))
    read_in("sections",
            g.add_argument("--section", choices=SECTIONS, default="report",
                           help="of ReXrank's JSON: findings and impression in one text, as they do; or one of them"))
    read_in("r2gen",
            g.add_argument("--cleaning", choices=tuple(CLEANINGS), help="whose cleaning function; default: mimic for a "
                                                                        "checkpoint on MIMIC-CXR, else iu"),
            g.add_argument("--reference-words", type=positive, metavar="N",
                           help="words left of a reference; default 60 (iu) or 100 (mimic)"))
    read_in("scores stage1 swap",
            g.add_argument("--draws", type=positive, default=1000, help="bootstrap resamples"),
            g.add_argument("--seed", type=at_least(int, 0), default=0, help="of the bootstrap"))

    # Labels of texts.
    g = p.add_argument_group("clinical scores (labels in a file of reports come first)")
    read_in("reports stage2 swap",
            g.add_argument("--chexbert", metavar="DIR", help="label texts with CheXbert, and SembScore: folder of "
                                                             "chexbert.pth and vocab.txt"),
            g.add_argument("--labeler", choices=("phantom",), help="label texts with the phantom's own rules"))
    read_in("reports stage2",
            g.add_argument("--labels-only", action="store_true",
                           help="write labels.csv (and the reports of a checkpoint), score nothing"))

    # Networks that read both texts.
    g = p.add_argument_group("scores that networks give", "SembScore by --chexbert; with all three folders RadCliQ "
                             "too, of which lower is better, and 1 / mean beside it")
    read_in("scores",
            g.add_argument("--bertscore", metavar="DIR",
                           help="folder as Hugging Face lays it out, of DistilBERT, RoBERTa or BERT; never trust it "
                                "alone: a flipped negation still scores about .9"),
            g.add_argument("--radgraph", metavar="DIR",
                           help="folder of radgraph.tar.gz or radgraph-xl.tar.gz, and vocab.txt"))
    g.add_argument("-h", "--help", action="help", help="this text")
    return p


def read_in(modes, *options):
    for option in options:
        option.modes = modes.split()


def parse(argv=None):
    """(the command line, the options that were given on it)."""
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
    """Which of MODES a command line asks for; of a checkpoint whose `stage` isn't known yet, those of either."""
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
    """Raises UserError where an option was given that nothing would read: none is accepted and ignored."""
    modes = modes_of(args, stage)
    for option in given:
        if set(option.modes) & set(modes):
            continue
        name = option.option_strings[0]
        if stage == 1:
            raise UserError(f"{args.ckpt}: a stage-1 checkpoint writes no reports; {name} wants the file of stage 2")
        beside = MODES[modes[0]]
        if args.labels_only and "scores" in option.modes:
            beside = "--labels-only"
        elif args.protocol == "coco" and "r2gen" in option.modes:
            beside = "--protocol coco"
        wanted = " or ".join(MODES[mode] for mode in option.modes)
        raise UserError(f"{name} does nothing beside {beside}: it belongs to {wanted}; leave it out")


def evaluate(args, given):
    """The evaluation that the options ask for. Raises UserError."""
    # What can be refused without a look at any file.
    if bool(args.ckpt) == bool(args.reports):
        raise UserError("name --ckpt FILE or --reports FILE, one of them; --help lists all options")
    if args.chexbert and args.labeler:
        raise UserError("--chexbert and --labeler: name one of them")
    if args.explain and not args.image:
        raise UserError("--explain does nothing without --image; leave it out, or name the pictures")
    refuse_unread(args, given)
    if args.reports:
        score_reports(args)
        return

    from evaluation import checkpoint, image, listing, serve, swap  # with torch, which scoring given texts does without

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
