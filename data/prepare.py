"""Turns a source into a prepared data set (studies.jsonl, images.npy, manifest.json) for training.

    python -m data.prepare openi     --raw DIR --out datasets/iu_xray    IU X-Ray from Open-i or Kaggle
    python -m data.prepare r2gen     --raw DIR --out datasets/iu_xray    R2Gen's annotation.json, images/
    python -m data.prepare mimic_cxr --raw DIR --out datasets/mimic_cxr  MIMIC-CXR-JPG, the report texts
    python -m data.prepare csv       --raw DIR --out datasets/mine       your own table and pictures
    python -m data.prepare phantom   --out datasets/demo                 drawn pictures with reports
    python -m data.prepare csv --help                                    all options of one source

The command prints what it found beside the published counts, and what it left out and why.
manifest.json holds the same. An interrupted command, run again, continues where it stopped.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from data.command import Parser, at_least, described, plain_output, stop_in_one_line

if __name__ == "__main__":
    stop_in_one_line("stopped; the same command continues from here")

from data import images, mimic_cxr, openi, r2gen, table
from data import phantom as drawn
from data.builder import build, finished, kind_of
from data.files import UserError, file_digest, writable_folder
from data.source import Source

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def phantom(out, counts=(2000, 300, 500), seed=0, size=128, workers=1):
    """Prepares the phantom (data/phantom/) in the folder `out`; returns its manifest.

    counts: numbers of train, val and test studies. size: pixels per side. Raises UserError if `out` holds another data
    set.
    """
    options = {"source": "phantom", "studies": list(counts), "seed": seed}
    done = finished(out, {**options, "size": size})
    return done or build(Source(drawn.studies(counts, seed)), drawn.draw, out, size=size, workers=workers,
                         options=options)


# One function per source: command line → (the options that manifest.json records, a function that returns the
# `Source`). `_parser` connects these functions with the subcommands. An option without a default is in `args` only if
# the user gave it, so that `_refuse` can reject an option without effect. A file that decides the split is recorded by
# its digest: another file of the same name makes another data set.

def _openi(args):
    options = {"source": "openi", "target": args.target, "views": _given(args, "views", 2)}
    if args.split_from:
        _refuse(args, "seed", "with --split-from, whose file gives the split")
        options |= {"seed": None, "split_from": _digest(args.split_from)}
    else:
        options["seed"] = _given(args, "seed", 0)
    return options, partial(openi.collect, args.raw, args.target, options["views"], options["seed"], args.split_from,
                            args.text_only)


def _r2gen(args):
    views = _given(args, "views", 2)
    options = {"source": "r2gen", "views": views, "annotation": _digest(args.raw / "annotation.json")}
    return options, partial(r2gen.collect, args.raw, views)


def _mimic_cxr(args):
    if args.count == "images":
        _refuse(args, "views", "with --count images, where an example is one picture")
    views = 1 if args.count == "images" else _given(args, "views", 2)
    split_file = mimic_cxr.look_around(args.raw, args.text_only)[0]["split"]
    options = {"source": "mimic_cxr", "target": args.target, "views": views, "count": args.count,
               "split_file": file_digest(split_file)}
    return options, partial(mimic_cxr.collect, args.raw, args.target, views, args.count, args.text_only)


def _csv(args):
    path, views = table.find_table(args.raw), _given(args, "views", 2)
    if "split" in table.columns_of(path):
        _refuse(args, "seed", f"because {path.name} has a column split")
        seed = None
    else:
        seed = _given(args, "seed", 0)
    options = {"source": "csv", "views": views, "seed": seed, "table": file_digest(path)}
    return options, partial(table.collect, args.raw, views, seed, args.text_only)


def _phantom(args):
    options = {"source": "phantom", "studies": args.studies, "seed": _given(args, "seed", 0)}
    return options, lambda: Source(drawn.studies(args.studies, options["seed"]))


def _given(args, option, default):
    """The option's value, or `default` if the user did not give the option."""
    return getattr(args, option, default)


def _refuse(args, option, why):
    if option in args:
        raise UserError(f"--{option} has no effect {why}; leave it out")


