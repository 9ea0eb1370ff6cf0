"""The experiments as a grid of jobs: what is trained, from what, and which rows of which table it gives."""

import json
import shlex
from typing import NamedTuple

import numpy as np

import trrg
from data.builder import finished
from data.dataset import Prepared
from data.files import whole_file
from tests.experiments.measures import MIXES, SWAPS
from training.options import OPTIONS, arguments
from training.stages import Stage1, Stage2
from training.state import data_digest

PERCENT = (10, 30, 100)            # of the training studies, for both stages
SCARCE = {3: 104, 10: 520, 30: 520}            # per cent of the training studies for stage 2 alone: steps
SCARCE_VAL = 100                   # val studies then: many short epochs look at them often
MIXED = ("dci", "steered")         # the variants whose clues are right to a share that is set
TRAINED = ("align", "tune")        # the kinds of jobs that train, in the order of the stages


class Job(NamedTuple):
    """One line of the results."""

    name: str
    seed: int
    kind: str                        # align (stage 1), tune (stage 2), diagnose, or one of SWAPS
    after: "Job | None" = None       # the job whose checkpoint it starts from
    options: tuple = ()              # train.py's, beside those that all jobs share


class Row(NamedTuple):
    """A row of a table; `against` is the row that it is compared with, study by study."""

    job: Job
    against: str = ""


def experiments(args, seed):
    """{experiment: {row: Row}} for one seed. Jobs whose settings come out equal, such as the preset's own, are one."""
    made = {}

    def job(name, kind, after=None, *options, seed=seed):
        new = Job(name, seed, kind, after, options)
        options = vars(arguments([*argv(args, new), "--run", "any"])) if kind in TRAINED else name
        return made.setdefault(str((kind, after, options)), new)

    # One stage 1 for all seeds: what is compared is the writer.
    stage1 = job("stage1", "align", seed=0)

    def tune(name, *options, after=stage1):
        return job(name, "tune", after, *options)

    literal = tune("literal-base", "--variant", "base", "--lora-rank", "0")
    rungs = {variant: tune(variant, "--variant", variant) for variant in trrg.VARIANTS}
    base, dci, cmci, full, steered = rungs.values()
    grid = {"ladder": {"base, no LoRA": Row(literal), "base": Row(base, "base, no LoRA"), "dci": Row(dci, "base"),
                       "cmci": Row(cmci, "dci"), "trrg": Row(full, "cmci"),
                       "steered": Row(steered, "base")}}

    grid["swap"] = {}
    for rung in (dci, full, steered):
        own = f"{rung.name}, its own clues"
        grid["swap"][own] = Row(rung)
        for kind, words in SWAPS.items():
            grid["swap"][f"{rung.name}, {words}"] = Row(job(f"{rung.name}-{kind}", kind, rung), own)

    grid["mix"] = {}
    for variant in MIXED:
        for kind, words in MIXES.items():
            row = f"{variant}, {words}"
            grid["mix"][row] = Row(job(f"{variant}-{kind}", kind, rungs[variant]))

    grid["scarce"] = {}
    for percent, steps in SCARCE.items():
        for variant in ("base", "steered"):
            few = tune(f"{variant}-of-{percent}", "--variant", variant, "--epochs", "1000", "--max-steps", str(steps),
                       "--data", str(args.runs / f"few-{percent}-{seed}"))
            row = f"{percent} %, {variant}"
            grid["scarce"][row] = Row(few, f"{percent} %, base" if variant == "steered" else "")
        for kind in ("another", "true"):
            swapped = job(f"steered-of-{percent}-{kind}", kind, few)
            grid["scarce"][f"{row}, {SWAPS[kind]}"] = Row(swapped, row)
    grid["scarce"] |= {"100 %, base": Row(base), "100 %, steered": Row(steered, "100 %, base")}

    grid["alignment"] = {}
    for row, name, *options in (("untrained", "untrained", "--max-steps", "1", "--lr", "0"),
                                ("equal sentences negative", "distinct", "--no-same-sentence-positives"),
                                ("equal sentences positive", "same", "--same-sentence-positives")):
        tuned = tune(f"trrg-{name}", after=job(f"stage1-{name}", "align", None, *options))
        grid["alignment"][row] = Row(tuned, "" if name == "untrained" else "untrained")

    grid["clues"] = {"trrg": Row(full)}
    for option, name, values in (("--k", "k", (1, 3, 5)), ("--prompts-per-disease", "prompts", (1, 0)),
                                 ("--queries", "queries", (8, 16, 32))):
        for value in values:
            tuned = tune(f"trrg-{name}-{value}", option, str(value))
            grid["clues"][f"{name} {value or 'all'}"] = Row(tuned, "trrg")

    grid["data"] = {}
    for percent in PERCENT:
        # As many steps whatever there is to see, else less data would also be less training; val chooses the checkpoint
        less = [() if percent == 100 else ("--data", str(args.runs / f"data-{percent}-{seed}"),
                                           "--epochs", str(round(epochs * 100 / percent)))
                for epochs in (arguments(common(args, kind)).epochs[i] for i, kind in enumerate(TRAINED))]
        aligned = job(f"stage1-{percent}", "align", None, *less[0])
        for variant in ("base", "trrg"):
            tuned = tune(f"{variant}-{percent}", "--variant", variant, *less[1], after=aligned)
            grid["data"][f"{percent} %, {variant}"] = Row(tuned, f"{percent} %, base" if variant == "trrg" else "")

    grid["diagnosis"] = {}
    for rung in (base, dci, cmci, full, steered):
        grid["diagnosis"][rung.name] = Row(job(f"{rung.name}-diagnosis", "diagnose", rung))
    return grid


