"""Turns a source into a prepared data set (data/dataset.py describes the three files): every picture decoded once.

    python -m data.prepare openi     --raw DIR --out datasets/iu_xray         Open-i's XML reports and PNG pictures
    python -m data.prepare r2gen     --raw DIR --out datasets/iu_xray         R2Gen's annotation.json and images/
    python -m data.prepare mimic_cxr --raw DIR --out datasets/mimic_cxr       MIMIC-CXR-JPG and the report texts
    python -m data.prepare phantom   --out datasets/demo                      drawn pictures with reports that fit

Every line that it prints is also in manifest.json: what was found (beside the published counts), what was left out.
"""

import argparse
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from data.command import Parser, at_least, plain_output, stop_in_one_line

if __name__ == "__main__":
    stop_in_one_line("stopped; the same command goes on from here")

from data import images, mimic_cxr, openi, r2gen
from data import phantom as phantom_source
from data.builder import build, finished, kind_of
from data.files import UserError, file_digest, writable_folder


def phantom(out, counts=(2000, 300, 500), seed=0, size=128, workers=1):
    """Prepares the phantom (data/phantom/): `counts` studies for train, val and test. Returns the manifest."""
    options = {"source": "phantom", "studies": list(counts), "seed": seed}
    done = finished(out, {**options, "size": size})
    return done or build(phantom_source.studies(counts, seed), phantom_source.draw, out, size=size,
                         workers=workers, options=options)


def _arguments(argv):
    parser = Parser(prog="python -m data.prepare", description=__doc__.splitlines()[0])
    sources = parser.add_subparsers(dest="source", required=True, metavar="{openi,r2gen,mimic_cxr,phantom}")

    def source(name, text, size):
        command = sources.add_parser(name, help=text, description=text,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_argument("--out", required=True, type=Path, help="folder of the prepared data set")
        command.add_argument("--size", type=at_least(int, 1), default=size, help="pixels per side; a crop needs fewer")
        command.add_argument("--workers", type=at_least(int, 1), default=len(os.sched_getaffinity(0))
                             if hasattr(os, "sched_getaffinity") else os.cpu_count(), help="processes")
        if name != "phantom":
            command.add_argument("--raw", required=True, type=Path, help="folder of the download")
            command.add_argument("--views", type=at_least(int, 1), default=2, help="at most so many pictures a study")
            command.add_argument("--text-only", action="store_true", help="write no pictures, only the two other files")
        return command

    targets = ("findings", "impression", "both")
    command = source("openi", "Open-i's Indiana University chest X-rays", 256)
    command.add_argument("--target", choices=targets, default="findings", help="the text to generate")
    command.add_argument("--split-from", type=Path, help="R2Gen's annotation.json, whose split to take")
    command.add_argument("--seed", type=at_least(int, 0), default=0, help="of the 70/10/20 split, without --split-from")
    source("r2gen", "R2Gen's annotation.json with images/", 256)
    command = source("mimic_cxr", "MIMIC-CXR-JPG with the reports of MIMIC-CXR", 256)
    command.add_argument("--target", choices=targets, default="findings", help="the text to generate")
    command.add_argument("--count", choices=("studies", "images"), default="studies",
                         help="an example is a study with its views, or (as R2Gen counts) every image by itself")
    command = source("phantom", "drawn chest X-rays with reports that fit", 128)
    command.add_argument("--studies", type=at_least(int, 1), nargs=3, default=[2000, 300, 500],
                         metavar=("TRAIN", "VAL", "TEST"), help="studies per split")
    command.add_argument("--seed", type=at_least(int, 0), default=0, help="of everything drawn")
    return parser.parse_args(argv)


def _digest(path):
    if not path.is_file():
        raise UserError(f"{path}: no such file; R2Gen's layout is annotation.json beside images/")
    return file_digest(path)


def _prepare(args):
    writable_folder(args.out, "--out")
    if args.source == "phantom":
        options = {"source": "phantom", "studies": args.studies, "seed": args.seed}
    else:
        if not args.raw.is_dir():
            raise UserError(f"{args.raw}: no such folder; --raw is the folder of the download")
        keys = {"openi": ("target", "views", "seed"), "r2gen": ("views",), "mimic_cxr": ("target", "views", "count")}
        options = {"source": args.source, **{key: getattr(args, key) for key in keys[args.source]}}
        # By the contents of the file that decides the split: another one under the same name is another data set.
        if args.source == "openi" and args.split_from:
            options |= {"seed": None, "split_from": _digest(args.split_from)}
        elif args.source == "r2gen":
            options["annotation"] = _digest(args.raw / "annotation.json")
        elif args.source == "mimic_cxr":
            options["split_file"] = file_digest(mimic_cxr.look_around(args.raw)[0]["split"])
            if args.count == "images":
                if args.views > 2:
                    raise UserError("--views has no meaning with --count images, where every picture is its own "
                                    "example; leave it out")
                options["views"] = 1
    text_only = args.source != "phantom" and args.text_only
    manifest = finished(args.out, {**options, "size": None if text_only else args.size})
    if manifest is not None:
        print(f"{args.out}: already prepared with these options, nothing to do; remove the folder to prepare it anew")
    elif args.source == "phantom":
        manifest = phantom(args.out, args.studies, args.seed, args.size, args.workers)
    else:
        if args.source == "openi":
            collected = openi.collect(args.raw, args.target, args.views, args.seed, args.split_from, text_only)
        elif args.source == "r2gen":
            collected = r2gen.collect(args.raw, args.views)
        else:
            collected = mimic_cxr.collect(args.raw, args.target, args.views, args.count)
        studies, skipped, found, folder = collected
        manifest = build(studies, None if text_only else partial(images.read_below, folder), args.out, size=args.size,
                         workers=args.workers, options=options, skipped=skipped, found=found, origin=folder)
    _print_summary(args.out, manifest)


def _print_summary(out, manifest):
    for what, (number, published) in manifest["found"].items():
        note = "" if published is None else f" (published: {published:,}{'' if number == published else '; DIFFERS'})"
        print(f"  {number:>9,}  {what}{note}")
    for why, number in Counter(kind_of(entry["why"]) for entry in manifest["skipped"]).most_common():
        ids = [entry["id"] for entry in manifest["skipped"] if kind_of(entry["why"]) == why]
        print(f"  {number:>9,}  left out: {why} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})")
    counts = manifest["counts"]
    print(f"{out}: {counts['train']:,} / {counts['val']:,} / {counts['test']:,} studies (train / val / test), "
          f"{manifest['pictures']:,} pictures, {len(manifest['skipped']):,} studies left out (named in manifest.json)")
    for split, repeats in manifest["repeats"].items():
        if repeats:
            print(f"warning: {repeats:,} of {counts[split]:,} {split} reports stand letter by letter in the train "
                  "split")


def main(argv=None):
    """Runs the command; returns its exit code."""
    plain_output()
    try:
        _prepare(_arguments(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, no permission
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