def _digest(path):
    """The digest of R2Gen's annotation.json. Raises UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; R2Gen's download is a folder with annotation.json and images/")
    return file_digest(path)


def _parser():
    parser = Parser(prog="python -m data.prepare", usage="python -m data.prepare SOURCE [--raw DIR] --out DIR "
                    "[option ...]", **described(__doc__))
    sources = parser.add_subparsers(dest="source", required=True, title="sources", metavar="SOURCE",
                                    prog="python -m data.prepare")

    def source(name, plan, text, size=256):
        """The subcommand of one source, with the options that sources share; `plan` is its function above."""
        command = sources.add_parser(name, help=text, description=text, argument_default=argparse.SUPPRESS)
        command.set_defaults(plan=plan, default_size=size, text_only=False)
        if name != "phantom":
            command.add_argument("--raw", required=True, type=Path, metavar="DIR",
                                 help="folder of the download or of your own data")
        command.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the prepared data set")
        command.add_argument("--size", type=at_least(int, 1), metavar="N",
                             help="width and height of the prepared pictures in pixels; the models read a crop of each "
                             f"picture (default: {size})")
        command.add_argument("--workers", type=at_least(int, 1), metavar="N",
                             help=f"number of worker processes (default: {CORES})")
        if name != "phantom":
            command.add_argument("--views", type=at_least(int, 1), metavar="N",
                                 help="maximum number of pictures per study (default: 2)")
            command.add_argument("--text-only", action="store_true",
                                 help="write studies.jsonl and manifest.json, but no pictures")
        if name in ("openi", "mimic_cxr"):
            command.add_argument("--target", choices=("findings", "impression", "both"), default="findings",
                                 help="section of the report that the model learns to write (default: findings)")
        return command

    command = source("openi", _openi, "IU X-Ray (Indiana University), downloaded from Open-i or Kaggle")
    command.add_argument("--split-from", type=Path, default=None, metavar="FILE",
                         help="R2Gen's annotation.json, to use R2Gen's split")
    command.add_argument("--seed", type=at_least(int, 0), metavar="N",
                         help="seed of the random 70/10/20 split that is used without --split-from (default: 0)")
    source("r2gen", _r2gen, "IU X-Ray or MIMIC-CXR as R2Gen ships them: annotation.json and images/")
    command = source("mimic_cxr", _mimic_cxr, "MIMIC-CXR-JPG with the reports of MIMIC-CXR")
    command.add_argument("--count", choices=("studies", "images"), default="studies",
                         help="what one example is: a study with its views, or one image, as in R2Gen (default: "
                         "studies)")
    command = source("csv", _csv, "your own data: a folder with one .csv table and the pictures that it names; columns "
                     "id, report and pictures (paths separated by ;), optionally split, patient and the 14 labels")
    command.add_argument("--seed", type=at_least(int, 0), metavar="N",
                         help="seed of the random 70/10/20 split of a table without the column split (default: 0)")
    command = source("phantom", _phantom, "drawn chest X-rays with matching reports, for the demo", size=128)
    command.add_argument("--studies", type=at_least(int, 1), nargs=3, default=[2000, 300, 500],
                         metavar=("TRAIN", "VAL", "TEST"), help="studies per split (default: 2000 300 500)")
    command.add_argument("--seed", type=at_least(int, 0), metavar="N",
                         help="seed of all random numbers (default: 0)")
    return parser


def _prepare(args):
    """Builds the data set that the command line asks for, unless it is finished already, and prints its counts."""
    writable_folder(args.out, "--out")
    if "raw" in args and not args.raw.is_dir():
        raise UserError(f"{args.raw}: no such folder; give the folder of the download or of your own data with --raw")
    options, collect = args.plan(args)
    if args.text_only:
        for option in ("size", "workers"):
            _refuse(args, option, "with --text-only, which reads no pictures")
    size = _given(args, "size", args.default_size)

    manifest = finished(args.out, {**options, "size": None if args.text_only else size})
    if manifest is not None:
        print(f"{args.out}: already prepared with these options, nothing to do; remove the folder to prepare it again")
    else:
        source = collect()
        read = drawn.draw if args.source == "phantom" else partial(images.read_below, source.folder)
        manifest = build(source, None if args.text_only else read, args.out, size=size,
                         workers=_given(args, "workers", CORES), options=options)
    _print_summary(args.out, manifest)


def _print_summary(out, manifest):
    """Prints the counts found beside the published ones, what was left out, the studies per split, and warnings."""
    for what, (number, published) in manifest["found"].items():
        note = "" if published is None else f" (published: {published:,}{'' if number == published else '; DIFFERS'})"
        print(f"  {number:>9,}  {what}{note}")

    ids_of = {}
    for entry in manifest["skipped"]:
        ids_of.setdefault(kind_of(entry["why"]), []).append(entry["id"])
    for why, ids in sorted(ids_of.items(), key=lambda item: -len(item[1])):
        print(f"  {len(ids):>9,}  left out: {why} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})")

    counts = manifest["counts"]
    print(f"{out}: {counts['train']:,} / {counts['val']:,} / {counts['test']:,} studies (train / val / test), "
          f"{manifest['pictures']:,} pictures, {len(manifest['skipped']):,} studies left out (named in manifest.json)")
    if manifest.get("clipped_pictures"):
        print(f"note: {manifest['clipped_pictures']:,} pictures have a few pixels far brighter than all others, which "
              "are shown as white")
    for split, repeats in manifest["repeats"].items():
        if repeats:
            print(f"warning: {repeats:,} of {counts[split]:,} {split} reports are also in the train split, letter by "
                  "letter")


def main(argv=None):
    """Runs the command; returns its exit code."""
    plain_output()
    try:
        _prepare(_parser().parse_args(argv))
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the summary, say `head`, has ended; the data set is complete
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, no permission
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