def common(args, kind):
    """train.py's options of all jobs of a kind that trains."""
    return shlex.split(f"{args.train} {args.train1 if kind == 'align' else args.train2}")


def argv(args, job):
    """train.py's command line for a job that trains."""
    after = ("--stage1", str(checkpoint(args, job.after))) if job.after else ()
    own = [*job.options, "--stage", "1" if job.kind == "align" else "2", *after, "--seed", str(job.seed), "--run",
           str(folder(args, job))]
    return ["--data", str(args.data), "--weights", str(args.weights), *read_by(own, common(args, job.kind)), *own]


def read_by(own, common):
    """The common options that this job reads: a variant without clues, for example, reads no --k."""
    kept, settings = [], arguments(own)
    for word in common:
        if word.startswith("--"):
            name = word.partition("=")[0].removeprefix("--no-").removeprefix("--").replace("-", "_")
            wanted = name not in OPTIONS or OPTIONS[name].reader.reads(settings)    # train.py refuses a misspelt one
        if wanted:
            kept.append(word)
    return kept


def folder(args, job):
    return args.runs / f"{job.name}-{job.seed}"


def checkpoint(args, job):
    return folder(args, job) / (Stage1 if job.kind == "align" else Stage2).checkpoint


def with_needed(grid, only):
    """{job: the experiment that it is recorded under}, of these experiments' rows and the jobs they start from."""
    found = {}
    for experiment in only:
        for row in grid[experiment].values():
            job = row.job
            while job:
                found.setdefault(job, experiment)
                job = job.after
    return found


def needs(job, failed):
    """Whether a job starts, directly or not, from one that failed."""
    return job.after is not None and (job.after in failed or needs(job.after, failed))


def part(args, percent, seed, val=None):
    """Prepares `percent` % of the training studies, drawn anew per seed, with all of val and test.

    For the experiment on few reports only the first `val` studies of val are kept.
    """
    whole, out = Prepared(args.data), args.runs / f"{'few' if val else 'data'}-{percent}-{seed}"
    options = {**whole.manifest["options"], "of": data_digest(whole), "percent": percent, "draw": seed}
    options |= {"val": val} if val else {}
    if finished(out, options):
        return
    studies = whole.split("train")
    drawn = np.random.default_rng(seed).permutation(len(studies))[:round(len(studies) * percent / 100)]
    kept = {study["id"] for study in [*(studies[number] for number in drawn), *whole.split("val")[:val],
                                      *whole.split("test")]}
    with whole_file(out / "studies.jsonl") as file:
        file.writelines(json.dumps(study, ensure_ascii=False) + "\n" for study in whole.studies if study["id"] in kept)
    (out / "images.npy").unlink(missing_ok=True)
    (out / "images.npy").symlink_to((whole.folder / "images.npy").resolve())
    with whole_file(out / "manifest.json") as file:
        counts = {**whole.manifest["counts"], "train": len(drawn), "val": len(whole.split("val")[:val])}
        json.dump({**whole.manifest, "counts": counts, "options": options}, file)
